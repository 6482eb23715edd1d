"""Starts of A, against PyTorch's own rules and the moments that theory gives."""

import math

import pytest
import torch

from lorabook.adapters.inits import INITS, gaussian, kaiming

RANK, IN_FEATURES = 60, 300
COUNT = RANK * IN_FEATURES


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_kaiming_is_pytorchs_kaiming_uniform_with_a_of_root_five():
    expected = torch.nn.init.kaiming_uniform_(torch.empty(RANK, IN_FEATURES), a=math.sqrt(5), generator=seeded())
    torch.testing.assert_close(kaiming(RANK, IN_FEATURES, seeded()), expected)


def test_kaiming_fills_its_interval_and_never_leaves_it():
    bound = 1 / math.sqrt(IN_FEATURES)
    A = kaiming(RANK, IN_FEATURES, seeded())
    assert A.abs().max() <= bound
    assert A.max() > 0.99 * bound
    assert A.min() < -0.99 * bound


@pytest.mark.parametrize(
    ("init", "deviation", "kurtosis"),
    [(kaiming, 1 / math.sqrt(3 * IN_FEATURES), 9 / 5), (gaussian, 1 / RANK, 3)],
)
def test_mean_and_standard_deviation_agree_with_theory(init, deviation, kurtosis):
    A = init(RANK, IN_FEATURES, seeded()).double()
    assert abs(A.mean().item()) < 5 * deviation / math.sqrt(COUNT)
    # The relative standard error of a sample deviation is sqrt((kurtosis - 1) / 4n).
    assert A.std().item() == pytest.approx(deviation, rel=5 * math.sqrt((kurtosis - 1) / (4 * COUNT)))


@pytest.mark.parametrize("init", INITS.values(), ids=INITS)
def test_a_generator_alone_decides_the_numbers(init):
    state = torch.get_rng_state()
    first = init(3, 8, seeded(7))
    assert (first.shape, first.dtype) == ((3, 8), torch.float32)
    assert torch.equal(init(3, 8, seeded(7)), first)
    assert not torch.equal(init(3, 8, seeded(8)), first)
    assert torch.equal(torch.get_rng_state(), state)
