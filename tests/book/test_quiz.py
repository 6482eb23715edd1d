"""Quizzes: every answer opens, says whether it is right, and a quiz that teaches nothing does not build."""

import subprocess
import sys

import pytest
from bs4 import BeautifulSoup

from tests.book.conftest import ROOT, SITE

GOOD = """# Page

::::{quiz} Which of $AB$ and $BA$?
:::{answer} $AB$
No: *not* this.
:::
:::{answer} $BA$
:right:
Yes.
:::
::::
"""


@pytest.fixture
def build(tmp_path):
    def make(text):
        (tmp_path / "index.md").write_text(text, encoding="utf-8")
        (tmp_path / "conf.py").write_text(
            f"import sys; sys.path.insert(0, {str(ROOT / '_ext')!r})\n"
            "extensions = ['myst_parser', 'quiz']\n"
            "myst_enable_extensions = ['colon_fence', 'dollarmath']\n",
            encoding="utf-8",
        )
        # A process of its own: a second Sphinx in one process warns of everything that the first has registered.
        command = [sys.executable, "-m", "sphinx", "-q", "--no-color", "-b", "html", tmp_path, tmp_path / "out"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return BeautifulSoup((tmp_path / "out" / "index.html").read_text(), "html.parser"), result.stderr

    return make


def test_a_quiz_names_its_question_and_marks_one_answer(build):
    page, warnings = build(GOOD)
    group = page.select_one(".quiz")
    assert warnings == ""
    assert page.find(id=group["aria-labelledby"]).get_text().startswith("1. Which of")
    assert [answer.summary.get_text()[:2] for answer in group.select("details")] == ["A.", "B."]
    assert [answer["class"][1] for answer in group.select("details")] == ["quiz-wrong", "quiz-right"]
    assert group.select_one(".quiz-wrong em").get_text() == "not"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (":right:\n", "", "one of them :right:, got 2 with 0 right"),
        ("No: *not* this.\n", "\n", "an answer needs a sentence of feedback"),
    ],
)
def test_a_quiz_without_a_right_answer_or_without_feedback_is_refused(build, old, new, complaint):
    assert complaint in build(GOOD.replace(old, new))[1]


def test_quizzes_open_by_keyboard_alone(visit):
    page = visit(SITE / "chapters" / "02-rank.html").page
    answer = page.locator(".quiz details").first
    feedback = answer.locator("p")
    assert not feedback.is_visible()
    answer.locator("summary").focus()
    page.keyboard.press("Enter")
    assert feedback.is_visible()
    assert "Not quite" in page.evaluate("el => getComputedStyle(el, '::after').content", answer.locator("summary").element_handle())


def test_without_scripts_answers_still_open(visit):
    page = visit(SITE / "chapters" / "02-rank.html", scripts=False).page
    answer = page.locator(".quiz details.quiz-right").first
    answer.locator("summary").click()
    assert answer.locator("p").is_visible()
