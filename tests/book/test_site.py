"""The built pages as readers meet them: opened from disk, light and dark, wide and narrow."""

import re
from functools import cache
from urllib.parse import unquote, urldefrag

import pytest
from bs4 import BeautifulSoup

from tests.book.conftest import ROOT, SITE

PAGES = sorted(path for path in SITE.rglob("*.html") if "_static" not in path.parts and path != SITE / "index.html")
CHAPTERS = [path for path in PAGES if path.parent.name == "chapters"]
AXE = (ROOT / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")

# Whatever scrolls by itself has its place in the order of the tab key, a moment after it has its size.
REACHED = """[...document.querySelectorAll('pre, .katex-display')].every(
    one => one.scrollWidth <= one.clientWidth + 1 || one.tabIndex === 0)"""

# Sections far away have guessed sizes until they come near, and what is folded has none; what axe judges has its place.
LAY_OUT = """document.documentElement.dataset.laidOut = 'whole';
    document.querySelectorAll('details').forEach(one => { one.open = true; })"""
RULES = "{preload: false, resultTypes: ['violations'], rules: {'target-size': {enabled: true}}}"


def name(path):
    return str(path.relative_to(SITE))


def soup(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_every_chapter_of_the_contents_was_built():
    listed = [line.split("file:")[1].strip() for line in (ROOT / "_toc.yml").read_text().splitlines() if "file:" in line]
    assert {path.stem for path in CHAPTERS} == {file.rpartition("/")[2] for file in listed} | {"index"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("path", PAGES, ids=name)
def test_a_page_opened_from_disk_reads_correctly(visit, path, scheme, width):
    visited = visit(path, scheme=scheme, width=width)
    page = visited.page
    assert visited.complaints == []
    assert visited.elsewhere == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].filter(image => !image.complete || !image.naturalWidth).length") == 0
    assert page.evaluate("[...document.styleSheets].every(sheet => sheet.href === null || sheet.ownerNode.sheet !== null)")
    if page.locator(".katex").count():
        assert page.evaluate("document.fonts.load('16px KaTeX_Main').then(found => found.length > 0)")
        assert page.locator(".katex-error").count() == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", PAGES, ids=name)
def test_axe_finds_no_violation_on_a_page(visit, path):
    page = visit(path).page
    page.set_default_timeout(120_000)  # a long page on a busy machine
    page.evaluate(AXE)
    page.evaluate(LAY_OUT)
    found = {}
    for width in (1280, 375):
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
            page.wait_for_timeout(400)  # colours take a moment to change
            page.wait_for_function(REACHED)
            for one in page.evaluate(f"axe.run(document, {RULES})")["violations"]:
                found[f"{one['id']} at {width}, {scheme}"] = [node["html"][:200] for node in one["nodes"][:3]]
    assert found == {}


def test_the_address_of_the_book_leads_to_the_welcome_page():
    refresh = soup(SITE / "index.html").find("meta", attrs={"http-equiv": "Refresh"})
    target = refresh["content"].partition("url=")[2]
    assert soup(SITE / target).find("h1").get_text().startswith("LoRA from First Principles")


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_math_pictures_and_text_are_there_without_scripts(visit, path):
    page = visit(path, scripts=False).page
    written = soup(path)
    assert page.locator("article h1").first.is_visible()
    assert page.locator(".katex").count() == len(written.select(".katex"))
    assert not [element for element in written.select(".math") if "\\(" in element.get_text()]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_no_page_mentions_a_script_style_or_picture_of_another_host(path):
    page = soup(path)
    addresses = [
        element.get(key) for key in ("src", "href") for element in page.select("script, link, img, iframe, source") if element.get(key)
    ]
    assert [address for address in addresses if "//" in address and not address.startswith("data:")] == []
    assert "unpkg" not in path.read_text(encoding="utf-8")


def test_roles_have_their_colours_in_formulas():
    formulas = soup(SITE / "chapters" / "08-lora-linear.html").select(".katex-html")
    assert {one.get_text() for formula in formulas for one in formula.select(".role-a")} == {"A"}
    assert {one.get_text() for formula in formulas for one in formula.select(".role-delta")} == {"ΔW"}


@pytest.mark.parametrize("page", ["07-update", "11-fine-tuning"])
def test_a_link_within_a_page_leads_to_its_section(visit, page):
    seen = visit(SITE / "chapters" / f"{page}.html").page
    links = seen.locator("#pst-page-toc-nav a")
    for index in range(links.count() - 1, -1, -3):  # upwards, past sections that were never near
        target = links.nth(index).get_attribute("href")
        links.nth(index).evaluate("link => link.click()")
        seen.wait_for_timeout(300)
        top = seen.evaluate("id => document.getElementById(id).getBoundingClientRect().top", unquote(target[1:]))
        assert -1 <= top < 450, target  # the last section is shorter than the screen


@cache
def anchors(path):
    """The ids of a page, read once: every page links to most others."""
    return {element["id"] for element in soup(path).select("[id]")}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_internal_link_and_anchor_leads_somewhere(path):
    broken = []
    for link in soup(path).select("a[href]"):
        target, fragment = urldefrag(link["href"])
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (path.parent / unquote(target)).resolve() if target else path
        if not file.is_file() or (fragment and file.suffix == ".html" and unquote(fragment) not in anchors(file)):
            broken.append(link["href"])
    assert broken == []


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_every_picture_is_a_small_part_of_the_page_or_a_file_beside_it(path):
    page = path.read_text(encoding="utf-8")
    assert [address for address in re.findall(r"[\w./-]*_images/[\w.-]+", page) if not (path.parent / address).is_file()] == []
    assert re.findall(r"(?:src|href)=.data:image/(?:png|webp);base64,\s*[\w+/\s]{2000}", page) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_every_drawing_has_a_text_alternative_and_ids_of_its_own(path):
    page = soup(path)
    for drawing in page.select(".lora-figure svg"):
        assert drawing["role"] == "img"
        assert len(drawing["aria-label"]) > 40
    ids = [element["id"] for element in page.select(".lora-figure [id]")]
    assert len(ids) == len(set(ids))


def test_no_progress_bar_is_left_on_a_page():
    assert [name(path) for path in CHAPTERS if "it/s" in path.read_text(encoding="utf-8")] == []
