"""Sphinx extension: a page asks for nothing that it does not use.

Each page is rewritten as it is rendered: one stylesheet, one script of the book's own, icons drawn in place, pictures in files of their
own, folded text as ``details`` elements that open without a script, and a frame that assistive technology can read. What the stylesheet
holds is decided when all pages are written, by ``stylesheet``.

The icons are Font Awesome Free's, CC BY 4.0, https://fontawesome.com/license/free.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pydata_sphinx_theme
from slim_code import looks, plain_code
from slim_pictures import lift_charts, lift_pictures, share_glyphs, size_pictures
from slim_sections import closing, guess_heights
from sphinx.errors import ExtensionError

STYLESHEET = "book-site.css"
SCRIPT = "book.js"

# The theme's scripts: `book.js` does what the book needs of them in a fiftieth of their size.
_UNUSED = {
    "fontawesome.js",
    "bootstrap.js",
    "pydata-sphinx-theme.js",
    "sphinx-book-theme.js",
    "togglebutton.js",
    "clipboard.min.js",
    "copybutton.js",
    SCRIPT,  # asked for once more, after the page
}
_SEARCH = {"documentation_options.js", "doctools.js", "sphinx_highlight.js", "searchtools.js", "language_data.js", "searchindex.js"}

# Before anything is painted: the reader's choice of colours, or the system's; and whether the address names a place on the page.
_THEME = (
    "<script>(function(e){var m;try{m=localStorage.getItem('mode')}catch(_){}"
    "if(m!=='light'&&m!=='dark')m='auto';e.mode=m;"
    "e.theme=m==='auto'?(matchMedia('(prefers-color-scheme: dark)').matches?'dark':'light'):m;"
    "if(location.hash)e.laidOut='whole'"
    "})(document.documentElement.dataset)</script>"
)

# The letters of formulas lie in the stylesheet: read before the first paint, they move nothing after it.
_LETTERS = "<script>document.fonts.forEach(function(face){face.load()})</script>"

_CREDIT = "<!-- Icons: Font Awesome Free, https://fontawesome.com, CC BY 4.0 -->"

# Parts of the theme's frame that hold nothing here, each on every page.
_EMPTY = [
    r'<div id="pst-scroll-pixel-helper"></div>',
    r'<div class="sbt-scroll-pixel-helper"></div>',
    r'<div class="pst-async-banner-revealer.*?</aside>\s*</div>',
    r'<header id="pst-header"[^>]*>\s*</header>',
    r'<footer class="bd-footer">\s*</footer>',
    r'<div class="sidebar-header-items sidebar-primary__section">[\s]*</div>',
    r'<div class="sidebar-primary-items__end sidebar-primary__section">.*?id="ethical-ad-placement".*?</div></div>\s*</div>',
    r'<div id="jb-print-docs-body" class="onlyprint">.*?</div>\s*</div>\s*</div>',
    r'<div id="searchbox"></div>',
    r'<div class="footer-item">\s*</div>',
]


@cache
def icon_paths(script: Path) -> dict[str, tuple[int, int, str]]:
    """Width, height and path of every solid icon in the theme's icon script."""
    text = script.read_text(encoding="utf-8")
    entries = re.finditer(r'[{,]"?([a-z0-9-]+)"?:\[(\d+),(\d+),\[[^\]]*\],"[0-9a-f]+","([^"]+)"\]', text)
    found: dict[str, tuple[int, int, str]] = {}
    for name, width, height, path in (entry.groups() for entry in entries):
        found[name] = (int(width), int(height), path)  # the solid set comes last
    return found


