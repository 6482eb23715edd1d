"""Sphinx extension: what the book shows of itself: logo, reading time, description, the page for wrong addresses, and, when it is
known where the book will stand (``html.baseurl`` in ``_config.yml``), a sitemap and what a link to a page shows elsewhere.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORDS_A_MINUTE = 200
_DESCRIPTION_LETTERS = 200
COVER_ALT = (
    "A matrix W of cells in many shades of blue, plus its update: a matrix of the same shape in purple stripes, with the thin green "
    "matrix B at its left and the thin orange matrix A above it. W stays frozen; only B and A train."
)
_CHAPTER = re.compile(r"chapters/\d\d-")
_LOST = """<section><h1>There is no page here</h1>
<p>The address may be mistyped, or the page may have moved. The <a href="{home}">beginning of the book</a> names every chapter, and the
<a href="{search}">search</a> finds words.</p></section>"""


def logo(label: str = "") -> str:
    """The weight, and along two of its sides the narrow factors whose product has its shape."""
    from lorabook.figures.style import COLORS

    bars = (("A", 11, 2, 19, 6), ("B", 2, 11, 6, 19), ("W", 11, 11, 19, 19))
    drawn = "".join(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="1" fill="{COLORS[role]}"/>' for role, x, y, w, h in bars)
    named = f' role="img" aria-label="{escape(label)}"' if label else ' aria-hidden="true"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="book-logo" viewBox="0 0 32 32"{named}>{drawn}</svg>'


def prose(doctree: nodes.document) -> str:
    """The text of a page that is read word by word: no code, no output, no formulas, no folded code."""
    skipped = (nodes.literal_block, nodes.math, nodes.math_block, nodes.raw, nodes.comment, nodes.system_message)
    words = []
    for text in doctree.findall(nodes.Text):
        above = text.parent
        while above is not None and not isinstance(above, skipped):
            above = above.parent
        if above is None:
            words.append(text.astext())
    return " ".join(words)


def description(doctree: nodes.document) -> str:
    """The page's first paragraph, cut at a word."""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if len(text) > 40 and isinstance(paragraph.parent, nodes.section | nodes.document):
            return text if len(text) <= _DESCRIPTION_LETTERS else text[:_DESCRIPTION_LETTERS].rpartition(" ")[0] + " …"
    return ""


