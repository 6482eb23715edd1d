"""Equivalent settings, trained next to each other by optimizers written out in NumPy."""

import math

import numpy as np
import pytest

from lorabook.measure.equivalence import Setting, equivalent_setting, knobs

RANK, OUT, IN = 3, 5, 8  # alpha is nowhere equal to the rank


def trained_update(setting, optimizer, steps=40):
    """The update after training one LoRA layer under a nonlinear loss, in float64 and with gradients by hand."""
    random = np.random.default_rng(0)
    W, x, y = random.normal(size=(OUT, IN)), random.normal(size=(IN, 12)), random.normal(size=(OUT, 12))
    A, B = setting.start * random.normal(size=(RANK, IN)), np.zeros((OUT, RANK))
    averages = {name: [0.0, 0.0] for name in "AB"}
    for step in range(1, steps + 1):
        z = np.tanh((W + setting.scaling * B @ A) @ x)
        G = ((z - y) * (1 - z**2)) @ x.T
        gradients = {"A": setting.scaling * B.T @ G, "B": setting.scaling * G @ A.T}
        moves = {}
        for name, g in gradients.items():
            if optimizer == "sgd":
                moves[name] = g
                continue
            m, v = averages[name]
            averages[name] = m, v = [0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2]
            root = np.sqrt(v / (1 - 0.99**step))
            moves[name] = np.divide(m / (1 - 0.9**step), root, out=np.zeros_like(g), where=root > 0)
        A, B = A - setting.rate_a * moves["A"], B - setting.rate_b * moves["B"]
    return setting.scaling * B @ A


SETTINGS = {"sgd": Setting(1.5, 0.002, 0.003, 0.5), "adam": Setting(1.5, 0.01, 0.02, 0.5)}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("p", "q"), [(3.0, 0.7), (1.0, 5.0), (0.2, 1.0)])
def test_equivalent_settings_train_alike(optimizer, p, q):
    setting = SETTINGS[optimizer]
    update = trained_update(setting, optimizer)
    moved = trained_update(equivalent_setting(setting, p, q, optimizer), optimizer)
    assert np.linalg.norm(update) > 0.1
    np.testing.assert_allclose(moved, update, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("optimizer", "other"), [("sgd", "adam"), ("adam", "sgd")])
def test_the_map_of_the_other_optimizer_trains_differently(optimizer, other):
    setting = SETTINGS[optimizer]
    update = trained_update(setting, optimizer)
    moved = trained_update(equivalent_setting(setting, 2.0, 2.0, other), optimizer)
    assert np.linalg.norm(moved - update) > 0.05 * np.linalg.norm(update)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_settings_with_the_same_knobs_are_mapped_onto_each_other(optimizer):
    first, n = Setting(1.5, 0.002, 0.003, 0.5), {"sgd": 2, "adam": 1}[optimizer]
    slope, speed = knobs(first, optimizer)
    second = Setting(7.0, speed * 1.3**n, slope / (7.0 * 1.3) ** n, 1.3)
    p = second.start / first.start
    found = equivalent_setting(first, p, first.scaling / (second.scaling * p), optimizer)
    for name in ("scaling", "rate_a", "rate_b", "start"):
        assert math.isclose(getattr(found, name), getattr(second, name))


def test_what_is_not_above_zero_is_refused():
    setting = Setting(2.0, 0.1, 0.1)
    for p, q in ((0.0, 1.0), (1.0, -2.0), (math.nan, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="must be a finite number above 0"):
            equivalent_setting(setting, p, q, "sgd")
    with pytest.raises(ValueError, match="rate_b must be a finite number above 0, got 0"):
        Setting(2.0, 0.1, 0.0)


@pytest.mark.parametrize(
    "function", [lambda name: equivalent_setting(Setting(2.0, 0.1, 0.1), 2.0, 2.0, name), lambda name: knobs(Setting(2.0, 0.1, 0.1), name)]
)
def test_another_optimizer_is_refused(function):
    with pytest.raises(ValueError, match="must be sgd or adam, got 'lion'"):
        function("lion")
