"""What the book shows of itself: logo, description, reading time, the page for wrong addresses, and addresses where one is set."""

import re
import sys

import numpy as np
import pytest
from docutils.core import publish_doctree
from matplotlib.figure import Figure
from sphinx.application import Sphinx

from lorabook.figures.style import COLORS
from tests.book.conftest import ROOT, SITE
from tests.book.test_site import PAGES, name, soup

sys.path.insert(0, str(ROOT / "_ext"))

from identity import description, draw_update, logo, prose


def test_the_logo_has_the_colours_and_the_shapes_of_the_book():
    bars = {fill: (float(w), float(h)) for w, h, fill in re.findall(r'width="(\d+)" height="(\d+)" rx="1" fill="(#\w+)"', logo())}
    wide, tall, square = bars[COLORS["A"]], bars[COLORS["B"]], bars[COLORS["W"]]
    assert (tall[1], wide[0]) == square  # B has W's rows, A has W's columns
    assert tall[0] == wide[1] < square[0]


def test_the_cover_shows_an_update_as_large_as_the_weight_made_of_two_thin_matrices():
    axes = Figure().subplots()
    draw_update(axes, 10)
    weight, b, a, update = (np.asarray(mesh.get_array()) for mesh in axes.collections)
    assert weight.shape == update.shape
    assert np.allclose(update, b @ a)
    assert b.shape[1] == a.shape[0] == np.linalg.matrix_rank(update) < np.linalg.matrix_rank(weight)


def test_reading_time_counts_prose_and_not_code():
    doctree = publish_doctree("Title\n=====\n\nOne two three.\n\n::\n\n   four five six\n\n:math:`a b`\n")
    assert prose(doctree).split() == ["Title", "One", "two", "three."]


def test_a_description_ends_at_a_word():
    text = description(publish_doctree("Title\n=====\n\n" + "wordy " * 60))
    assert len(text) <= 202
    assert text.endswith("wordy …")


@pytest.fixture
def build(tmp_path):
    def make(address):
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        (source / "index.md").write_text("# Page\n\nA first paragraph that is long enough to describe the page.\n", encoding="utf-8")
        (source / "conf.py").write_text(
            f"import sys; sys.path.insert(0, {str(ROOT / '_ext')!r})\nextensions = ['myst_parser', 'identity']\n"
            f"html_theme = 'sphinx_book_theme'\nhtml_title = 'Book'\nhtml_baseurl = {address!r}\n",
            encoding="utf-8",
        )
        out = tmp_path / ("out" + str(bool(address)))
        Sphinx(source, source, out, tmp_path / "trees", "html", status=None, freshenv=True).build(force_all=True)
        return out

    return make


def test_with_an_address_the_site_names_its_pages_and_links_show_a_picture(build):
    out = build("https://example.org/book/")
    page = soup(out / "index.html")
    assert page.find("meta", property="og:url")["content"] == "https://example.org/book/index.html"
    assert (out / "_static" / page.find("meta", property="og:image")["content"].rpartition("/")[2]).read_bytes().startswith(b"\x89PNG")
    assert "<loc>https://example.org/book/index.html</loc>" in (out / "sitemap.xml").read_text()
    assert soup(out / "404.html").find("base")["href"] == "https://example.org/book/"


def test_with_no_address_no_page_names_one(build):
    out = build("")
    assert not (out / "sitemap.xml").exists()
    assert not soup(out / "index.html").select("meta[property], base")
    assert soup(out / "404.html").select_one("article h1").get_text().startswith("There is no page here")


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_page_has_one_title_a_description_and_the_logo(path):
    page = soup(path)
    assert len(page.select("h1")) == 1
    assert len(page.find("meta", attrs={"name": "description"})["content"]) > 20
    assert page.select_one(".book-logo")
    assert (path.parent / page.find("link", rel="icon")["href"].partition("?")[0]).resolve().is_file()


def test_every_chapter_says_how_long_it_takes():
    chapters = [path for path in (SITE / "chapters").glob("*.html") if re.match(r"\d\d-", path.name)]
    for path in chapters:
        minutes = int(re.search(r"\d+", soup(path).select_one(".reading-time").get_text())[0])
        assert 2 <= minutes <= 90, path
