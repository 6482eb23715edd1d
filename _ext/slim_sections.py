"""How high a section will be, roughly, for as long as the browser has not laid it out: from what it holds, which is known before any size.

The stylesheet multiplies the letters by what a line of the screen's width holds, and adds the rest, which is as high everywhere.
"""

from __future__ import annotations

import re

from sphinx.errors import ExtensionError

# Pixels, measured on the book's pages in a browser: tests/book/test_slim_sections.py holds the guess against the heights there.
_LINE_OF_CODE, _BLOCK_OF_CODE = 16, 45
_PARAGRAPH, _ANSWER, _BOX, _DISPLAYED = 18, 40, 70, 70
_SMALL = 150  # a narrower picture stands within a line


def closing(page: str, start: int, tag: str) -> int:
    """Where the element that starts at ``start`` ends."""
    depth = 0
    for match in re.compile(rf"<(/?){tag}\b").finditer(page, start):
        depth += -1 if match[1] else 1
        if depth == 0:
            return page.index(">", match.end()) + 1
    raise ExtensionError(f"an element <{tag}> is not closed: {page[start : start + 80]}")


def guess_heights(page: str) -> str:
    """Each section of a page's first level says how many letters it shows, and how many pixels everything else takes."""
    opening = re.compile(r'<section id="[^"]*"(?=>)')
    start = re.search(r"<article\b[^>]*>\s*<section\b", page)
    if not start:
        return page
    parts, at, end = [page[: start.end()]], start.end(), closing(page, start.end() - len("<section"), "section")
    while match := opening.search(page, at, end):
        close = closing(page, match.start(), "section")
        letters, rest = weigh(page[match.start() : close])
        parts.append(f'{page[at : match.end()]} style="--letters: {letters}; --rest: {rest}"{page[match.end() : close]}')
        at = close
    return "".join([*parts, page[at:]])


def weigh(section: str) -> tuple[int, int]:
    """The letters that a section shows, and the pixels that it takes beside them."""
    hidden = r'<script.*?</script>|<span class="katex-mathml">.*?</math></span>'
    shown = re.sub(hidden, "", section, flags=re.DOTALL)
    closed = r"(<details\b(?![^>]*\bopen\b)[^>]*>\s*<summary.*?</summary>).*?</details>"
    shown = re.sub(closed, r"\1", shown, flags=re.DOTALL)
    code = re.findall(r"<pre\b.*?</pre>", shown, flags=re.DOTALL)
    shown = re.sub(r"<pre\b.*?</pre>", "", shown, flags=re.DOTALL)
    sizes = [dict(re.findall(r' (width|height)="([\d.]+)', picture)) for picture in re.findall(r"<(?:svg|img)\b[^>]*>", shown)]
    pictures = sum(0.9 * float(size["height"]) for size in sizes if len(size) == 2 and float(size["width"]) > _SMALL)
    shown = re.sub(r"<svg\b.*?</svg>", "", shown, flags=re.DOTALL)
    rest = (
        _LINE_OF_CODE * sum(one.count("\n") for one in code)
        + _BLOCK_OF_CODE * len(code)
        + _PARAGRAPH * len(re.findall(r"<(?:p|li|tr|dt|h[2-4])\b", shown))
        + _ANSWER * shown.count("<summary")
        + _BOX * len(re.findall(r'class="[^"]*\badmonition\b(?!-)', shown))
        + _DISPLAYED * shown.count('class="katex-display"')
        + pictures
    )
    return len(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", shown))), round(rest)
