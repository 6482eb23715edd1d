"""A resolved page as the cells of a notebook: Markdown that any notebook reads, and code.

It knows nodes, not files: references, citations, numbers of equations and glued values are text by the time that it sees them. What can be
folded on the page is an HTML ``details`` element here. Such an element cannot hold a code cell, so a fold that has code in it ends before
the cell and goes on after it, and the cell itself is folded by its metadata.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from docutils import nodes

# A line that begins so would begin a list, a heading or a quotation.
_STARTS_A_BLOCK = re.compile(r"^(?:[-+#>=]|\d+[.)])(?=\s|$)")
_NUMBER_OF = {"math_block": "displaymath", "exercise_enumerable_node": "exercise"}
_SILENT = {"comment", "target", "toctree", "compound", "index", "system_message", "substitution_definition"}


@dataclass(frozen=True)
class Cell:
    """One cell: Markdown, or code that is shown or folded, with the title that it has when folded."""

    kind: str
    source: str
    folded: bool = False
    title: str = ""


@dataclass
class NotebookWriter:
    """Turns the doctree of one executed page into cells.

    Args:
        code: the page's code cells in order, those that the page itself does not show included: position in the source, first line,
            source, and tags.
        numbers: by kind ("exercise", "theorem", "displaymath"), then by id, the numbers that the page prints.
        address: the address of an internal link, or None where a link can only be its text.
        unknown: called with every node that has no form in Markdown.
    """

    code: list[tuple[int, int, str, tuple[str, ...]]]
    numbers: dict[str, dict[str, tuple[int, ...]]]
    address: Callable[[str], str | None]
    unknown: Callable[[nodes.Node], None]
    cells: list[Cell] = field(default_factory=list)
    _blocks: list[str] = field(default_factory=list)
    _fold: list[str] = field(default_factory=list)
    _fold_begun: bool = False
    _depth: int = 0
    _last_exercise: str = ""

    def write(self, document: nodes.document) -> list[Cell]:
        """All cells of the page, in order."""
        self._flow(document.children)
        self._flush_code(before=None, line=None)
        self._end_cell()
        return self.cells

    # Cells -------------------------------------------------------------------------------------------------------------------------

    def _flow(self, children: Iterable[nodes.Node]) -> None:
        """Children among which code cells may stand."""
        for node in children:
            name = type(node).__name__
            if isinstance(node, nodes.Element) and node.get("nb_element") == "cell_code":
                self._flush_code(before=node["cell_index"], line=None)
                self._code_cell()
            elif isinstance(node, nodes.section):
                self._section(node)
            elif name in ("exercise_node", "exercise_enumerable_node"):
                self._exercise(node)
            elif name == "solution_node":
                self._folded(f"Solution to {self._last_exercise}" if self._last_exercise else "Solution", node.children[1:])
            elif name == "dropdown_main" and _has_code(node):
                self._folded(self._summary(node.children[0]), node.children[1:])
            elif _has_code(node):
                self._flow(node.children)
            else:
                self._flush_code(before=None, line=getattr(node, "line", None) or 0)
                self._blocks += filter(None, [self.block(node)])

    def _flush_code(self, before: int | None, line: int | None) -> None:
        """Cells that the page does not show, as far as the page has come: to a cell, to a line, or to the end."""
        while self.code and (self.code[0][0] < before if before is not None else line is None or self.code[0][1] < line):
            self._code_cell()

    def _code_cell(self) -> None:
        _, _, source, tags = self.code.pop(0)
        self._end_cell()
        hidden = bool({"hide-input", "remove-cell", "remove-input", "hide-cell"} & set(tags))
        self.cells.append(Cell("code", source, folded=hidden or bool(self._fold), title=self._fold[-1] if self._fold else ""))

    def _end_cell(self) -> None:
        text = "\n\n".join(self._blocks)
        self._blocks.clear()
        if text and self._fold:
            text = details(html.escape(self._fold[-1], quote=False) + (", continued" if self._fold_begun else ""), text)
            self._fold_begun = True
        if text:
            self.cells.append(Cell("markdown", text))

    def _folded(self, summary: str, children: Iterable[nodes.Node]) -> None:
        self._end_cell()
        self._fold.append(summary)
        self._fold_begun = False
        self._flow(children)
        self._end_cell()
        self._fold.pop()

    def _section(self, node: nodes.Element) -> None:
        titled = bool(node.children) and isinstance(node[0], nodes.title)
        self._depth += titled
        if titled:
            self._flush_code(before=None, line=getattr(node, "line", None) or getattr(node[0], "line", None) or 0)
            self._blocks.append("#" * min(self._depth, 6) + " " + self.inline(node[0]))
        self._flow(node.children[1:] if titled else node.children)
        self._depth -= titled

    def _exercise(self, node: nodes.Element) -> None:
        number = self._number("exercise", node)
        self._last_exercise = f"exercise {number}".strip()
        self._blocks.append(f"**{_capital(self._last_exercise)}{self.inline(node[0]).replace('Exercise', '', 1)}**")
        self._flow(node.children[1:])

    def _number(self, kind: str, node: nodes.Element) -> str:
        return ".".join(str(part) for one in node.get("ids", []) for part in self.numbers.get(kind, {}).get(one, ()))

    # Blocks ------------------------------------------------------------------------------------------------------------------------

    def blocks(self, children: Iterable[nodes.Node], between: str = "\n\n") -> str:
        """Blocks that hold no code cell."""
        return between.join(filter(None, map(self.block, children)))

    def block(self, node: nodes.Node) -> str:
        """One block of a page, with what is in it."""
        name = type(node).__name__
        if name in _SILENT:
            return ""
        method = getattr(self, f"_block_{name}", self._admonition if isinstance(node, nodes.Admonition) else None)
        if method is not None:
            return str(method(node))
        self.unknown(node)
        return ""

    def _block_paragraph(self, node: nodes.Element) -> str:
        return _STARTS_A_BLOCK.sub(_escape_start, self.inline(node).strip())

    def _block_container(self, node: nodes.Element) -> str:
        return self.blocks(node.children)

    _block_section = _block_definition_list = _block_definition_list_item = _block_proof_node = _block_container

    def _block_rubric(self, node: nodes.Element) -> str:
        return f"**{self.inline(node)}**"

    _block_caption = _block_rubric

    def _block_transition(self, node: nodes.Element) -> str:
        return "---"

    def _block_raw(self, node: nodes.Element) -> str:
        return node.astext() if "html" in node.get("format", "").split() else ""

    def _block_literal_block(self, node: nodes.Element) -> str:
        language = node.get("language", "")
        included = str(node.get("source", "")).endswith(".py")  # the package's source, shown by literalinclude
        return fence(node.astext(), "python" if included else {"ipython3": "python", "default": "", "none": ""}.get(language, language))

    def _block_math_block(self, node: nodes.Element) -> str:
        latex = _without_classes(node.astext().strip())
        number = self._number("displaymath", node) or (str(node.get("number") or "") if not self.numbers.get("displaymath") else "")
        if number:
            # A tag has to stand inside an environment that numbers by itself.
            ends = re.search(r"\\end\{(?:align|gather|equation|multline|alignat|flalign)\*?\}\s*$", latex)  # codespell:ignore multline
            at = ends.start() if ends else len(latex)
            latex = f"{latex[:at].rstrip()} \\tag{{{number}}}{latex[at:]}"
        return f"$$\n{latex}\n$$"

    def _block_bullet_list(self, node: nodes.Element) -> str:
        return "\n".join(indented(self.blocks(item.children), "- ") for item in node.children)

    def _block_enumerated_list(self, node: nodes.Element) -> str:
        first = node.get("start", 1)
        return "\n".join(indented(self.blocks(item.children), f"{first + index}. ") for index, item in enumerate(node.children))

    def _block_block_quote(self, node: nodes.Element) -> str:
        return quoted(self.blocks(node.children))

    def _block_term(self, node: nodes.Element) -> str:
        return f"**{self.inline(node)}**"

    def _block_definition(self, node: nodes.Element) -> str:
        return quoted(self.blocks(node.children))

    def _block_table(self, node: nodes.Element) -> str:
        caption = [f"**{self.inline(one)}**" for one in node.children if isinstance(one, nodes.title)]
        rows = [[self._entry(entry) for entry in row.children] for row in node.findall(nodes.row)]
        first = next(row for row in node.findall(nodes.row))
        aligned = [{"text-right": "--:", "text-center": ":-:", "text-left": ":--"}.get(" ".join(one["classes"]), "---") for one in first]
        lines = [rows[0], aligned, *rows[1:]]
        return "\n\n".join([*caption, "\n".join("| " + " | ".join(line) + " |" for line in lines)])

    def _entry(self, entry: nodes.Element) -> str:
        """A table's cell on one line; a bar inside a formula would end it."""
        text = self.blocks(entry.children, between="<br>")
        text = re.sub(r"\$[^$]*\$", lambda formula: formula[0].replace(r"\|", r"\Vert ").replace("|", r"\vert "), text)
        return text.replace("|", r"\|")

    def _block_dropdown_main(self, node: nodes.Element) -> str:
        return details(self._summary(node.children[0]), self.blocks(node.children[1:]))

    def _admonition(self, node: nodes.Element) -> str:
        children = list(node.children)
        titled = bool(children) and isinstance(children[0], nodes.title)
        if titled and "dropdown" in node["classes"]:
            return details(self._summary(children[0]), self.blocks(children[1:]))
        title = self.inline(children.pop(0)).strip() if titled else ""
        if "countertype" in node:  # a theorem, a definition, ...: the page writes its kind and number in front
            kind = f"{node['realtype'].capitalize()} {self._number(node['countertype'], node)}".strip()
            title = f"{kind} {title}".strip()
        elif not title:
            title = "" if type(node) is nodes.admonition else _capital(type(node).__name__)
        return quoted("\n\n".join(filter(None, [f"**{title}**" if title else "", self.blocks(children)])))

    def _block_QuizNode(self, node: nodes.Element) -> str:  # noqa: N802
        question, *answers = node.children
        return "\n\n".join([f"**{node['number']}.** {self.inline(question)}", *map(self._answer, answers)])

    def _answer(self, node: nodes.Element) -> str:
        said = "**Right.** " if node["right"] else "**Not quite.** "
        return details(f"{node['letter']}. {self._summary(node.children[0])}", said + self.blocks(node.children[1:]))

    # Inside a line -----------------------------------------------------------------------------------------------------------------

    def inline(self, node: nodes.Node) -> str:
        """The text of a node on one line, with emphasis, code, formulas and links."""
        return "".join(self.inline_node(child) for child in node.children)

    def inline_node(self, node: nodes.Node) -> str:
        """One node of a line."""
        if isinstance(node, nodes.Text):
            return escaped(node.astext())
        name = type(node).__name__
        if name in _SILENT:
            return ""
        if name in ("emphasis", "strong", "title_reference"):
            mark = "**" if name == "strong" else "*"
            text = self.inline(node).strip()
            return f"{mark}{text}{mark}" if text else ""
        if name == "literal":
            return code(node.astext())
        if name == "math":
            return f"${_one_line(_without_classes(node.astext()))}$"
        if name == "raw":
            return node.astext() if "html" in node.get("format", "").split() else ""
        if name in ("superscript", "subscript"):
            return f"<{name[:3]}>{self.inline(node)}</{name[:3]}>"
        if name in ("reference", "number_reference"):
            return self._reference(node)
        if name in ("inline", "abbreviation", "generated", "QuestionNode", "VerdictNode", "paragraph", "title"):
            return self.inline(node)
        self.unknown(node)
        return escaped(node.astext())

    def _reference(self, node: nodes.Element) -> str:
        text = self.inline(node)
        target = node.get("refuri", "")
        address = target if "://" in target else self.address(target) if target else None
        return f"[{text}]({address})" if address else text

    def _summary(self, node: nodes.Node) -> str:
        """What stands beside a fold's arrow: HTML, since no notebook reads Markdown there; formulas are still formulas."""
        if isinstance(node, nodes.Text):
            return html.escape(_one_line(node.astext()), quote=False)
        name = type(node).__name__
        if name == "math":
            return "$" + re.sub(r"\s*([<>])\s*", lambda sign: {"<": r" \lt ", ">": r" \gt "}[sign[1]], _one_line(node.astext())) + "$"
        if name == "raw":
            return ""
        inside = "".join(self._summary(child) for child in node.children)
        tag = {"emphasis": "em", "strong": "strong", "literal": "code"}.get(name)
        return f"<{tag}>{inside}</{tag}>" if tag else inside