def describe(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """What goes into a page's head, and its reading time."""
    title = re.sub(r"<[^>]*>", "", context.get("title") or "") or app.config.html_title
    text = description(doctree) if doctree is not None else ""
    text = text or f"{title}: a page of {app.config.html_title}."
    tags = [f'<meta name="description" content="{escape(text)}" />']
    address = app.config.html_baseurl
    if address and pagename != "404":
        fields = {"title": title, "description": text, "type": "article", "site_name": app.config.html_title}
        fields["url"] = address.rstrip("/") + "/" + app.builder.get_target_uri(pagename)
        fields["image"] = address.rstrip("/") + "/_static/cover.png"
        fields["image:alt"] = COVER_ALT
        tags += [f'<meta property="og:{key}" content="{escape(value)}" />' for key, value in fields.items()]
        tags.append('<meta name="twitter:card" content="summary_large_image" />')
    if pagename == "404" and address:
        context["pageurl"] = None
        tags.insert(0, f'<base href="{escape(address.rstrip("/"))}/" />')  # it is shown at any address
    context["metatags"] = context.get("metatags", "") + "\n".join(tags)
    if doctree is not None and _CHAPTER.match(pagename):
        context["reading_minutes"] = max(1, round(len(prose(doctree).split()) / WORDS_A_MINUTE))


def dress(page: str, context: dict[str, Any]) -> str:
    """The logo before the book's name, and the reading time under the title."""
    page = page.replace('<p class="title logo__title">', logo() + '<p class="title logo__title">', 1)
    if minutes := context.get("reading_minutes"):
        unit = "minute" if minutes == 1 else "minutes"
        before, article, after = page.partition("<article")
        after = after.replace("</h1>", f'</h1>\n<p class="reading-time">About {minutes} {unit} to read</p>', 1)
        page = before + article + after
    return page


def wrap_renderer(app: Any) -> None:
    """Before `slim_pages` does: it then sees what is added here."""
    if app.builder.name != "html":
        return
    render = app.builder.templates.render
    app.builder.templates.render = lambda template, context: dress(render(template, context), context)


def lost_page(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """404.html, which publishers of static sites show for an address that does not exist."""
    home = app.builder.get_relative_uri("404", app.config.root_doc)
    yield "404", {"title": "There is no page here", "body": _LOST.format(home=home, search="search.html")}, "page.html"


def sitemap(app: Any, exception: Exception | None) -> None:
    """sitemap.xml and robots.txt, which name addresses and so exist only where one is set."""
    address = app.config.html_baseurl.rstrip("/")
    if exception or app.builder.name != "html" or not address:
        return
    pages = sorted(app.builder.get_target_uri(name) for name in app.env.found_docs)
    entries = "\n".join(f"<url><loc>{escape(address)}/{escape(page)}</loc></url>" for page in pages)
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{entries}\n</urlset>\n'
    (Path(app.outdir) / "sitemap.xml").write_text(text, encoding="utf-8")
    (Path(app.outdir) / "robots.txt").write_text(f"User-agent: *\nAllow: /\nSitemap: {address}/sitemap.xml\n", encoding="utf-8")


def draw_update(axes: Axes, size: float) -> None:
    """The frozen weight, and beside it its update: as large, and yet made of two thin matrices, as its stripes show.

    Args:
        axes: where to draw.
        size: of the names, in points.
    """
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    from lorabook.figures.style import COLORS

    d, k, r = 20, 26, 2
    random = np.random.default_rng(1)
    weight, b, a = random.normal(size=(d, k)), random.normal(size=(d, r)), random.normal(size=(r, k))
    top, strip = r + 1, k + 5  # what lies beside A begins below it; B begins right of W and the sign
    update = strip + top
    axes.set(xlim=(0, update + k), ylim=(top + d + 2.5, 0), aspect="equal")
    axes.axis("off")
    for role, x, y, values in (("W", 0, top, weight), ("B", strip, top, b), ("A", update, 0, a), ("delta", update, top, b @ a)):
        rows, columns = values.shape
        shades = LinearSegmentedColormap.from_list(role, ["whitesmoke", COLORS[role]])
        edges = (x + np.arange(columns + 1), y + np.arange(rows + 1))
        reach = 2 * values.std()
        axes.pcolormesh(*edges, values, cmap=shades, vmin=-reach, vmax=reach, edgecolors="white", linewidth=size / 18)
    below = top + d + 1.5
    for across, down, name, scale in (
        (k + 2.5, top + d / 2, "+", 2),
        (k / 2, below, "$W$ stays frozen", 1),
        (strip + r / 2, below, "$B$", 1),
        (update - 1.2, r / 2, "$A$", 1),
        (update + k / 2, below, "only $B$ and $A$ train", 1),
    ):
        axes.text(across, down, name, fontsize=size * scale, ha="center", va="center", color="#222")


def cover(path: Path) -> None:
    """The picture that a link to the book shows elsewhere: the title, and a weight with its update."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    figure.text(0.5, 0.89, "LoRA from First Principles", fontsize=44, ha="center", va="center", weight="bold", color="#222")
    draw_update(figure.add_axes((0.06, 0.02, 0.88, 0.78)), 20)
    figure.savefig(path)


def draw(app: Any, config: Any) -> None:
    """The favicon, and with an address the cover, as static files."""
    folder = Path(tempfile.mkdtemp(prefix="identity-static-"))
    (folder / "favicon.svg").write_text(logo("LoRA from First Principles"), encoding="utf-8")
    if config.html_baseurl:
        cover(folder / "cover.png")
    config.html_static_path.append(str(folder))
    config.html_favicon = str(folder / "favicon.svg")


def setup(app: Any) -> dict[str, Any]:
    app.connect("config-inited", draw, priority=100)
    app.connect("builder-inited", wrap_renderer, priority=940)
    app.connect("html-page-context", describe, priority=900)
    app.connect("html-collect-pages", lost_page)
    app.connect("build-finished", sitemap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
