"""Figures of what a language model expects: probabilities of next tokens, and how much each token of a text surprises."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lorabook.figures.style import COLORS, INK


def shown(token: str) -> str:
    r"""A token in which white space can be seen: a space is ␣, the end of a line ↵.

    Example:
        >>> shown(" numpy"), shown("\n   ")
        ('␣numpy', '↵␣␣␣')
    """
    return token.replace("\n", "↵").replace(" ", "␣").replace("$", r"\$")


def next_token_bars(
    tokens: Sequence[str], probabilities: ArrayLike, *, other: ArrayLike | None = None, names: tuple[str, str] = ("", ""), actual: str = ""
) -> Figure:
    """The likeliest next tokens as horizontal bars, the first at the top.

    Args:
        tokens: texts of the tokens.
        probabilities: of each, 0 to 1.
        other: their probabilities in a second distribution, drawn below the first, in orange.
        names: what the two distributions are called; only with ``other``.
        actual: the token that does come next, marked if it is among them.
    """
    figure, axis = plt.subplots(figsize=(7.0, 0.9 + 0.3 * len(tokens)))
    rows, height = np.arange(len(tokens)), 0.75 if other is None else 0.4
    pairs = [(np.asarray(probabilities), 0.0, COLORS["W"])]
    if other is not None:
        pairs = [(pairs[0][0], -0.2, COLORS["W"]), (np.asarray(other), 0.2, COLORS["A"])]
    for (values, offset, color), name in zip(pairs, names, strict=False):
        axis.barh(rows + offset, values, height=height, color=color, label=name)
        for row, value in enumerate(values):
            mark = "  comes next" if actual and tokens[row] == actual else ""
            axis.annotate(
                f"{value:.3f}{mark}", (value, row + offset), xytext=(4, 0), textcoords="offset points", va="center", fontsize="small"
            )
    axis.set_yticks(rows, [shown(token) for token in tokens])
    axis.set(xlim=(0, 1.2), xticks=np.linspace(0, 1, 6), xlabel="probability")
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    if other is not None:
        axis.legend(frameon=False, loc="center right")
    return figure


def surprise_bars(tokens: Sequence[str], bits: ArrayLike) -> Figure:
    """A text, token by token, and how much each surprised: minus the base-2 logarithm of its probability.

    Args:
        tokens: texts of the tokens, in order.
        bits: the surprise of each.
    """
    figure, axis = plt.subplots(figsize=(7.0, 3.0))
    heights = np.asarray(bits)
    axis.bar(np.arange(len(tokens)), heights, color=COLORS["W"])
    for position, height in enumerate(heights):
        axis.annotate(
            f"{height:.1f}", (position, height), xytext=(0, 3), textcoords="offset points", ha="center", fontsize="small", color=INK
        )
    axis.set_xticks(np.arange(len(tokens)), [shown(token) for token in tokens], rotation=60, ha="right", rotation_mode="anchor")
    axis.set_ylabel("surprise (bits)")
    axis.margins(y=0.12)
    axis.grid(visible=False, axis="x")
    return figure