def draw_icons(page: str, paths: dict[str, tuple[int, int, str]]) -> str:
    """Each ``<i class="fa-solid fa-name">`` as the drawing itself."""

    def drawing(match: re.Match[str]) -> str:
        classes = match["classes"].split()
        names = [one.removeprefix("fa-") for one in classes if one.startswith("fa-") and one not in ("fa-solid", "fa-lg")]
        if len(names) != 1 or names[0] not in paths:
            raise ExtensionError(f"an icon must be one of the theme's solid icons, got class={match['classes']!r}")
        width, height, path = paths[names[0]]
        kept = " ".join(["icon", *(one for one in classes if not one.startswith("fa-"))])
        mode = re.search(r' data-mode="[a-z]+"', match[0])
        return f'<svg class="{kept}"{mode[0] if mode else ""} viewBox="0 0 {width} {height}" aria-hidden="true"><path d="{path}"/></svg>'

    return re.sub(r'<(?P<tag>i|span) class="(?P<classes>[^"]*\bfa-solid\b[^"]*)"[^>]*>\s*</(?P=tag)>', drawing, page)


def fold(page: str) -> str:
    """Admonitions of class ``dropdown`` as details elements, their titles as summaries."""
    opening = re.compile(r'<div class="([^"]*\bdropdown\b[^"]*\badmonition\b[^"]*|[^"]*\badmonition\b[^"]*\bdropdown\b[^"]*)"')
    while match := opening.search(page):
        end = closing(page, match.start(), "div")
        inner = page[match.end() : end - len("</div>")]
        title = re.compile(r'<p class="admonition-title">(.*?)</p>', re.DOTALL)
        inner = title.sub(r'<summary class="admonition-title">\1</summary>', inner, count=1)
        page = f'{page[: match.start()]}<details class="{match[1]}"{inner}</details>{page[end:]}'
    return page


def drop_scripts(page: str, search: bool) -> str:
    """Keep scripts that the page uses, and those of other extensions."""
    unused = _UNUSED | (set() if search else _SEARCH) | (set() if "sd-tab-set" in page else {"design-tabs.js"})

    def keep(match: re.Match[str]) -> str:
        source = re.search(r'src="(?:[^"]*/)?([^"/?]+)(?:\?[^"]*)?"', match["attributes"])
        own = r"toggleHint|toggleOpenOnPrint|togglebuttonSelector|dataset\.mode =" + ("" if search else r"|DOCUMENTATION_OPTIONS\.")
        gone = source[1] in unused if source else re.search(own, match["code"])
        return "" if gone else match[0]

    return re.sub(r"[ \t]*<script\b(?P<attributes>[^>]*)>(?P<code>.*?)</script>\n?", keep, page, flags=re.DOTALL)


def slim(page: str, *, root: str, search: bool, icons: Path, folder: Path, look: dict[str, str]) -> str:
    """A page of the theme, without what it does not use.

    Args:
        page: the HTML that the theme rendered.
        root: how the page writes the address of the site's root, "../" or "".
        search: whether this is the page of search results.
        icons: the theme's icon script, which is read here so that no reader has to.
        folder: where the page will be written.
        look: what ``looks`` found.
    """
    head, body = re.split(r"(?=<body)", page, maxsplit=1)
    head = re.sub(r'<meta name="(?:viewport|docsearch:[a-z]+)"[^>]*/?>', "", head)
    head = re.sub(r"<!--.*?-->", "", head, flags=re.DOTALL)
    head = re.sub(r'<link\b[^>]*(?:rel="stylesheet"|as="script")[^>]*/?>', "", head)
    version = re.search(rf"{re.escape(SCRIPT)}(\?v=\w+)", head)
    head = drop_scripts(head, search)
    first = '<meta charset="utf-8" />'
    head = head.replace(first, f'{first}\n<meta name="viewport" content="width=device-width, initial-scale=1" />\n{_THEME}')
    own = f'<link rel="stylesheet" href="{root}_static/{STYLESHEET}" />\n'
    own += f"{_LETTERS}\n" if 'class="katex' in body else ""
    own += f'<script defer src="{root}_static/{SCRIPT}{version[1] if version else ""}"></script>\n'
    head = re.sub(r"\n\s*\n+", "\n", head.replace("</head>", own + "</head>"))

    body = re.sub(r"<!--(?!\[if).*?-->", "", body, flags=re.DOTALL)
    for pattern in _EMPTY:
        body = re.sub(pattern, "", body, flags=re.DOTALL)
    body = lift_pictures(lift_charts(fold(drop_scripts(body, search)), root, folder), root, folder)
    body = guess_heights(plain_code(share_glyphs(size_pictures(body, folder)), look))
    # Sphinx gives the content of every exercise, solution and proof one and the same id.
    body = re.sub(r'<section id="(?:exercise|solution|proof)-content">', "<section>", body)
    # Roles that ARIA has given up, and a list that holds more than entries.
    body = body.replace(' role="doc-biblioentry"', "").replace('<div role="list" class="citation-list">', '<div class="citation-list">')
    # A header cell that heads nothing is a cell.
    body = re.sub(r"<th\b([^>]*)>((?:\s|<p>|</p>|&nbsp;|&#160;)*)</th>", _plain_cell, body)
    body = body.replace("</body>", f"{_CREDIT}\n</body>")
    return draw_icons(name_frame(head + body), icon_paths(icons))


