"""What a notebook shows: figures with a text alternative, tables, and numbers that the prose around the cells repeats."""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from lorabook.figures.style import COLORS, INK


class Picture:
    """A figure as inline SVG: it takes the page's text colour, scales to its width, and has a text alternative.

    Args:
        svg: the drawing.
        alt: what the figure shows, in words.
    """

    def __init__(self, svg: str, alt: str) -> None:
        self.svg = svg
        self.alt = alt

    def _repr_html_(self) -> str:
        return f'<div class="lora-figure">{self.svg}</div>'

    def __repr__(self) -> str:
        return f"[figure: {self.alt}]"


def picture(figure: Figure, alt: str) -> Picture:
    """Turn a Matplotlib figure into a :class:`Picture`, and close it.

    Args:
        figure: the figure, drawn in the book's style.
        alt: what a reader who does not see the figure should know, in a sentence or two.

    Raises:
        ValueError: alt is blank.
    """
    if not alt.strip():
        raise ValueError("a figure needs alt text: say what it shows")
    stream = io.StringIO()
    name = "f" + hashlib.sha256(alt.encode()).hexdigest()[:8]
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    width, height = figure.get_size_inches() * figure.dpi
    plt.close(figure)
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = drawing_in_page_colors(svg)
    # Matplotlib's one style rule would reach every drawing on the page; it goes on the svg element instead.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    # Several drawings share a page, so ids need the figure's name; those to which nothing refers go.
    used = set(re.findall(r"#([\w-]+)[\")]", svg)) & set(re.findall(r' id="([\w.-]+)"', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r"#([\w-]+)(?=[\")])", lambda match: f"#{name}-{match[1]}" if match[1] in used else match[0], svg)
    label = html.escape(" ".join(alt.split()), quote=True)
    size = f'width="{width:.0f}" height="{height:.0f}" style="max-width: 100%; height: auto; stroke-linejoin: round"'
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*pt"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*pt"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}" {size}', 1)
    return Picture(_compact(svg), " ".join(alt.split()))


_PLACES = re.compile(r'\b(?:d|x|y|width|height)="[^"]*"|translate\([^)]*\)')  # not scales, which multiply
_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def _compact(svg: str) -> str:
    """The same drawing in fewer letters and elements: places to a hundredth of a point, no line breaks, no groups that say nothing."""
    svg = _PLACES.sub(lambda place: _NUMBER.sub(lambda number: f"{round(float(number[0]), 2):g}", place[0]), svg)
    svg = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"\s*([A-Zz\"])\s*", r"\1", path[0]), svg)
    svg = re.sub(r"<defs>\s*</defs>|\s*\n\s*(?=<|$)", "", svg)
    said: list[bool] = []

    def group(tag: re.Match[str]) -> str:
        if tag[0] == "</g>":
            return tag[0] if said.pop() else ""
        said.append(tag[0] != "<g>")
        return tag[0] if said[-1] else ""

    return re.sub(r"<g\b[^>]*>|</g>", group, svg)


def drawing_in_page_colors(drawing: str) -> str:
    """A drawing's text with the page's text colour for ink, and for each role the colour that the page gives it, brighter in the dark.

    Args:
        drawing: SVG, or the specification of a chart.
    """
    drawing = drawing.replace(INK, "currentColor")
    for role, color in COLORS.items():
        drawing = re.sub(color, f"var(--lora-{role.lower()}, {color.lower()})", drawing, flags=re.IGNORECASE)
    return drawing


_SHORT = 24  # letters of a cell that is kept on one line


class Table:
    """Rows under a header: HTML on a page, aligned text elsewhere. Numbers and short texts stay on one line.

    Args:
        header: a name for each column.
        rows: cells; a whole number gets thousands separators and stands at the right.
        caption: what the table shows, in words.

    Raises:
        ValueError: a row of another length than the header.
    """

    def __init__(self, header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
        self.caption = caption
        self.header = tuple(header)
        self.rows = [tuple(row) for row in rows]
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"every row needs {len(self.header)} cells, one for each column")

    def _repr_html_(self) -> str:
        def line(cells: Sequence[object]) -> str:
            return "<tr>" + "".join(f"<td{_style(cell)}>{html.escape(_text(cell))}</td>" for cell in cells) + "</tr>"

        # A number's column has its name at the right as well.
        first = self.rows[0] if self.rows else self.header
        names = "".join(f'<th scope="col"{_style(cell)}>{html.escape(name)}</th>' for name, cell in zip(self.header, first, strict=True))
        head = f"<thead><tr>{names}</tr></thead>"
        body = "".join(line(row) for row in self.rows)
        said = html.escape(self.caption or ", ".join(name for name in self.header if name), quote=True)
        caption = f"<caption>{said}</caption>" if self.caption else ""
        # A table wider than the page scrolls by itself, also by keyboard.
        box = f'<div style="overflow-x: auto" tabindex="0" role="region" aria-label="Table: {said}">'
        return f'{box}<table class="table">{caption}{head}<tbody>{body}</tbody></table></div>'

    def __repr__(self) -> str:
        lines = [self.header, *([_text(cell) for cell in row] for row in self.rows)]
        widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
        aligned = []
        for line, cells in zip(lines, [self.rows[0] if self.rows else self.header, *self.rows], strict=True):
            parts = [text.rjust(w) if _right(cell) else text.ljust(w) for text, cell, w in zip(line, cells, widths, strict=True)]
            aligned.append("  ".join(parts).rstrip())
        return "\n".join(aligned)


def _text(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _right(cell: object) -> bool:
    return isinstance(cell, int)


def _style(cell: object) -> str:
    """Numbers stand at the right; long texts wrap, short ones do not."""
    if _right(cell):
        return ' style="text-align: right; white-space: nowrap"'
    return ' style="white-space: nowrap"' if len(_text(cell)) <= _SHORT else ""


def glue(name: str, value: object) -> None:
    """Keep a value for the prose, which repeats it as ``{glue:text}`` with the name; does nothing outside the book's build.

    Args:
        name: unique within the book.
        value: a number or text, already formatted as the sentence needs it.
    """
    try:
        from myst_nb import glue as keep
    except ImportError:
        return
    keep(name, value, display=False)
