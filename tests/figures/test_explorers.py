"""Explorers: what their specifications hold, and what a page shows before its scripts have run. The browser's part is tests/book/."""

import json
import re

import numpy as np
import pytest

from lorabook.figures import explorers, vega
from lorabook.figures.style import INK

PICTURES = {r: np.full((64, 48), r / 4) for r in (1, 2, 4)}
SHARES = {"energy": [0.5, 0.75, 0.875, 1.0], "error": [0.7, 0.5, 0.3, 0.0], "storage": [0.6, 1.2, 1.8, 2.4]}


def rank():
    return explorers.rank(PICTURES, SHARES, break_even=1.7, start=2)


def spectrum():
    layers = {"first": {"W": [3.0, 2.0, 1e-9], "delta": [1.0, 0.5]}, "last": {"W": [4.0, 2.0, 1.0]}}
    return explorers.spectrum(layers, {"first": "one", "last": "two"}, colors={"W": "#0072B2", "delta": "#CC79A7"}, start="last")


def alpha_eta():
    runs = {p: {"alone": [3.0, 2.0 * p], "moved": [3.0, 1.0]} for p in (0.5, 2.0)}
    return explorers.alpha_eta(runs, {0.5: "half", 2.0: "two"}, colors={"alone": "#0072B2", "moved": INK}, start=2.0)


def run(method, seed, score, trainable=100):
    return explorers.Run(method, method.partition(", r")[0], trainable, seed, 0.01, {"seen": score, "unseen": score / 2})


def accuracy():
    tasks = {
        "sql": [run("LoRA, r = 8", 0, 0.9), run("LoRA, r = 8", 1, 0.8), run("full", 0, 1.0, 900)],
        "reading": [run("full", 0, 0.5, 900)],
    }
    return explorers.accuracy(tasks, colors={"LoRA": "#CC79A7", "full": "#D55E00"}, start="LoRA, r = 8")


ALL = [rank, spectrum, alpha_eta, accuracy]


@pytest.mark.parametrize("make", ALL)
def test_before_its_scripts_have_run_a_page_shows_the_start_as_picture_and_words(make):
    explorer = make()
    page = explorer._repr_html_()
    assert '<svg role="img" aria-label="' in page
    assert INK not in page
    assert f"{explorer.start}</output>" in page
    assert page.count("<script") == page.count("</script>") == 2


@pytest.mark.parametrize("make", ALL)
def test_every_position_has_its_words(make):
    explorer = make()
    data = json.loads(re.search(r'<script type="application/json" data-chart="">(.*?)</script>', explorer._repr_html_(), re.DOTALL)[1])
    assert set(data["texts"].values()) >= {explorer.start}
    named = {param["name"]: param["bind"] for param in data["spec"]["params"] if "bind" in param}
    assert set(explorer.params) == set(named)
    choices = 1
    for bind in named.values():
        choices *= len(bind["options"]) if bind["input"] == "select" else bind["max"] - bind["min"] + 1
    assert len(data["texts"]) == choices


def test_the_words_say_what_the_numbers_are():
    assert rank().texts == {
        "0": "rank 1: energy 50.0%, error 70.0%, storage 60.0%",
        "1": "rank 2: energy 75.0%, error 50.0%, storage 120.0%",
        "2": "rank 4: energy 100.0%, error 0.0%, storage 240.0%",
    }
    said = accuracy().texts
    assert said["sql|seen|LoRA, r = 8"] == "LoRA, r = 8: 100 numbers train at a learning rate of 0.01; seeds 0, 1: 90.0, 80.0 % right."
    assert said["sql|unseen|full"].endswith("0.01; 50.0 % right.")
    assert said["reading|seen|LoRA, r = 8"] == "LoRA, r = 8: not run on this task."


def test_what_is_below_a_millionth_is_left_out_of_a_spectrum():
    (rows,) = spectrum().spec()["datasets"].values()
    values = [row["value"] for row in rows]
    assert values == [3.0, 2.0, 1.0, 0.5, 4.0, 2.0, 1.0]


def test_a_start_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"start must be one of 1, 2, 4; got 3"):
        explorers.rank(PICTURES, SHARES, break_even=1.7, start=3)
    with pytest.raises(ValueError, match=r"start must be a method of sql, got 'BitFit'"):
        explorers.accuracy({"sql": [run("full", 0, 1.0)]}, colors={"full": "#D55E00"}, start="BitFit")
    with pytest.raises(ValueError, match=r"the costs hold no 'nothing'"):
        explorers.calculator([], model="nothing", targets="all linear")


def test_a_text_cannot_close_the_script_that_holds_it():
    page = explorers.alpha_eta({1.0: {"a": [1.0]}}, {1.0: "</script><b>"}, colors={"a": INK}, start=1.0)._repr_html_()
    assert page.count("</script>") == 2
    assert "<b>" not in page


def test_a_page_of_the_book_brings_no_vega_and_a_notebook_its_own(monkeypatch):
    monkeypatch.setenv(vega.SITE, "1")
    assert vega._sources() == []
    monkeypatch.delenv(vega.SITE)
    (own,) = vega._sources()
    assert own.startswith("data:text/javascript;base64,")
    monkeypatch.setattr(vega, "find_spec", lambda name: None)
    assert [re.sub(r"@[\d.]+", "", source) for source in vega._sources()] == [
        f"https://cdn.jsdelivr.net/npm/{name}" for name in ("vega", "vega-lite", "vega-embed")
    ]
    assert "<svg" not in rank()._repr_html_().partition('<script type="application/json" data-chart="">')[0]


def test_a_number_that_is_not_finite_is_a_gap():
    cell = explorers.alpha_eta({1.0: {"a": [1.0, float("nan"), 3.0]}}, {1.0: "one"}, colors={"a": INK}, start=1.0)._repr_html_()
    packed = re.search(r'data-chart="">(.*?)</script>', cell, re.DOTALL)[1]
    assert "NaN" not in packed
    json.loads(packed, parse_constant=pytest.fail)
