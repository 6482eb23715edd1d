"""The book's curves, bars and dots that take more than a few lines: arrays in, figures out. For shapes see ``drawings``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from lorabook.figures.style import COLORS, INK


def spectra(curves: Mapping[str, ArrayLike], *, colors: Mapping[str, str], tolerance: float | None = None) -> Figure:
    """Singular values in falling order, on a logarithmic scale.

    Args:
        curves: label and singular values of each matrix.
        colors: the colour of each label.
        tolerance: a horizontal line, below which a singular value counts as rounding.
    """
    figure, axis = plt.subplots()
    for label, values in curves.items():
        numbers = np.asarray(values)
        axis.semilogy(np.arange(1, len(numbers) + 1), numbers, color=colors[label], label=label, marker="o", markersize=3)
    if tolerance is not None:
        axis.axhline(tolerance, color=INK, linestyle="--", linewidth=1)
        axis.annotate("tolerance", (axis.get_xlim()[1], tolerance), xytext=(0, 4), textcoords="offset points", ha="right")
    axis.set_xlabel("index $i$")
    axis.set_ylabel(r"singular value $\sigma_i$")
    if len(curves) > 1:
        axis.legend(frameon=False)
    return figure


def against_rank(
    ranks: ArrayLike, curves: Mapping[str, ArrayLike], *, colors: Mapping[str, str], ylabel: str, mark: tuple[float, str]
) -> Figure:
    """Quantities that change with the rank, labelled at their right ends, with one rank marked.

    Args:
        ranks: the horizontal axis.
        curves: label and values of each quantity.
        colors: the colour of each label.
        ylabel: what the vertical axis measures.
        mark: a rank and its name.
    """
    figure, axis = plt.subplots()
    positions = np.asarray(ranks)
    for label, values in curves.items():
        numbers = np.asarray(values)
        axis.plot(positions, numbers, color=colors[label])
        axis.annotate(label, (positions[-1], numbers[-1]), xytext=(6, 0), textcoords="offset points", va="center")
    axis.axvline(mark[0], color=INK, linestyle="--", linewidth=1)
    axis.annotate(mark[1], (mark[0], 0), xytext=(5, 5), textcoords="offset points")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("rank $r$")
    axis.set_ylabel(ylabel)
    return figure


def lines(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    colors: Mapping[str, str],
    xlabel: str,
    ylabel: str,
    log: str = "",
    marker: str = "",
    dashed: Sequence[str] = (),
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    ylim: tuple[float, float] | None = None,
    near: bool = False,
) -> Figure:
    """Curves, each with its name at its right end; names that would cover each other are moved apart.

    Args:
        curves: label, and the horizontal and vertical values of each.
        colors: the colour of each label.
        xlabel: quantity and unit of the horizontal axis.
        ylabel: quantity and unit of the vertical axis.
        log: the axes with a logarithmic scale: "", "x", "y" or "xy".
        marker: a Matplotlib marker for the single values.
        dashed: labels of the curves to draw dashed, such as predictions.
        bands: lower and upper values around some of the curves, such as the spread over seeds.
        ylim: ends of the vertical axis, for figures that are looked at one after the other.
        near: the names stand near the last points instead of at the right edge, for curves that end at different places.
    """
    figure, axis = plt.subplots()
    axis.set(xscale="log" if "x" in log else "linear", yscale="log" if "y" in log else "linear", xlabel=xlabel, ylabel=ylabel)
    ends, points = [], []
    for label, (x, y) in curves.items():
        (line,) = axis.plot(np.asarray(x), np.asarray(y), color=colors[label], marker=marker, linestyle="--" if label in dashed else "-")
        points += np.asarray(line.get_path().interpolated(20).vertices).tolist()
        if bands and label in bands:
            low, high = bands[label]
            axis.fill_between(np.asarray(x), np.asarray(low), np.asarray(high), color=colors[label], alpha=0.2, linewidth=0)
        ends.append((label, np.asarray(x)[-1], np.asarray(y)[-1]))
    if ylim is not None:
        axis.set_ylim(ylim)
    if near:
        _label_points(figure, axis, ends, points)
    else:
        _label_ends(figure, axis, ends)
    return figure


def _label_ends(figure: Figure, axis: Axes, ends: Sequence[tuple[str, float, float]], apart: float = 13.0) -> None:
    """Write each name to the right of its point, at least so many points above the one below it."""
    figure.draw_without_rendering()
    right = max(end[1] for end in ends)
    points = axis.transData.transform([(right, end[2]) for end in ends]) * 72 / figure.dpi
    lowest = -np.inf
    for (label, _, y), (_, height) in sorted(zip(ends, points, strict=True), key=lambda pair: pair[1][1]):
        lowest = max(height, lowest + apart)
        axis.annotate(label, (right, y), xytext=(6, lowest - height), textcoords="offset points", va="center", annotation_clip=False)


def _label_points(
    figure: Figure, axis: Axes, labels: Sequence[tuple[str, float, float]], points: Sequence[tuple[float, float]], apart: float = 4.0
) -> None:
    """Write each text near its point, where it covers neither another text nor one of the points, as far as there is such a place."""
    figure.draw_without_rendering()
    taken: list[Bbox] = []
    dots = axis.transData.transform(points)
    whole = axis.get_window_extent()
    for text, x, y in sorted(labels, key=lambda label: -len(label[0])):
        best, least = None, np.inf
        for distance, (across, up) in itertools.product(
            (9, 16, 26, 38, 52), ((0, -1), (0, 1), (1, 0), (-1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1))
        ):
            note = axis.annotate(
                text,
                (x, y),
                xytext=(distance * across, distance * up),
                textcoords="offset points",
                ha=("right", "center", "left")[across + 1],
                va=("top", "center", "bottom")[up + 1],
                fontsize="small",
            )
            box = note.get_window_extent().padded(apart)
            outside = not (whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1)
            faults = 100 * outside + 10 * sum(box.overlaps(other) for other in taken) + sum(box.contains(*dot) for dot in dots)
            if faults >= least:
                note.remove()
                continue
            if best is not None:
                best[0].remove()
            best, least = (note, box), faults
            if not faults:
                break
        if best is not None:
            taken.append(best[1])


def stacked_bars(
    bars: Mapping[str, Mapping[str, float]], *, colors: Mapping[str, str], xlabel: str, marks: Mapping[str, float] | None = None
) -> Figure:
    """Horizontal bars made of parts, with a legend where there is more than one part.

    Args:
        bars: label of each bar, and the size of each of its parts.
        colors: the colour of each part.
        xlabel: quantity and unit.
        marks: label of a bar and a size to mark on it, such as a measurement.
    """
    figure, axis = plt.subplots(figsize=(7.0, 1.2 + 0.5 * len(bars)))
    labels = list(bars)
    start = np.zeros(len(labels))
    for part in dict.fromkeys(part for parts in bars.values() for part in parts):
        size = np.array([bars[label].get(part, 0.0) for label in labels])
        axis.barh(labels, size, left=start, color=colors[part], label=part, height=0.65)
        start += size
    for index, (label, total) in enumerate(zip(labels, start, strict=True)):
        axis.annotate(f"{total:,.3g}", (total, index), xytext=(4, 0), textcoords="offset points", va="center", fontsize="small")
        if marks and label in marks:
            axis.plot([marks[label]] * 2, [index - 0.4, index + 0.4], color=INK, linewidth=2)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(xlabel)
    if len(axis.containers) > 1:  # a single part is named by the axis
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize="small")
    return figure


def loss_curves(
    curves: Mapping[str, Sequence[float]], *, colors: Mapping[str, str], window: int = 20, marks: Mapping[str, float] | None = None
) -> Figure:
    """Losses against the step on a logarithmic scale: each run's moving average, with the single steps faint behind it.

    Args:
        curves: label and loss of each step.
        colors: the colour of each label.
        window: steps in the moving average; a run with fewer is averaged over all of its own.
        marks: label and height of dashed lines, such as the last loss of a run whose curve is not at hand.
    """
    figure, axis = plt.subplots()
    for label, losses in curves.items():
        numbers = np.asarray(losses)
        wide = min(window, len(numbers))
        smooth = np.convolve(numbers, np.ones(wide) / wide, mode="valid")
        axis.semilogy(np.arange(1, len(numbers) + 1), numbers, color=colors[label], alpha=0.25, linewidth=1)
        steps = np.arange(wide, len(numbers) + 1)
        axis.semilogy(steps, smooth, color=colors[label])
        axis.annotate(label, (steps[-1], smooth[-1]), xytext=(6, 0), textcoords="offset points", va="center")
    for label, height in (marks or {}).items():
        axis.axhline(height, color=colors[label], linestyle="--", linewidth=1)
        axis.annotate(label, (1, height), xytext=(0, -4), textcoords="offset points", va="top", color=colors[label])
        axis.set_ylim(bottom=min(axis.get_ylim()[0], height / 2))  # room for the name
    axis.set_xlabel("step")
    axis.set_ylabel("loss (nats per target token)")
    return figure


def growth(steps: ArrayLike, measured: Mapping[str, ArrayLike], predicted: Mapping[str, ArrayLike], *, ylabel: str) -> Figure:
    """Quantities that grow from almost nothing, on a logarithmic scale, with the prediction of each thin and dashed behind it.

    Args:
        steps: the horizontal axis.
        measured: label and values of each quantity; what is not positive is left out.
        predicted: label and values of some of them.
        ylabel: quantity and unit of the vertical axis.
    """
    figure, axis = plt.subplots(figsize=(7.0, 4.2))
    axis.set(yscale="log", xlabel="step", ylabel=ylabel)
    x, ends = np.asarray(steps), []
    for label, values in measured.items():
        numbers = np.asarray(values)
        positive = np.where(numbers > 0, numbers, np.nan)
        axis.plot(x, positive, color=COLORS["delta"])
        if label in predicted:
            axis.plot(x, np.asarray(predicted[label]), color=COLORS["W"], linestyle="--", linewidth=1)
        if positive[-1] > 0:
            ends.append((label, x[-1], positive[-1]))
    _label_ends(figure, axis, ends)
    return figure


def strips(
    rows: Mapping[str, Mapping[str, ArrayLike]], *, colors: Mapping[str, str], xlabel: str, log: bool = False, lowest: float | None = None
) -> Figure:
    """A dot for every value, in one row for each group and one lane of it for each series; of dots that coincide, one.

    Args:
        rows: label of each group, and the values of each of its series.
        colors: the colour of each series.
        xlabel: quantity and unit.
        log: a logarithmic scale.
        lowest: the left end; smaller values are drawn on it.
    """
    figure, axis = plt.subplots(figsize=(7.0, 1.0 + 0.5 * len(rows)))
    lanes = {name: (index - (len(colors) - 1) / 2) * 0.7 / len(colors) for index, name in enumerate(colors)}
    markers = dict(zip(colors, itertools.cycle("o^sDv"), strict=False))
    every = np.concatenate([np.ravel(values) for series in rows.values() for values in series.values()])
    if lowest is not None:
        every = np.maximum(every, lowest)
    # The eye tells some 1500 places on the axis apart.
    places = 1500 / max(np.ptp(np.log10(every) if log else every), 1e-9)
    named: set[str] = set()
    for place, series in enumerate(rows.values()):
        for name, values in series.items():
            x = np.maximum(np.asarray(values), -np.inf if lowest is None else lowest)
            _, apart = np.unique(np.round((np.log10(x) if log else x) * places), return_index=True)
            x = x[np.sort(apart)]
            y = np.full(len(x), place + lanes[name])
            label = None if name in named else name
            named.add(name)
            axis.plot(x, y, markers[name], color=colors[name], markersize=4, alpha=0.4, markeredgewidth=0, clip_on=False, label=label)
    axis.set(xscale="log" if log else "linear", xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    if lowest is not None:
        axis.set_xlim(left=lowest)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.grid(visible=False, axis="y")
    figure.legend(loc="outside upper center", ncols=len(colors), frameon=False, markerscale=2)
    return figure


def spread(groups: Mapping[str, ArrayLike], *, colors: Mapping[str, str], xlabel: str, mark: float) -> Figure:
    """One row of dots for each group of measurements, its median as a line across the row.

    Args:
        groups: label of each row, from the top, and its measurements.
        colors: the colour of each label.
        xlabel: quantity and unit.
        mark: a value to compare with, drawn as a dashed line.
    """
    figure, axis = plt.subplots(figsize=(7.0, 0.8 + 0.4 * len(groups)))
    axis.axvline(mark, color=INK, linestyle="--", linewidth=1)
    for row, (label, values) in enumerate(groups.items()):
        numbers = np.asarray(values)
        axis.plot(numbers, np.full(len(numbers), row), "o", color=colors[label], alpha=0.35, markersize=5)
        axis.plot([np.median(numbers)] * 2, [row - 0.35, row + 0.35], color=INK, linewidth=2)
    axis.set_yticks(range(len(groups)), list(groups))
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(xlabel)
    return figure


def heat_maps(grids: Mapping[str, ArrayLike], *, xlabel: str, ylabel: str, scale: str) -> Figure:
    """Grids of numbers between 0 and 1 side by side, as shades from dark to bright, with one scale for all.

    Args:
        grids: title of each, and its values, (rows, columns); rows and columns are counted from 1.
        xlabel: what a column is.
        ylabel: what a row is.
        scale: what a shade is.
    """
    figure, axes = plt.subplots(1, len(grids), figsize=(7.0, 2.6), squeeze=False, sharey=True)
    for axis, (title, values) in zip(axes[0], grids.items(), strict=True):
        numbers = np.asarray(values)
        rows, columns = numbers.shape
        extent = (0.5, columns + 0.5, rows + 0.5, 0.5)
        image = axis.imshow(numbers, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent)
        axis.set_xticks([1, columns // 2, columns])
        axis.set_yticks([1, rows // 2, rows])
        axis.set_title(title, loc="center", fontsize="small")
        axis.set_xlabel(xlabel)
        axis.grid(visible=False)
    axes[0][0].set_ylabel(ylabel)
    figure.colorbar(image, ax=axes[0].tolist(), label=scale, shrink=0.9)
    return figure
