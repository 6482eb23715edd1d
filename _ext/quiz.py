r"""Sphinx extension: a quiz whose answers can be opened one by one, each with what to say to someone who chose it.

    ::::{quiz} Which product has the shape of $W$?
    :::{answer} $AB$
    No: its shapes do not multiply.
    :::
    :::{answer} $BA$
    :right:
    Yes: $(d \times r)(r \times k)$ is $d \times k$.
    :::
    ::::

An answer is an HTML ``details`` element, which a keyboard and a screen reader can open, and which needs no script.
"""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective


class QuizNode(nodes.General, nodes.Element):
    """A question, as its first child, and its answers."""


class QuestionNode(nodes.General, nodes.Element):
    """What is asked, in a line."""


class AnswerNode(nodes.General, nodes.Element):
    """One answer: a ``verdict``, then what is said about it."""


class VerdictNode(nodes.General, nodes.Element):
    """The answer's own text."""


class Quiz(SphinxDirective):
    """``{quiz} question``: two answers or more, of which one is right."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:  # noqa: D102
        asked = QuestionNode("", *self.parse_inline(self.arguments[0])[0])
        number = self.env.new_serialno("quiz") + 1
        found = QuizNode("", asked, number=number)
        self.set_source_info(found)
        found += [child for child in self.parse_content_to_nodes() if isinstance(child, AnswerNode)]
        answers = found.children[1:]
        right = sum(bool(one["right"]) for one in answers if isinstance(one, AnswerNode))
        if len(answers) < 2 or right != 1:
            raise self.error(f"a quiz needs two answers or more, one of them :right:, got {len(answers)} with {right} right")
        for index, one in enumerate(answers):
            one["letter"] = chr(ord("A") + index)
        return [found]


class Answer(SphinxDirective):
    """``{answer} text``, with ``:right:`` at the right one; its content is what a reader who chose it should know."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec: ClassVar = {"right": directives.flag}

    def run(self) -> list[nodes.Node]:  # noqa: D102
        if not self.content:
            raise self.error("an answer needs a sentence of feedback")
        given = VerdictNode("", *self.parse_inline(self.arguments[0])[0])
        return [AnswerNode("", given, *self.parse_content_to_nodes(), right="right" in self.options)]


def visit_quiz(self: Any, node: nodes.Element) -> None:
    self.body.append(f'<div class="quiz" role="group" aria-labelledby="quiz-{node["number"]}">')
    node[0]["number"] = node["number"]


def visit_question(self: Any, node: nodes.Element) -> None:
    self.body.append(f'<p class="quiz-question" id="quiz-{node["number"]}"><strong>{node["number"]}.</strong> ')


def visit_answer(self: Any, node: nodes.Element) -> None:
    self.body.append(f'<details class="quiz-answer {"quiz-right" if node["right"] else "quiz-wrong"}">')
    node[0]["letter"] = node["letter"]


def visit_verdict(self: Any, node: nodes.Element) -> None:
    self.body.append(f'<summary><span class="quiz-letter">{node["letter"]}.</span> <span>')


def _closing(text: str) -> Any:
    return lambda self, node: self.body.append(text)


def _nothing(self: Any, node: nodes.Element) -> None:
    pass


def setup(app: Any) -> dict[str, Any]:
    plain = (_nothing, _nothing)
    for node, visit, end in (
        (QuizNode, visit_quiz, "</div>"),
        (QuestionNode, visit_question, "</p>"),
        (AnswerNode, visit_answer, "</details>"),
        (VerdictNode, visit_verdict, "</span></summary>"),
    ):
        app.add_node(node, html=(visit, _closing(end)), latex=plain, text=plain)
    app.add_directive("quiz", Quiz)
    app.add_directive("answer", Answer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
