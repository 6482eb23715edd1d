"""How the book's figures look: one colour per role, text that takes the colour of the page. It knows no data."""

from __future__ import annotations

import matplotlib as mpl
from cycler import cycler

# Okabe and Ito's palette, which readers with any common colour vision can tell apart.
COLORS = {
    "W": "#0072B2",  # blue: frozen weights
    "A": "#E69F00",  # orange
    "B": "#009E73",  # green
    "delta": "#CC79A7",  # purple: the update, Delta W
    "full": "#D55E00",  # vermilion: full fine-tuning
}

# Stands for "the colour of the text around the figure"; notebook.picture() replaces it.
INK = "#0a0b0c"


def use_book_style() -> None:
    """Make Matplotlib draw as the book does, until the process ends.

    Roles keep their colour through the whole book (:data:`COLORS`); text and axes take the page's text colour, so that a figure
    reads on a light page and on a dark one.
    """
    mpl.rcParams.update(
        {
            "axes.axisbelow": True,
            "axes.edgecolor": INK,
            "axes.grid": True,
            "axes.labelcolor": INK,
            "axes.prop_cycle": cycler(color=list(COLORS.values())),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlecolor": INK,
            "axes.titlelocation": "left",
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "figure.figsize": (7.0, 3.4),
            "font.size": 11.0,
            "grid.alpha": 0.2,
            "grid.color": INK,
            "lines.linewidth": 2.0,
            "savefig.transparent": True,
            "svg.fonttype": "path",
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        }
    )