def _without_classes(latex: str) -> str:
    """A formula without its colours, which not every notebook knows."""
    return re.sub(r"\\class\{[\w-]+\}\{([^{}]*)\}", r"{\1}", latex)


def details(summary: str, text: str) -> str:
    """A fold; the empty lines let a notebook read Markdown inside."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def fence(text: str, language: str = "") -> str:
    """A block of code, also of code that itself holds a fence."""
    ticks = max([2, *(len(run) for run in re.findall(r"`{3,}", text))]) + 1
    return f"{'`' * ticks}{language}\n{text.rstrip()}\n{'`' * ticks}"


def code(text: str) -> str:
    """Code inside a line."""
    ticks = "`" * (max([0, *(len(run) for run in re.findall(r"`+", text))]) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{_one_line(text)}{space}{ticks}"


def escaped(text: str) -> str:
    """Text that Markdown is not to read as anything else. A dollar would begin a formula even if escaped."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", _one_line(text))
    text = re.sub(r"([\\`*~])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word Markdown leaves it alone
    return text.replace("](", r"]\(").replace("<", "&lt;").replace("$", "<span>&#36;</span>")


def quoted(text: str) -> str:
    """A quotation. JupyterLab takes formulas out before it reads Markdown, marks of a quotation included: each goes on one line."""
    text = re.sub(r"^\$\$$(.*?)^\$\$$", lambda formula: "$$" + _one_line(formula[1]) + "$$", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def indented(text: str, mark: str) -> str:
    """A list item: its first line after the mark, the others below the first."""
    first, *others = text.splitlines() or [""]
    return "\n".join([mark + first, *((" " * len(mark) + line).rstrip() for line in others)])


def _escape_start(match: re.Match[str]) -> str:
    return f"{match[0][:-1]}\\{match[0][-1]}"


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _has_code(node: nodes.Node) -> bool:
    return any(isinstance(one, nodes.Element) and one.get("nb_element") == "cell_code" for one in node.findall())
