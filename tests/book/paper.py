"""Print the built book: every chapter as Chromium prints it, joined into one PDF with its contents: `make pdf`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import yaml
from playwright.sync_api import Browser, sync_playwright
from pypdf import PdfReader, PdfWriter

from tests.book.browser import FLAGS, find_browser

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
_MARGIN = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
_FOOTER = '<div style="font-size:8px;width:100%;text-align:center"><span class="pageNumber"></span></div>'


def pages(contents: dict) -> list[tuple[str, str]]:
    """Part and page of everything in the book's contents, in reading order."""
    found = [("", contents["root"])]
    for part in contents["parts"]:
        for chapter in part["chapters"]:
            found.append((part["caption"], chapter["file"]))
            found += [(part["caption"], section["file"]) for section in chapter.get("sections", [])]
    return found


def printed(browser: Browser, page: Path) -> bytes:
    """A page on A4, with everything open that folds."""
    tab = browser.new_page(color_scheme="light")
    tab.goto(page.as_uri())
    tab.evaluate("document.fonts.ready.then(() => true)")
    tab.evaluate("for (const image of document.images) image.loading = 'eager'")
    tab.wait_for_function("[...document.images].every(image => image.complete)")
    tab.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    paper = tab.pdf(format="A4", margin=_MARGIN, display_header_footer=True, header_template="<span></span>", footer_template=_FOOTER)
    tab.close()
    return paper


def book(browser: Browser, site: Path, listed: list[tuple[str, str]], out: Path) -> int:
    """Write the book; the number of its pages."""
    writer = PdfWriter()
    parts: dict[str, object] = {}
    for part, name in listed:
        page = site / f"{name}.html"
        first = len(writer.pages)
        reader = PdfReader(io.BytesIO(printed(browser, page)))
        writer.append(reader, import_outline=False)
        title = page.read_text(encoding="utf-8").partition("<title>")[2].partition(" &#8212;")[0]
        if part and part not in parts:
            parts[part] = writer.add_outline_item(title=part, page_number=first)
        writer.add_outline_item(title=title, page_number=first, parent=parts.get(part))
    writer.add_metadata({"/Title": "LoRA from First Principles"})
    writer.compress_identical_objects()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as stream:
        writer.write(stream)
    return len(writer.pages)


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
