"""Seeds and devices; the global generators are put back after each test."""

import random

import numpy as np
import pytest
import torch

from lorabook import best_device, seed_everything


def states():
    return random.getstate(), np.random.get_state(legacy=True)[1].tolist(), torch.get_rng_state().tolist()


def draws():
    return random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()


@pytest.fixture(autouse=True)
def restored_generators():
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(pytorch)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, np.int64(7), np.uint32(2**32 - 1)])
def test_a_seed_repeats_what_all_three_libraries_draw(seed):
    generator = seed_everything(seed)
    first = draws()
    assert torch.rand(3, generator=generator).tolist() == first[2]
    seed_everything(seed)
    assert draws() == first


def test_different_seeds_draw_different_numbers_in_every_library():
    drawn = []
    for seed in (0, 1, 2**32 - 1):
        seed_everything(seed)
        drawn.append(draws())
    for library in zip(*drawn, strict=True):
        assert len(set(map(str, library))) == 3


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (-1, ValueError, r"a seed is 0\.\.4294967295, got -1: take it modulo 2\*\*32"),
        (2**32, ValueError, r"a seed is 0\.\.4294967295, got 4294967296: take it modulo"),
        (1.5, TypeError, r"a seed is an integer, got 1\.5"),
        (2.0, TypeError, r"a seed is an integer, got 2\.0"),
        (True, TypeError, "a seed is an integer, got True"),
        (np.True_, TypeError, "a seed is an integer"),
        ("3", TypeError, "a seed is an integer, got '3'"),
        (None, TypeError, "a seed is an integer, got None"),
    ],
)
def test_what_is_no_seed_is_refused_and_nothing_is_seeded(seed, error, message):
    before = states()
    with pytest.raises(error, match=message):
        seed_everything(seed)
    assert states() == before


def test_the_returned_generator_is_independent_of_the_global_one():
    generator = seed_everything(5)
    torch.rand(10, generator=generator)
    first = torch.rand(3)
    seed_everything(5)
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_best_device_is_the_fastest_there_is(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device() == torch.device(expected)