def _plain_cell(match: re.Match[str]) -> str:
    attributes = re.sub(r' scope="[a-z]+"', "", match[1])
    return f"<td{attributes}></td>"


def name_frame(page: str) -> str:
    """Names and landmarks of the theme's frame: what is seen is what is heard."""
    page = re.sub(r' data-bs-(?:toggle|placement|title)="[^"]*"', "", page)
    page = re.sub(r'(<button class="btn search-button-field[^"]*") title="Search" aria-label="Search"', r"\1", page)
    page = page.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    page = page.replace('<summary><span class="toctree-toggle"', '<summary aria-label="Show the pages below"><span class="toctree-toggle"')
    page = page.replace('title="Toggle primary sidebar"', 'aria-label="Contents of the book" title="Contents of the book"')
    page = page.replace('title="Toggle secondary sidebar"', 'aria-label="On this page" title="On this page"')
    page = page.replace('id="pst-back-to-top">', 'id="pst-back-to-top" hidden>')
    for panel, label in (
        ("search-dialog", "Search"),
        ("primary-sidebar-modal", "Contents of the book"),
        ("secondary-sidebar-modal", "On this page"),
    ):
        page = page.replace(f'<dialog id="pst-{panel}">', f'<dialog id="pst-{panel}" aria-label="{label}">')
    return page.replace('<div id="pst-primary-sidebar" class', '<div id="pst-primary-sidebar" role="banner" class')


def wrap_renderer(app: Any) -> None:
    """Rewrite every page between its rendering and its writing, so that a page is rewritten once however often the book is built."""
    if app.builder.format != "html" or app.builder.name != "html":
        return
    templates, outdir = app.builder.templates, Path(app.outdir)
    render = templates.render
    icons = Path(pydata_sphinx_theme.__file__).parent / "theme/pydata_sphinx_theme/static/scripts/fontawesome.js"
    options = app.config.html_theme_options
    look = looks((options["pygments_light_style"], options["pygments_dark_style"]))

    def slimmed(template: str, context: dict[str, Any]) -> str:
        page = str(render(template, context))
        if "<body" not in page:
            return page
        name = context["pagename"]
        sheets = re.findall(r'<link\b[^>]*href="([^"?]+)[^"]*"[^>]*rel="stylesheet"', page) + re.findall(
            r'<link\b[^>]*rel="stylesheet"[^>]*href="([^"?]+)', page
        )
        app.book_stylesheets = [sheet.rpartition("_static/")[2] for sheet in sheets]
        root = "../" * name.count("/")
        return slim(page, root=root, search=name == "search", icons=icons, folder=(outdir / name).parent, look=look)

    templates.render = slimmed


def setup(app: Any) -> dict[str, Any]:
    app.connect("builder-inited", wrap_renderer, priority=950)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
