"""Figures that answer when touched, with no kernel: one call each. Arrays and numbers in, an :class:`Explorer` out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import ArrayLike

from lorabook.figures.slider import as_webp
from lorabook.figures.style import COLORS, INK
from lorabook.figures.vega import Explorer


def rank(pictures: Mapping[int, ArrayLike], shares: Mapping[str, ArrayLike], *, break_even: float, start: int) -> Explorer:
    """Slide the rank of an approximation: the picture, and where its error, energy and storage stand.

    Args:
        pictures: the approximation at each rank of the slider, (height, width), black at 0 and white at 1.
        shares: of up to three quantities the values at rank 1, 2, ... to the full one, as shares of the whole; drawn in the colours of W,
            full fine-tuning and B, in this order.
        break_even: the rank up to which the factors save storage.
        start: the rank shown first.

    Raises:
        ValueError: a start that is no rank of the slider.
    """
    ranks = sorted(pictures)
    curves = {name: np.asarray(values, dtype=float) for name, values in shares.items()}
    texts = {r: f"rank {r}: " + ", ".join(f"{name} {values[r - 1]:.1%}" for name, values in curves.items()) for r in ranks}
    slider = _slider("Rank", ranks, start)
    height, width = np.asarray(pictures[start]).shape
    frames = [{"position": index, "picture": as_webp(pictures[r])} for index, r in enumerate(ranks)]
    image = _chosen(frames, width=width, height=height).mark_image(width=width, height=height, align="left", baseline="top", aria=False)
    image = image.encode(url="picture:N", x=alt.value(0), y=alt.value(0))

    last = max(len(values) for values in curves.values())
    some = sorted({int(r) for r in np.geomspace(1, last, 90).round()} | set(ranks))
    at = [{"rank": r, "what": name, "share": float(values[r - 1])} for name, values in curves.items() for r in some]
    on_slider = [{**row, "position": ranks.index(row["rank"])} for row in at if row["rank"] in ranks]
    colors = dict(zip(curves, (COLORS[role] for role in ("W", "full", "B")), strict=False))
    encoding = {
        "x": alt.X("rank:Q", title="rank", axis=alt.Axis(values=[*_powers(1, last), last])).scale(type="log", domain=[1, last], nice=False),
        "y": alt.Y("share:Q", title="share of the whole", axis=alt.Axis(format=".0%", tickCount=5)).scale(domain=[0, 2]),
        "color": _color("what", colors).legend(None),
    }
    tall = height - 45  # the axis stands below
    lines = alt.Chart(alt.InlineData(values=at)).mark_line(clip=True, aria=False).encode(**encoding)
    names = lines.mark_text(align="left", dx=5, dy=-16, aria=False).encode(text="what:N").transform_filter("datum.rank == 1")
    dots = _chosen(on_slider).mark_point(filled=True, size=90, opacity=1, clip=True)
    dots = dots.encode(**encoding, tooltip=["what:N", "rank:Q", alt.Tooltip("share:Q", format=".1%")])
    here = dots.mark_rule(aria=False).encode(x="rank:Q", y=alt.value(0), y2=alt.value(tall), color=alt.value(INK), opacity=alt.value(0.15))
    even = alt.Chart(alt.InlineData(values=[{"rank": break_even}])).mark_rule(strokeDash=[4, 4], aria=False).encode(x="rank:Q")
    even += even.mark_text(align="right", dx=-4, aria=False).encode(text=alt.value("break-even"), y=alt.value(8))
    plot = (lines + names + even + here + dots).properties(width=270, height=tall)
    return Explorer(
        alt.concat(image, plot, columns=2, spacing=20).add_params(slider),
        label="Explorer: the rank of an approximation",
        alt=f"The picture at {texts[start]}. Beside it these quantities against the rank; storage crosses the whole at {break_even:.0f}.",
        params=("position",),
        texts=_by_position(texts),
        start=texts[start],
    )


def spectrum(layers: Mapping[str, Mapping[str, ArrayLike]], texts: Mapping[str, str], *, colors: Mapping[str, str], start: str) -> Explorer:
    """Slide through the layers of a model: the singular values of several matrices of each.

    Args:
        layers: of each layer, by path, the singular values of its matrices, by name, the largest first; those below a millionth of the
            largest of all are left out.
        texts: what to read beside each layer.
        colors: the colour of each matrix.
        start: the layer shown first.

    Raises:
        ValueError: a start that is no layer.
    """
    top = max(float(np.max(np.asarray(values))) for matrices in layers.values() for values in matrices.values())
    rows: list[dict[str, Any]] = [
        {"position": index, "matrix": name, "index": i + 1, "value": float(f"{sigma:.3g}")}
        for index, matrices in enumerate(layers.values())
        for name, values in matrices.items()
        for i, sigma in _some(np.asarray(values, dtype=float))
        if sigma > 1e-6 * top
    ]
    ends = min(row["value"] for row in rows), 1.2 * top
    x = alt.X("index:Q", title="index i").scale(domain=[1, max(row["index"] for row in rows)], nice=False)
    y = alt.Y("value:Q", title="singular value", axis=alt.Axis(values=_powers(*ends), format="~g")).scale(type="log", domain=ends)
    chart = _chosen(rows, width=560, height=280).mark_line(point=alt.OverlayMarkDef(size=14), aria=False)
    return Explorer(
        chart.encode(x=x, y=y, color=_color("matrix", colors), tooltip=["matrix:N", "index:Q", "value:Q"]).add_params(
            _slider("Layer", list(layers), start)
        ),
        label="Explorer: singular values, layer by layer",
        alt=f"Singular values on a logarithmic axis against their index. {texts[start]}",
        params=("position",),
        texts=_by_position({path: texts[path] for path in layers}),
        start=texts[start],
    )


def alpha_eta(
    positions: Mapping[float, Mapping[str, ArrayLike]], texts: Mapping[float, str], *, colors: Mapping[str, str], start: float
) -> Explorer:
    """Move along an equivalence curve of alpha and the learning rate: training runs that stay together, and one that parts.

    Args:
        positions: at each position the losses of the runs, by name.
        texts: what to read at each position.
        colors: the colour of each run; the last is dashed and lies on top.
        start: the position shown first.

    Raises:
        ValueError: a start that is no position.
    """
    rows: list[dict[str, Any]] = [
        {"position": index, "run": name, "step": step, "loss": float(f"{loss:.4g}")}
        for index, runs in enumerate(positions.values())
        for name, losses in runs.items()
        for step, loss in enumerate(np.asarray(losses, dtype=float), 1)
    ]
    top = 1.05 * max(row["loss"] for row in rows if row["step"] == 1)
    dashes = alt.StrokeDash("run:N", title=None).scale(domain=list(colors), range=[[1, 0]] * (len(colors) - 1) + [[6, 6]])
    chart = _chosen(rows, width=560, height=280).mark_line(clip=True, aria=False)
    chart = chart.encode(
        x="step:Q",
        y=alt.Y("loss:Q", title="loss (nats per token)").scale(domain=[0, top], nice=False),
        color=_color("run", colors),
        strokeDash=dashes,
        tooltip=["run:N", "step:Q", "loss:Q"],
    )
    return Explorer(
        chart.add_params(_slider("Position p on the curve", list(positions), start)),
        label="Explorer: along an equivalence curve",
        alt=f"Loss against the step. {texts[start]}",
        params=("position",),
        texts=_by_position({place: texts[place] for place in positions}),
        start=texts[start],
    )


@dataclass(frozen=True)
class Run:
    """One training run, as the accuracy explorer shows it.

    Args:
        method: its name, the same for all its seeds.
        family: what shares a colour, and is joined by a line through the means.
        trainable: numbers that train.
        seed: of the run.
        learning_rate: at which it ran.
        scores: share of right answers, 0 to 1, by what was asked.
    """

    method: str
    family: str
    trainable: int
    seed: int
    learning_rate: float
    scores: Mapping[str, float]


def accuracy(tasks: Mapping[str, Sequence[Run]], *, colors: Mapping[str, str], start: str) -> Explorer:
    """Choose a task, what was asked and a method: accuracy against trained numbers, each run by itself.

    Args:
        tasks: the runs on each task, all with the same set of scores.
        colors: the colour of each family.
        start: the method marked first.

    Raises:
        ValueError: a start that is no method of the first task.
    """
    first = next(iter(tasks))
    if start not in {run.method for run in tasks[first]}:
        raise ValueError(f"start must be a method of {first}, got {start!r}")
    methods = list(dict.fromkeys(run.method for runs in tasks.values() for run in sorted(runs, key=lambda run: run.trainable)))
    asked = list(tasks[first][0].scores)
    rows, texts = [], {}
    for task, runs in tasks.items():
        for what in asked:
            rows += [{"task": task, "asked": what, **vars(run), "scores": run.scores[what]} for run in runs]
            for method in methods:
                texts[f"{task}|{what}|{method}"] = _result([run for run in runs if run.method == method], method, what)
    params = [
        _menu("task", "Task", list(tasks), first),
        _menu("asked", "Questions", asked, asked[0]),
        _menu("method", "Method", methods, start),
    ]
    base = alt.Chart(alt.InlineData(values=rows), width=560, height=320).transform_filter("datum.task == task && datum.asked == asked")
    x = alt.X("trainable:Q", title="trained numbers", axis=alt.Axis(format="~s", tickCount=6)).scale(type="log")
    y = alt.Y("scores:Q", title="right answers", axis=alt.Axis(format=".0%")).scale(domain=[0, 1])
    color = _color("family", colors)
    dots = base.mark_point(filled=True).encode(
        x=x,
        y=y,
        color=color,
        opacity=alt.condition("datum.method == method", alt.value(1), alt.value(0.55)),
        size=alt.condition("datum.method == method", alt.value(170), alt.value(45)),
        tooltip=[
            *("method:N", "seed:O"),
            alt.Tooltip("scores:Q", title="right answers", format=".1%"),
            alt.Tooltip("trainable:Q", title="trained numbers", format=","),
            alt.Tooltip("learning_rate:Q", title="learning rate", format="~g"),
        ],
    )
    lines = base.mark_line(aria=False, opacity=0.6).encode(x=x, y=y.aggregate("mean"), color=color)
    said = texts[f"{first}|{asked[0]}|{start}"]
    return Explorer(
        (lines + dots).add_params(*params),
        label="Explorer: accuracy against trained numbers",
        alt=f"Accuracy of each run against the numbers that train, on a logarithmic axis, for {first}. Marked: {said}",
        params=("task", "asked", "method"),
        texts=texts,
        start=said,
    )


def _result(runs: Sequence[Run], method: str, asked: str) -> str:
    if not runs:
        return f"{method}: not run on this task."
    scores = ", ".join(f"{100 * run.scores[asked]:.1f}" for run in runs)
    seeds = f"seeds {', '.join(str(run.seed) for run in runs)}: " if len(runs) > 1 else ""
    return f"{method}: {runs[0].trainable:,} numbers train at a learning rate of {runs[0].learning_rate:g}; {seeds}{scores} % right."


_MEMORY = {"weights": COLORS["W"], "gradients": "#F0E442", "optimizer": "#8C8C8C"}
_METHODS = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}
_ROWS = {
    "trained": "numbers that train",
    "checkpoint": "bytes on disk",
    "weights": "bytes of weights",
    "gradients": "bytes of gradients",
    "optimizer": "bytes of optimizer",
    "memory": "bytes in all",
    "operations": "operations per token",
}


def calculator(costs: Sequence[Any], *, model: str, targets: str, rank: int = 16, precision: str = "bfloat16") -> Explorer:
    """Choose a model, its targets, the rank and the precision: what trains, what is saved, memory by kind, operations.

    Args:
        costs: as ``lorabook.measure.costs.costs`` returns them.
        model: the one shown first.
        targets: shown first.
        rank: shown first, a power of two up to 256.
        precision: shown first.

    Raises:
        ValueError: a rank that is none of the slider, or a setting that the costs lack.
    """
    rows = [{**vars(cost), "method": _METHODS[cost.method]} for cost in costs]
    if not any((row["model"], row["targets"], row["precision"]) == (model, targets, precision) for row in rows):
        raise ValueError(f"the costs hold no {model!r} with {targets!r} in {precision!r}")

    def menu(name: str, label: str, start: str) -> alt.Parameter:
        return _menu(name, label, list(dict.fromkeys(row[name] for row in rows)), start)

    params = [menu("model", "Model", model), menu("targets", "Matrices", targets), menu("precision", "Precision", precision)]
    params += [_slider("Rank", [2**power for power in range(9)], rank), alt.param("rank", expr="pow(2, position)")]
    chosen = alt.Chart(alt.InlineData(values=rows)).transform_calculate(amount="datum.at_zero + rank * datum.per_rank")
    chosen = chosen.transform_filter("datum.model == model && datum.targets == targets && datum.precision == precision")
    kinds, methods = list(_MEMORY), list(_METHODS.values())
    bars = chosen.transform_filter(alt.FieldOneOfPredicate("quantity", kinds))
    bars = bars.transform_calculate(order=f"indexof({kinds}, datum.quantity)", gigabytes="datum.amount / 1e9").mark_bar(aria=False)
    bars = bars.encode(
        x=alt.X("gigabytes:Q", title="memory (GB)"),
        y=alt.Y("method:N", title=None, sort=methods),
        color=_color("quantity", _MEMORY),
        order="order:Q",
        tooltip=["method:N", "quantity:N", alt.Tooltip("amount:Q", title="bytes", format=",.0f")],
    )
    title = alt.Title(text=alt.ExprRef("model + ', ' + targets + ', rank ' + rank + ', ' + precision"))
    bars = bars.properties(width=560, height=110, title=title)
    table = chosen.transform_calculate(row=f"{_ROWS}[datum.quantity]").transform_calculate(
        text="format(datum.amount, datum.amount < 1e9 ? ',.0f' : '.4s')",
        heard="datum.method + ', ' + datum.row + ': ' + format(datum.amount, ',.0f')",
    )
    bare: dict[str, Any] = {"domain": False, "ticks": False, "grid": False}
    table = table.mark_text(align="right", dx=34).encode(
        x=alt.X(
            "method:N", title=None, sort=methods, axis=alt.Axis(orient="top", labelAngle=0, labelAlign="right", labelOffset=34, **bare)
        ),
        y=alt.Y("row:N", title=None, sort=list(_ROWS.values()), axis=alt.Axis(**bare)),
        text="text:N",
        description="heard:N",
    )
    table = table.properties(name="said", width=420, height=170)
    return Explorer(
        alt.vconcat(bars, table).add_params(*params).resolve_scale(x="independent", y="independent"),
        label="Explorer: what a fine-tune costs",
        alt=f"Memory of full fine-tuning, LoRA and QLoRA for {model} as bars, and a table of what trains, is saved and is computed.",
        params=("rank",),
        start="",
    )


def _chosen(rows: Sequence[Mapping[str, object]], **size: Any) -> alt.Chart:
    """The rows at the slider's position."""
    return alt.Chart(alt.InlineData(values=rows), **size).transform_filter("datum.position == position")


