"""Settings of LoRA that train alike: which changes of alpha, learning rates and start cancel. It trains nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

_POWERS = {"sgd": 2, "adam": 1}  # of p and q in the learning rates


@dataclass(frozen=True)
class Setting:
    r"""The four numbers that decide a run of LoRA once rank, data, seed and number of steps are fixed.

    Args:
        scaling: s, :math:`\alpha / r` unless said otherwise.
        rate_a: learning rate of A.
        rate_b: learning rate of B.
        start: the factor by which the drawn :math:`A_0` is multiplied; 1 leaves it as it was drawn.

    Raises:
        ValueError: a number that is not finite and above 0.

    Chapter: alpha, rank and the learning rate.

    Example:
        >>> Setting(scaling=2.0, rate_a=0.01, rate_b=0.01).start
        1.0
    """

    scaling: float
    rate_a: float
    rate_b: float
    start: float = 1.0

    def __post_init__(self) -> None:
        for name in ("scaling", "rate_a", "rate_b", "start"):
            _check_positive(name, getattr(self, name))


def equivalent_setting(setting: Setting, p: float, q: float, optimizer: str) -> Setting:
    r"""Another setting that trains exactly alike: at every step A is p times and B is q times what it was, and :math:`\Delta W` the same.

    .. math:: (s,\ \eta_A,\ \eta_B,\ A_0) \equiv \left(\tfrac{s}{pq},\ p^n \eta_A,\ q^n \eta_B,\ p A_0\right), \qquad
        n = 2 \text{ for SGD},\ n = 1 \text{ for Adam}

    It holds with :math:`B_0 = 0`, for every loss, and in exact arithmetic. Adam's epsilon must be negligible; weight decay and
    clipping of the gradient's norm break it.

    Args:
        setting: the one to start from.
        p: factor on A, above 0.
        q: factor on B, above 0.
        optimizer: "sgd" (with or without momentum) or "adam".

    Raises:
        ValueError: p or q not above 0, another optimizer.

    Source: Schulman et al. 2025 (LoRA Without Regret) for Adam.
    Chapter: alpha, rank and the learning rate.

    Example:
        >>> setting = Setting(scaling=2.0, rate_a=0.5, rate_b=0.5)
        >>> equivalent_setting(setting, 2.0, 4.0, "adam")
        Setting(scaling=0.25, rate_a=1.0, rate_b=2.0, start=2.0)
        >>> equivalent_setting(setting, 2.0, 4.0, "sgd")
        Setting(scaling=0.25, rate_a=2.0, rate_b=8.0, start=2.0)
    """
    _check_positive("p", p)
    _check_positive("q", q)
    n = _power(optimizer)
    return Setting(setting.scaling / (p * q), p**n * setting.rate_a, q**n * setting.rate_b, p * setting.start)


def knobs(setting: Setting, optimizer: str) -> tuple[float, float]:
    r"""The two numbers that equivalent settings share: all that is left to choose.

    .. math:: (s\, a)^n\, \eta_B \quad\text{and}\quad \eta_A / a^n, \qquad n = 2 \text{ for SGD},\ n = 1 \text{ for Adam}

    with a the size of :math:`A_0`. The first says how far the first step moves :math:`\Delta W`, the second how fast A leaves its
    start, as a part of its size. Two settings that share both are equivalent.

    Args:
        setting: any.
        optimizer: "sgd" or "adam".

    Returns:
        The initial slope and the speed of A.

    Raises:
        ValueError: another optimizer.

    Source: Schulman et al. 2025 (LoRA Without Regret) for Adam.
    Chapter: alpha, rank and the learning rate.

    Example:
        >>> knobs(Setting(scaling=2.0, rate_a=0.5, rate_b=0.25), "adam")
        (0.5, 0.5)
        >>> knobs(equivalent_setting(Setting(2.0, 0.5, 0.25), 2.0, 4.0, "adam"), "adam")
        (0.5, 0.5)
    """
    n = _power(optimizer)
    return (setting.scaling * setting.start) ** n * setting.rate_b, setting.rate_a / setting.start**n


def _power(optimizer: str) -> int:
    if optimizer not in _POWERS:
        raise ValueError(f"optimizer must be sgd or adam, got {optimizer!r}")
    return _POWERS[optimizer]


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
