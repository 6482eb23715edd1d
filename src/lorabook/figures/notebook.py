"""What a notebook shows: figures with a text alternative, and numbers that the prose around the cells repeats."""

from __future__ import annotations

import hashlib
import html
import io
import re

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
    svg = svg.replace(INK, "currentColor")
    for role, color in COLORS.items():  # a page may brighten a role's colour in the dark
        svg = svg.replace(color.lower(), f"var(--lora-{role.lower()}, {color.lower()})")
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
    return Picture(svg, " ".join(alt.split()))


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
