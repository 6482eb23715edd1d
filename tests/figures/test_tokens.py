"""Figures of what a language model expects draw what they are given."""

from lorabook.figures import tokens


def test_white_space_is_made_visible_and_a_dollar_starts_no_formula():
    assert tokens.shown("a b\n$") == "a␣b↵\\$"


def test_each_bar_is_a_probability_and_the_token_that_comes_is_marked():
    figure = tokens.next_token_bars([" np", " a"], [0.75, 0.1], actual=" a")
    (axis,) = figure.axes
    assert [bar.get_width() for bar in axis.patches] == [0.75, 0.1]
    assert [text.get_text() for text in axis.texts] == ["0.750", "0.100  comes next"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["␣np", "␣a"]


def test_a_second_distribution_stands_beside_the_first():
    figure = tokens.next_token_bars(["x", "y"], [0.5, 0.25], other=[0.0, 1.0], names=("before", "after"))
    (axis,) = figure.axes
    assert [bar.get_width() for bar in axis.patches] == [0.5, 0.25, 0.0, 1.0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["before", "after"]


def test_surprise_stands_over_its_token():
    figure = tokens.surprise_bars(["x", " y"], [3.0, 0.5])
    (axis,) = figure.axes
    assert [bar.get_height() for bar in axis.patches] == [3.0, 0.5]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["x", "␣y"]
