"""The API reference names what the package offers, and chapters and reference point to each other."""

import inspect
import re

import pytest

import lorabook
from tests.book.conftest import ROOT, SITE
from tests.book.test_site import CHAPTERS, soup

REFERENCE = [path for path in CHAPTERS if path.stem.startswith("api")]


def test_every_public_name_has_an_entry_with_its_docstring():
    entries = {element["id"] for path in REFERENCE for element in soup(path).select("dt.sig[id]")}
    for name in lorabook.__all__:
        thing = getattr(lorabook, name)
        assert f"{thing.__module__}.{thing.__name__}" in entries, name
        assert inspect.getdoc(thing)


def test_every_module_of_the_wings_is_on_a_page():
    modules = {
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for path in (ROOT / "src" / "lorabook").rglob("*.py")
        if not path.stem.startswith("__") and "command_line" not in path.parts
    }
    listed = set()
    for path in (ROOT / "chapters").glob("api-*.md"):
        listed |= set(re.findall(r"automodule:: (\S+)", path.read_text(encoding="utf-8")))
    assert listed == modules


def test_a_docstring_links_to_its_chapter_and_the_chapter_back():
    reference = soup(SITE / "chapters" / "api-low-rank.html")
    entry = reference.find(id="lorabook.low_rank.numerical_rank").find_parent("dl")
    assert any(link["href"].startswith("02-rank.html") for link in entry.select("a"))
    chapter = soup(SITE / "chapters" / "02-rank.html")
    assert chapter.select("a.api-link[href='api-low-rank.html#lorabook.low_rank.numerical_rank']")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_name_is_linked_once_on_a_page(path):
    targets = [link["href"] for link in soup(path).select("a.api-link")]
    assert len(targets) == len(set(targets))
