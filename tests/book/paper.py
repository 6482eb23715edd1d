"""Print the built book into one PDF, with a cover, a contents page, links and bookmarks: `make pdf`.

All pages are joined into one document, which Chromium prints: links from chapter to chapter then lead to pages of the PDF.
"""

from __future__ import annotations

import io
import posixpath
import re
import sys
from html import escape
from pathlib import Path
from urllib.parse import unquote, urldefrag

import yaml
from bs4 import BeautifulSoup, Tag
from matplotlib.figure import Figure
from playwright.sync_api import Browser, Page, sync_playwright
from pypdf import PdfReader

from lorabook.figures.notebook import picture
from tests.book.browser import FLAGS, find_browser

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"

sys.path.insert(0, str(ROOT / "_ext"))

from identity import COVER_ALT, draw_update  # noqa: E402

# What only the joined document has: the sheet, the cover, the contents, and parts.
SHEET = """
@page { size: A4; margin: 20mm 20mm 18mm; @bottom-center { content: counter(page); font: 8pt sans-serif; } }
@page cover { @bottom-center { content: none; } }
.bd-main .bd-content a { color: var(--pst-color-link); }
/* Bookmarks: Chromium would name a heading twice that begins a sheet, and forget the space where it wraps. */
.bd-article :is(h1, h2, h3, h4) { padding-top: 3px; white-space: pre-wrap; }
.bd-main .bd-content .cover { page: cover; text-align: center; }
.bd-main .bd-content .cover h1 { font-size: 34pt; margin: 45mm 0 20mm; }
.bd-main .bd-content .cover .lora-figure { margin-bottom: 30mm; max-width: none; }
.contents, .bd-article { break-before: page; }
.contents p { font-weight: 600; margin: 0.9rem 0 0.2rem; }
.contents a { display: flex; }
.contents a::before { border-bottom: 1px dotted #999; content: ""; flex: 1; margin: 0 0.4rem 0.35rem; order: 1; }
.contents span { order: 2; }
.bd-main .bd-content .bd-article h1.part { color: #555; display: block; font-size: 1rem; margin: 0; }
"""


def pages(contents: dict) -> list[tuple[str, str]]:
    """Part and page of everything in the book's contents, in reading order."""
    found = [("", contents["root"])]
    for part in contents["parts"]:
        for chapter in part["chapters"]:
            found.append((part["caption"], chapter["file"]))
            found += [(part["caption"], section["file"]) for section in chapter.get("sections", [])]
    return found


def anchor(name: str, fragment: str = "") -> str:
    """The id, in the joined document, of a page or of an element of it."""
    page = posixpath.basename(name)
    return f"{page}--{unquote(fragment)}" if fragment else page


def inside(name: str, address: str, listed: set[str]) -> str | None:
    """Where a link of a page leads in the joined document; None if it leads to a file that is not part of it."""
    target, fragment = urldefrag(address)
    if ":" in target:
        return address
    leads_to = posixpath.normpath(posixpath.join(posixpath.dirname(name), target)).removesuffix(".html") if target else name
    return "#" + anchor(leads_to, fragment) if leads_to in listed else None


def article(site: Path, name: str, listed: set[str], part: str) -> tuple[str, Tag]:
    """Title and text of a page: all of it unfolded, its ids its own, its links leading to the other joined pages.

    Its first heading is below the part, if it belongs to one.
    """
    page = BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
    title, text = page.title.get_text().partition(" — ")[0], page.article
    for script in text.select("script"):
        script.decompose()
    for fold in text.select("details"):
        fold["open"] = ""
    for heading in text.find_all(re.compile(r"h[1-5]")):
        heading["aria-level"] = int(heading.name[1]) + bool(part)
    for element in text.find_all(True):
        for key, value in list(element.attrs.items()):
            if key == "id":
                element[key] = anchor(name, value)
            elif key in ("href", "xlink:href") and (leads_to := inside(name, value, listed)):
                element[key] = leads_to
            elif key in ("href", "xlink:href"):
                del element[key]
            elif isinstance(value, str):
                element[key] = value.replace("url(#", f"url(#{anchor(name)}--")
    text["id"] = anchor(name)
    return title, text


def cover(settings: dict) -> str:
    """The title, what the book is about as a drawing, and whose it is."""
    drawing = Figure(figsize=(7, 3.6))
    draw_update(drawing.add_axes((0, 0, 1, 1)), 11)
    shown = picture(drawing, COVER_ALT)._repr_html_()
    author = settings["author"]
    lines = [author[:1].upper() + author[1:], settings["copyright"], settings["html"]["extra_footer"]]
    return (
        f'<div class="cover"><h1>{escape(settings["title"])}</h1>{shown}' + "".join(f"<p>{escape(line)}</p>" for line in lines) + "</div>"
    )


def document(site: Path, listed: list[tuple[str, str]], settings: dict) -> str:
    """The joined pages after a cover and a contents page, whose page numbers are still to be filled in."""
    names = {name for _, name in listed}
    contents, body, last = "", "", ""
    for part, name in listed:
        title, text = article(site, name, names, part)
        if part != last:
            contents += f"<p>{escape(part)}</p>"
            text.insert(0, BeautifulSoup(f'<h1 class="part">{escape(part)}</h1>', "html.parser").h1)
            last = part
        contents += f'<a href="#{anchor(name)}">{escape(title)}<span>{{{anchor(name)}}}</span></a>'
        body += str(text)
    style = re.search(r'<link rel="stylesheet"[^>]*>', (site / f"{listed[0][1]}.html").read_text(encoding="utf-8"))[0]
    head = f'<meta charset="utf-8"><title>{escape(settings["title"])}</title>{style}<style>{SHEET}</style>'
    main = f'{cover(settings)}<nav class="contents"><h1>Contents</h1>{contents}</nav>{body}'
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light"><head>{head}</head><body><main class="bd-main"><div class="bd-content">'
        f'<div class="bd-article-container">{main}</div></div></main></body></html>'
    )


def opened(browser: Browser, html: str, site: Path) -> Page:
    """The document in a tab, as if it stood among the chapters, with its styles and fonts."""
    tab = browser.new_page()
    tab.set_default_timeout(600_000)
    tab.route("**/chapters/paper.html", lambda route: route.fulfill(body=html, content_type="text/html"))
    tab.goto((site / "chapters" / "paper.html").as_uri())
    tab.evaluate("document.fonts.ready.then(() => true)")
    return tab


def printed(browser: Browser, html: str, site: Path) -> bytes:
    """The document on its sheets, as Chromium prints it."""
    tab = opened(browser, html, site)
    paper = tab.pdf(prefer_css_page_size=True, print_background=True, outline=True, tagged=True)
    tab.close()
    return paper


def book(browser: Browser, site: Path, listed: list[tuple[str, str]], out: Path) -> int:
    """Write the book; the number of its pages. It is printed twice: the first time says on which page a chapter begins."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    blank = document(site, listed, settings)
    reader = PdfReader(io.BytesIO(printed(browser, blank, site)))
    numbered = blank
    for _, name in listed:
        place = reader.named_destinations["/" + anchor(name)]
        numbered = numbered.replace(f"{{{anchor(name)}}}", str(reader.get_destination_page_number(place) + 1), 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(printed(browser, numbered, site))
    return len(reader.pages)


def main() -> int:
    out = ROOT / "_build" / "lora-from-first-principles.pdf"
    listed = pages(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        count = book(browser, SITE, listed, out)
        browser.close()
    print(f"{out}: {count} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
