"""The book's own Sphinx extensions, piece by piece."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes
from docutils.utils import new_document

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "_ext"))

from fresh_execution import dependencies, fingerprint, imported, modules_of  # noqa: E402
from katex_local import keep_marks, woff2_only  # noqa: E402
from no_thebe import disconnect  # noqa: E402


def test_the_stylesheet_asks_for_woff2_alone_and_keeps_every_font():
    css = (ROOT / "node_modules/katex/dist/katex.min.css").read_text(encoding="utf-8")
    slim = woff2_only(css)
    assert css.count(".ttf") > 0
    assert ".ttf" not in slim
    assert ".woff)" not in slim
    assert slim.count(".woff2") == css.count(".woff2") == len(list((ROOT / "node_modules/katex/dist/fonts").glob("*.woff2")))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import lorabook.low_rank", {"lorabook", "lorabook.low_rank"}),
        ("from lorabook.low_rank import energy", {"lorabook", "lorabook.low_rank"}),
        ("from lorabook.figures import plots", {"lorabook", "lorabook.figures", "lorabook.figures.plots"}),
        ("def later():\n    from lorabook.tasks import sandbox", {"lorabook", "lorabook.tasks", "lorabook.tasks.sandbox"}),
        ("import torch", set()),
        ("import lorabookish", set()),
    ],
)
def test_imports_are_found_with_the_packages_that_hold_them(code, expected):
    assert set(imported(code, modules_of(ROOT / "src"))) == expected


def test_dependencies_follow_imports_of_imports():
    modules = modules_of(ROOT / "src")
    found = dependencies("from lorabook.training.loop import train", modules)
    assert modules["lorabook.language.likelihood"] in found
    assert modules["lorabook.tasks.sandbox"] not in found


def test_a_page_without_cells_depends_on_nothing():
    assert fingerprint(ROOT / "chapters" / "notation.md", ROOT) == ""
    assert fingerprint(ROOT / "chapters" / "02-rank.md", ROOT) != fingerprint(ROOT / "chapters" / "08-lora-linear.md", ROOT)


def test_only_thebes_listeners_go():
    def ours():
        pass

    def theirs():
        pass

    theirs.__module__ = "sphinx_thebe"
    listeners = {"event": [SimpleNamespace(handler=ours), SimpleNamespace(handler=theirs)]}
    disconnect(SimpleNamespace(events=SimpleNamespace(listeners=listeners)), None)
    assert [listener.handler for listener in listeners["event"]] == [ours]


def test_a_comma_stays_with_a_short_formula():
    document = new_document("page")
    words = [nodes.Text("of "), nodes.math("", "r"), nodes.Text(", and "), nodes.math("", "x" * 41), nodes.Text(". "), nodes.math("", "s")]
    document += nodes.paragraph("", "", *words, nodes.Text(" more"))
    text = document.astext()
    keep_marks(None, document, "page")
    (kept,) = document.findall(nodes.inline)
    assert (kept.astext(), kept["classes"]) == ("r,", ["keeps"])
    assert document.astext() == text
