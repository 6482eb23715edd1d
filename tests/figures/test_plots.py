"""The book's figures draw what they are given."""

import numpy as np
import pytest

from lorabook.figures import drawings, plots
from lorabook.figures.style import COLORS


def test_a_spectrum_is_drawn_in_order_from_one():
    figure = plots.spectra({"W": [3.0, 2.0, 0.5]}, colors={"W": COLORS["W"]}, tolerance=0.1)
    curve, tolerance = figure.axes[0].lines
    assert curve.get_xdata().tolist() == [1, 2, 3]
    assert curve.get_ydata().tolist() == [3.0, 2.0, 0.5]
    assert set(tolerance.get_ydata()) == {0.1}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_last_ellipse_is_the_matrix_applied_to_the_circle_and_only_the_last_step_may_reflect(sign):
    matrix = np.array([[1.6, 0.9], [0.2, 1.1]]) * [[1], [sign]]
    figure = drawings.rotation_stretch_rotation(matrix)
    circle, turned, stretched, ellipse = (np.stack(axis.lines[0].get_data()) for axis in figure.axes)
    assert np.allclose(matrix @ circle, ellipse)
    assert np.allclose(np.linalg.norm(circle, axis=0), 1)
    turning = [np.sign(np.linalg.det(curve[:, :2])) for curve in (circle, turned, stretched, ellipse)]
    assert turning == [1, 1, 1, sign]
    assert ("reflects" in figure.axes[3].get_title()) == (sign < 0)


def test_a_moving_average_ends_at_the_mean_of_the_last_steps():
    losses = np.geomspace(4.0, 0.1, 50).tolist()
    figure = plots.loss_curves({"LoRA": losses}, colors={"LoRA": COLORS["delta"]}, window=10)
    smooth = figure.axes[0].lines[1]
    assert smooth.get_ydata()[-1] == pytest.approx(np.mean(losses[-10:]))
    assert smooth.get_xdata()[-1] == 50


def test_a_last_loss_is_marked_by_a_dashed_line():
    figure = plots.loss_curves({"LoRA": [3.0, 2.0]}, colors={"LoRA": "b", "full": "r"}, window=1, marks={"full": 0.5})
    assert set(figure.axes[0].lines[-1].get_ydata()) == {0.5}
    assert {text.get_text() for text in figure.axes[0].texts} == {"LoRA", "full"}


def test_names_may_stand_near_the_last_points():
    curves = {"short": ([1, 2], [3.0, 4.0]), "long": ([1, 9], [1.0, 1.0])}
    colors = dict.fromkeys(curves, COLORS["delta"])
    figure = plots.lines(curves, colors=colors, xlabel="step", ylabel="loss", near=True)
    assert {text.get_text(): text.xy for text in figure.axes[0].texts} == {"short": (2, 4.0), "long": (9, 1.0)}


def test_pictures_keep_their_grey_levels():
    figure = drawings.image_row([np.full((2, 3), 0.5)], ["grey"])
    (image,) = figure.axes[0].images
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)


def test_curves_against_rank_are_labelled_and_the_mark_stands_where_it_is_told():
    figure = plots.against_rank([1, 2], {"energy": [0.5, 1.0]}, colors={"energy": COLORS["W"]}, ylabel="share", mark=(1.5, "here"))
    assert {text.get_text() for text in figure.axes[0].texts} == {"energy", "here"}
    assert set(figure.axes[0].lines[1].get_xdata()) == {1.5}


def test_the_drawn_layer_names_its_three_matrices():
    names = {text.get_text() for text in drawings.lora_layer().axes[0].texts}
    assert {"$W$\nfrozen", "$A$", "$B$"} <= names


@pytest.mark.parametrize("ylim", [None, (0.5, 5000.0)])
def test_names_of_curves_that_end_together_do_not_cover_each_other(ylim):
    figure = plots.lines(
        {name: ([1, 10, 100], [1.0, 2.0, end]) for name, end in (("a", 3.0), ("b", 3.01), ("c", 9.0))},
        colors=dict.fromkeys("abc", COLORS["W"]),
        xlabel="step",
        ylabel="loss (nats)",
        log="x",
        ylim=ylim,
    )
    figure.draw_without_rendering()
    assert ylim is None or figure.axes[0].get_ylim() == ylim
    heights = sorted(text.get_window_extent().y0 for text in figure.axes[0].texts)
    assert len(heights) == 3
    assert min(np.diff(heights)) > 10


