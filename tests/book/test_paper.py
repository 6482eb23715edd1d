"""The book on paper: every line of code whole, nothing wider than the sheet, links and bookmarks that lead where they say."""

import io
import itertools
import re
import unicodedata

import pytest
import yaml
from pypdf import PdfReader

from tests.book.conftest import ROOT, SITE
from tests.book.paper import book, document, opened, pages, printed
from tests.book.test_site import soup

# Long lines of code, folded code and solutions, a quiz; the layer's source over several sheets; the widest tables.
CHAPTERS = ["chapters/01-full-fine-tuning", "chapters/08-lora-linear", "chapters/numbers"]
LISTED = [("", "chapters/index"), *(("Part", name) for name in CHAPTERS)]
WIDTH = 642  # CSS pixels between the margins of the sheet: 170 mm


@pytest.fixture(scope="module")
def paper(browser, tmp_path_factory):
    out = tmp_path_factory.mktemp("paper") / "book.pdf"
    count = book(browser, SITE, LISTED, out)
    reader = PdfReader(out)
    assert count == len(reader.pages)
    return reader


@pytest.fixture
def settings():
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def squeezed(text):
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text))  # fonts join "fi"


@pytest.fixture(scope="module")
def sheets(paper):
    """What is printed on each sheet, without white space."""
    return [squeezed(page.extract_text()) for page in paper.pages]


def is_printed(text, sheets):
    """On one sheet, or begun on one and ended on the next."""
    if any(text in sheet for sheet in sheets):
        return True
    return any(
        text[:cut] in sheet and text[cut:] in following for sheet, following in itertools.pairwise(sheets) for cut in range(1, len(text))
    )


def sections_of(name):
    page = soup(SITE / f"{name}.html")
    for link in page.select(".headerlink"):
        link.decompose()
    return [heading.get_text() for heading in page.select("article h2") if not heading.select(".math")]


def bookmarks(paper, level=0, entries=None):
    for entry in paper.outline if entries is None else entries:
        if isinstance(entry, list):
            yield from bookmarks(paper, level + 1, entry)
        else:
            yield level, entry.title, paper.get_destination_page_number(entry) + 1


def test_pages_are_listed_in_the_order_of_the_contents():
    listed = pages(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
    files = [line.partition("file:")[2].strip() for line in (ROOT / "_toc.yml").read_text(encoding="utf-8").splitlines() if "file:" in line]
    assert [name for _, name in listed] == ["chapters/index", *files]


def lines_of_code(name):
    return {squeezed(line) for code in soup(SITE / f"{name}.html").select("article pre") for line in code.get_text().splitlines()}


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_line_of_code_is_printed_whole_where_it_is_folded_too(sheets, name):
    lines = lines_of_code(name)
    assert len(lines) > 20
    assert [line for line in lines if not is_printed(line, sheets)] == []


def test_solutions_and_every_answer_of_a_quiz_are_printed(sheets):
    page = soup(SITE / "chapters" / "01-full-fine-tuning.html")
    answers = [squeezed(answer.find("summary").get_text()) for answer in page.select(".quiz-answer") if not answer.select(".math")]
    assert answers
    assert [answer for answer in answers if not is_printed(answer, sheets)] == []
    assert "".join(sheets).count("Solution") >= len(page.select("details.solution")) > 0


def test_nothing_is_wider_than_the_sheet(browser, settings):
    tab = opened(browser, document(SITE, LISTED, settings), SITE)
    tab.set_viewport_size({"width": WIDTH, "height": 900})
    tab.emulate_media(media="print")
    wide = tab.evaluate(
        """width => [...document.querySelectorAll("main *")]
        .filter(one => one.checkVisibility() && !one.closest(".katex-mathml, svg *") && one.getBoundingClientRect().right > width + 1)
        .map(one => one.outerHTML.slice(0, 200))""",
        WIDTH,
    )
    tab.close()
    assert wide == []


def test_contents_name_the_sheet_on_which_a_chapter_begins(paper):
    begins = {title: sheet for level, title, sheet in bookmarks(paper) if level < 2}
    contents = {squeezed(line) for line in paper.pages[1].extract_text().splitlines()}
    for name in CHAPTERS:
        title = soup(SITE / f"{name}.html").title.get_text().partition(" — ")[0]
        assert f"{squeezed(title)}{begins[title]}" in contents


def test_bookmarks_are_the_parts_chapters_and_sections(paper):
    listed = [(level, title) for level, title, _ in bookmarks(paper)]
    assert listed[1:4:2] == [(0, "Contents"), (1, sections_of(LISTED[0][1])[0])]
    assert (0, "Part") in listed
    for name in CHAPTERS:
        title = soup(SITE / f"{name}.html").title.get_text().partition(" — ")[0]
        assert (1, title) in listed
        assert [section for section in sections_of(name) if (2, section) not in listed] == []


def test_a_bookmark_has_its_heading_once_where_it_wraps_or_begins_a_sheet(browser, settings):
    style = "<style>h2 { font-size: 22pt !important; width: 4em } h2 + p { break-inside: avoid; height: 200mm }</style>"
    html = document(SITE, LISTED[:1], settings).replace("</head>", f"{style}</head>")
    titles = [title for level, title, _ in bookmarks(PdfReader(io.BytesIO(printed(browser, html, SITE)))) if level]
    assert titles == sections_of(LISTED[0][1])


def test_links_lead_into_the_pdf_or_to_other_hosts(paper):
    within = 0
    for page in paper.pages:
        for link in page.get("/Annots", []):
            action = link.get_object().get("/A", {})
            assert action.get("/URI", "https:").startswith("https:")
            within += "/Dest" in link.get_object()
    assert within > len(LISTED)
    assert "/08-lora-linear" in paper.named_destinations


def test_the_cover_has_the_title_and_no_number(paper):
    cover = paper.pages[0].extract_text()
    assert cover.startswith(paper.metadata.title)
    assert "CC BY" in cover


def test_a_reader_who_prints_a_page_has_every_line_of_its_code(visit, tmp_path):
    visit(SITE / f"{CHAPTERS[0]}.html").page.pdf(path=tmp_path / "page.pdf", format="A4")
    sheets = [squeezed(page.extract_text()) for page in PdfReader(tmp_path / "page.pdf").pages]
    assert [line for line in lines_of_code(CHAPTERS[0]) if not is_printed(line, sheets)] == []


def test_a_page_printed_from_the_dark_is_black_on_white(visit):
    page = visit(SITE / "chapters" / "01-full-fine-tuning.html", scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    seen = "const seen = key => [...new Set([...document.querySelectorAll('article *')].map(one => getComputedStyle(one)[key]))]; "
    assert page.evaluate(f"(() => {{ {seen} return seen('color') }})()") == ["rgb(0, 0, 0)"]
    assert page.evaluate(f"(() => {{ {seen} return seen('backgroundColor') }})()") == ["rgba(0, 0, 0, 0)"]