def _color(field: str, colors: Mapping[str, str]) -> alt.Color:
    columns = 2 if len("".join(colors)) > 30 else len(colors)  # as wide as a phone
    legend = alt.Legend(orient="top", columns=columns, columnPadding=20)
    return alt.Color(f"{field}:N", title=None, legend=legend).scale(domain=list(colors), range=list(colors.values()))


def _slider(label: str, values: Sequence[object], start: object) -> alt.Parameter:
    """The position among some values, from 0."""
    if start not in values:
        raise ValueError(f"start must be one of {', '.join(map(str, values))}; got {start}")
    return alt.param("position", value=values.index(start), bind=alt.binding_range(min=0, max=len(values) - 1, step=1, name=f"{label} "))


def _menu(name: str, label: str, options: Sequence[str], start: str) -> alt.Parameter:
    return alt.param(name, value=start, bind=alt.binding_select(options=options, name=f"{label} "))


def _by_position(texts: Mapping[Any, str]) -> dict[str, str]:
    return {str(index): text for index, text in enumerate(texts.values())}


def _powers(low: float, high: float) -> list[float]:
    """The powers of ten between two numbers."""
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


def _some(values: np.ndarray, most: int = 64) -> list[tuple[int, float]]:
    """Numbered values of a long row, evenly spread."""
    kept = sorted({int(i) for i in np.linspace(0, len(values) - 1, min(len(values), most)).round()})
    return [(i, float(values[i])) for i in kept]