def test_stacked_bars_end_at_the_sum_of_their_parts():
    parts = {"full": {"weights": 2.0, "gradients": 3.0}, "LoRA": {"weights": 2.0}}
    figure = plots.stacked_bars(parts, colors={"weights": COLORS["W"], "gradients": COLORS["full"]}, xlabel="memory (GB)")
    bars = figure.axes[0].patches
    assert max(bar.get_x() + bar.get_width() for bar in bars) == 5.0
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "2"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["weights", "gradients"]


def test_bars_of_one_part_have_no_legend():
    figure = plots.stacked_bars({"a": {"share": 2.0}, "b": {"share": 0.0}}, colors={"share": COLORS["full"]}, xlabel="share (%)")
    assert figure.legends == []


def test_strips_draw_every_value_in_the_lane_of_its_series():
    rows = {"far": {"F": [2.0, 3.0], "2": [4.0]}, "near": {"F": [1e-9], "2": [0.5, 0.25]}}
    figure = plots.strips(rows, colors={"F": COLORS["W"], "2": COLORS["A"]}, xlabel="error", log=True, lowest=1e-3)
    drawn = [(list(line.get_xdata()), set(line.get_ydata())) for line in figure.axes[0].lines]
    assert [x for x, _ in drawn] == [[2.0, 3.0], [4.0], [1e-3], [0.5, 0.25]]
    places = [y for _, lane in drawn for y in lane]
    assert places == sorted(places)
    assert len(places) == 4
    assert figure.axes[0].get_ylim() == (1.5, -0.5)


@pytest.mark.parametrize("log", [True, False])
def test_of_dots_that_coincide_in_strips_one_is_drawn_and_none_is_far_from_its_value(log):
    values = np.geomspace(1.0, 1000.0, 20_000)
    figure = plots.strips({"x": {"a": values}}, colors={"a": "red"}, xlabel="x", log=log)
    scale = np.log10 if log else np.asarray
    (line,) = figure.axes[0].lines
    drawn = scale(np.asarray(line.get_xdata()))
    assert len(drawn) < 1600
    assert np.abs(drawn[:, None] - scale(values)).min(axis=0).max() <= np.ptp(scale(values)) / 1500 + 1e-9


def test_a_path_in_a_valley_runs_from_a_dot_to_a_star_past_the_saddle():
    grid = np.linspace(-1, 1, 21)
    path = np.array([[0.2, 0.0], [0.3, 0.3], [0.7, 0.8]])
    loss = (1 - np.outer(grid, grid)) ** 2
    figure = drawings.valley(grid, loss, paths=[path], minima=[([0.5, 1.0], [2.0, 1.0])], xlabel="a", ylabel="b")
    marks = {line.get_marker(): line.get_xydata() for line in figure.axes[0].lines}
    assert marks["."].tolist() == path.tolist()
    assert (marks["o"][0].tolist(), marks["*"][0].tolist(), marks["x"][0].tolist()) == ([0.2, 0.0], [0.7, 0.8], [0.0, 0.0])


def test_what_has_not_begun_to_grow_is_left_out_and_predictions_are_dashed():
    figure = plots.growth([0, 1, 2], {"first": [0.0, 1.0, 2.0]}, {"first": [0.5, 1.0, 2.0]}, ylabel="strength")
    measured, predicted = figure.axes[0].lines
    assert np.isnan(measured.get_ydata()[0])
    assert measured.get_ydata()[1:].tolist() == [1.0, 2.0]
    assert predicted.get_linestyle() == "--"
    assert [text.get_text() for text in figure.axes[0].texts] == ["first"]


def test_heat_maps_share_one_scale_and_count_from_one():
    figure = plots.heat_maps({"A": [[0.0, 0.5, 1.0], [0.2, 0.4, 0.6]], "B": [[1.0], [0.5]]}, xlabel="j", ylabel="i", scale="similarity")
    first, second = figure.axes[0].images[0], figure.axes[1].images[0]
    np.testing.assert_array_equal(first.get_array(), [[0.0, 0.5, 1.0], [0.2, 0.4, 0.6]])
    assert first.get_clim() == second.get_clim() == (0, 1)
    assert first.get_extent() == [0.5, 3.5, 2.5, 0.5]


def test_a_run_shorter_than_the_window_is_drawn():
    figure = plots.loss_curves({"a": [3.0, 2.0, 1.0]}, colors={"a": "red"})
    assert figure.axes[0].lines[1].get_ydata() == pytest.approx([2.0])


def test_every_series_of_strips_is_in_the_legend_once():
    rows = {"x": {"a": [1.0]}, "y": {name: [2.0] for name in "abcdef"}}
    figure = plots.strips(rows, colors=dict.fromkeys("abcdef", "red"), xlabel="x")
    assert sorted(text.get_text() for text in figure.legends[0].get_texts()) == list("abcdef")
