"""The book's drawings, made of pictures, shapes and paths: arrays in, figures out. For curves and bars see ``plots``."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from lorabook.figures.style import COLORS, INK


def image_row(images: Sequence[ArrayLike], titles: Sequence[str]) -> Figure:
    """Grey pictures side by side, black at 0 and white at 1.

    Args:
        images: arrays (height, width).
        titles: a line above each.
    """
    figure, axes = plt.subplots(1, len(images), figsize=(7.0, 2.6), squeeze=False)
    for axis, image, title in zip(axes[0], images, titles, strict=True):
        axis.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, loc="center", fontsize="small")
        axis.axis("off")
    return figure


def rotation_stretch_rotation(matrix: ArrayLike) -> Figure:
    r"""What a 2 x 2 matrix does to the unit circle, in the three steps of :math:`U \Sigma V^\top`."""
    u, stretch, vh = np.linalg.svd(np.asarray(matrix))
    if np.linalg.det(vh) < 0:  # a pair of singular vectors may change its sign
        vh[1], u[:, 1] = -vh[1], -u[:, 1]
    last = "rotates" if np.linalg.det(u) > 0 else "rotates, reflects"
    angle = np.linspace(0, 2 * np.pi, 200)
    points = np.stack([np.cos(angle), np.sin(angle)])
    directions = vh.T  # the right singular vectors, as columns
    steps = (
        ("unit circle", np.eye(2)),
        (r"$V^\top$ rotates", vh),
        (r"$\Sigma$ stretches", np.diag(stretch) @ vh),
        (f"$U$ {last}", (u * stretch) @ vh),
    )
    figure, axes = plt.subplots(1, 4, figsize=(7.0, 1.9), sharex=True, sharey=True)
    reach = max(1.0, float(stretch[0])) + 0.8  # room for a label at the tip of the longest arrow
    height = max(1.0, float(np.linalg.norm((u * stretch)[1]))) + 0.6
    for axis, (title, map_) in zip(axes, steps, strict=True):
        axis.plot(*(map_ @ points), color=COLORS["W"])
        for name, arrow in zip(("$v_1$", "$v_2$"), (map_ @ directions).T, strict=True):
            axis.annotate("", arrow, (0, 0), arrowprops={"arrowstyle": "->", "color": INK})
            axis.annotate(name, arrow * (1 + 0.45 / np.linalg.norm(arrow)), ha="center", va="center", fontsize="small")
        axis.set_title(title, loc="center", fontsize="small")
        axis.set(aspect="equal", xlim=(-reach, reach), ylim=(-height, height))
    return figure


def lora_layer() -> Figure:
    """The adapted layer as a drawing: the frozen weight on one path, A and then B on the other, and their sum."""
    figure, axis = plt.subplots(figsize=(7.0, 2.5))
    axis.set(xlim=(0, 14.6), ylim=(0.2, 5.0), aspect="equal")
    axis.axis("off")
    for corner, width, height, role, ink, name in (
        ((2.4, 1.0), 4.2, 3.6, "W", "white", "$W$\nfrozen"),
        ((8.2, 1.0), 0.7, 3.6, "B", "white", "$B$"),
        ((9.2, 3.9), 4.2, 0.7, "A", "black", "$A$"),
    ):
        axis.add_patch(Rectangle(corner, width, height, facecolor=COLORS[role], edgecolor="none"))
        axis.text(corner[0] + width / 2, corner[1] + height / 2, name, ha="center", va="center", color=ink, fontsize=13)
    for x, y, text in (
        (4.5, 0.55, "$k$ columns"),
        (8.55, 0.55, "$r$"),
        (11.3, 3.5, "$k$ columns"),
        (13.65, 4.25, "$r$"),
        (7.4, 2.8, r"$+\; s$"),
        (11.3, 2.0, "$r(d+k)$ numbers train,\nnot $dk$"),
    ):
        axis.text(x, y, text, ha="center", va="center")
    axis.text(2.1, 2.8, "$d$ rows", ha="center", va="center", rotation=90)
    for x, text, size in ((0.6, "$y =$", 15), (1.4, "(", 50), (13.9, ")", 50), (14.4, "$x$", 15)):
        axis.text(x, 2.8, text, ha="center", va="center", fontsize=size)
    return figure


def valley(
    positions: ArrayLike,
    loss: ArrayLike,
    *,
    paths: Sequence[ArrayLike],
    minima: Sequence[tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """A loss over two numbers as contour lines, with its minima, the saddle at zero, and paths downhill, each from a dot to a star.

    Args:
        positions: (n,), the values of both numbers on the grid.
        loss: (n, n), one row for each value of the vertical number.
        paths: (steps, 2) each, horizontal and vertical.
        minima: curves along which the loss is least, horizontal and vertical values of each.
        xlabel: what the horizontal number is.
        ylabel: what the vertical number is.
    """
    figure, axis = plt.subplots(figsize=(7.0, 4.6))
    grid, values = np.asarray(positions), np.asarray(loss)
    levels = np.unique(np.quantile(values, np.linspace(0.04, 0.96, 16)))
    axis.contour(grid, grid, values, levels=levels, colors=INK, alpha=0.3, linewidths=0.8)
    for x, y in minima:
        axis.plot(np.asarray(x), np.asarray(y), color=COLORS["W"], linewidth=3, alpha=0.7)
    place = len(np.asarray(minima[0][0])) // 6
    point = np.asarray(minima[0][0])[place], np.asarray(minima[0][1])[place]
    axis.annotate("minima", point, xytext=(-8, 0), textcoords="offset points", ha="right", va="center", color=COLORS["W"])
    for path in paths:
        x, y = np.asarray(path).T
        axis.plot(x, y, color=COLORS["delta"], marker=".", markersize=4)
        axis.plot(x[0], y[0], color=COLORS["delta"], marker="o", markersize=7)
        axis.plot(x[-1], y[-1], color=COLORS["delta"], marker="*", markersize=12)
    axis.plot(0, 0, color=INK, marker="x", markersize=9, markeredgewidth=2)
    axis.annotate("saddle", (0, 0), xytext=(0, -18), textcoords="offset points", ha="center")
    axis.set(xlim=(grid[0], grid[-1]), ylim=(grid[0], grid[-1]), aspect="equal", xlabel=xlabel, ylabel=ylabel)
    axis.grid(visible=False)
    return figure
