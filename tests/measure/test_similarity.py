"""Where a change points: against NumPy, against projections without an SVD, and against averages over many draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabook.measure.similarity import (
    amplification_factor,
    closest_cosines,
    intruder_dimensions,
    projected_norm,
    random_similarity,
    subspace_similarity,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_grid_is_the_papers_formula_cell_by_cell():
    first, second = draw(5, 12, seed=1), draw(7, 12, seed=2)
    grid = subspace_similarity(first, second)
    _, _, v = np.linalg.svd(first.numpy())
    _, _, w = np.linalg.svd(second.numpy())
    assert grid.shape == (5, 7)
    for i in range(1, 6):
        for j in range(1, 8):
            expected = np.linalg.norm(v[:i] @ w[:j].T, "fro") ** 2 / min(i, j)
            assert grid[i - 1, j - 1].item() == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 6), st.integers(7, 15))
def test_the_last_cell_depends_on_the_row_spaces_alone(seed, p, q, k):
    first, second = draw(p, k, seed=seed), draw(q, k, seed=seed + 1)
    mixed = draw(p, p, seed=seed + 2) + 3 * torch.eye(p, dtype=torch.float64)
    grid = subspace_similarity(first, second, (p, q))
    assert 0 <= grid.min() <= grid.max() <= 1 + 1e-9
    if np.linalg.cond(mixed.numpy()) < 1e4:
        moved = subspace_similarity(mixed @ first, second, (p, q))
        assert moved[-1, -1].item() == pytest.approx(grid[-1, -1].item(), abs=1e-6)
    projection = [np.linalg.pinv(m.numpy()) @ m.numpy() for m in (first, second)]  # onto the row spaces, with no SVD of ours
    assert grid[-1, -1].item() == pytest.approx(np.trace(projection[0] @ projection[1]) / min(p, q), abs=1e-6)


def test_an_orthogonal_mixture_of_the_rows_changes_no_cell():
    first, second = draw(5, 12, seed=1), draw(7, 12, seed=2)
    turned = torch.linalg.qr(draw(5, 5, seed=3)).Q @ first
    torch.testing.assert_close(subspace_similarity(turned, second), subspace_similarity(first, second))


def test_an_invertible_mixture_of_the_rows_can_swap_single_directions():
    first = torch.diag(torch.tensor([2.0, 1.0, 0.0]))[:2]
    mixed = torch.diag(torch.tensor([1.0, 4.0])) @ first
    grid = subspace_similarity(first, mixed)
    torch.testing.assert_close(grid, torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64))


def test_contained_and_orthogonal_subspaces_give_one_and_zero():
    identity = torch.eye(9)
    assert subspace_similarity(identity[:2], identity[:5])[-1, -1].item() == pytest.approx(1.0)
    assert subspace_similarity(identity[:2], identity[4:])[-1, -1].item() == pytest.approx(0.0)


@pytest.mark.parametrize(("i", "j"), [(1, 1), (2, 9), (6, 3)])
def test_random_subspaces_have_the_predicted_mean(i, j):
    k, draws = 20, 600
    mean = np.mean([subspace_similarity(draw(i, k, seed=s), draw(j, k, seed=10_000 + s))[-1, -1].item() for s in range(draws)])
    assert mean == pytest.approx(random_similarity(i, j, k), abs=0.02)


def test_directions_beyond_the_rank_are_refused():
    low = draw(6, 2, seed=1) @ draw(2, 9, seed=2)
    assert subspace_similarity(low, draw(4, 9)).shape == (2, 4)
    with pytest.raises(ValueError, match="a matrix of rank 2 has that many directions, got 3"):
        subspace_similarity(low, draw(4, 9), (3, 4))
    with pytest.raises(ValueError, match="rank 0"):
        subspace_similarity(torch.zeros(4, 9), draw(4, 9))
    with pytest.raises(ValueError, match="number of columns"):
        subspace_similarity(draw(4, 8), draw(4, 9))
    with pytest.raises(ValueError, match=r"1\.\.8"):
        random_similarity(0, 3, 8)


def test_the_projected_norm_is_that_of_the_papers_product():
    weight, change = draw(11, 7, seed=1), draw(11, 3, seed=2) @ draw(3, 7, seed=3)
    u, _, vh = np.linalg.svd(change.numpy(), full_matrices=False)
    expected = np.linalg.norm(u[:, :3].T @ weight.numpy() @ vh[:3].T, "fro")
    assert projected_norm(weight, change, 3) == pytest.approx(expected)
    assert amplification_factor(weight, change) == pytest.approx(np.linalg.norm(change.numpy()) / expected)


def test_a_weight_is_largest_in_its_own_directions():
    weight = draw(11, 7, seed=1)
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    assert projected_norm(weight, weight, 4) == pytest.approx(np.sqrt((values[:4] ** 2).sum()))
    assert all(projected_norm(weight, draw(11, 7, seed=s), 4) < projected_norm(weight, weight, 4) for s in range(2, 30))


def test_in_random_directions_a_weight_has_the_predicted_mean_square():
    d, k, r = 24, 15, 3
    weight = draw(d, k, seed=1)
    squares = [projected_norm(weight, draw(d, k, seed=s), r) ** 2 for s in range(2, 600)]
    assert np.mean(squares) == pytest.approx(float(weight.norm()) ** 2 * r**2 / (d * k), rel=0.05)


def test_amplification_has_no_scale_of_its_own_but_that_of_the_change():
    weight, change = draw(11, 7, seed=1), draw(11, 2, seed=2) @ draw(2, 7, seed=3)
    factor = amplification_factor(weight, change)
    assert amplification_factor(weight, 5 * change) == pytest.approx(5 * factor)
    assert amplification_factor(5 * weight, change) == pytest.approx(factor / 5)
    assert amplification_factor(torch.zeros_like(weight), change) == float("inf")
    with pytest.raises(ValueError, match="rank 2"):
        amplification_factor(weight, change, 3)
    with pytest.raises(ValueError, match="shapes must agree"):
        projected_norm(weight, change.T, 1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_cosines_are_those_of_all_pairs(side):
    before, after = draw(9, 6, seed=1), draw(9, 6, seed=2)
    if side == "right":
        before, after = before.T.contiguous(), after.T.contiguous()  # the right vectors of the transpose are the left ones
    found = closest_cosines(before, after, 4, side=side)
    old, new = (np.linalg.eigh((m @ m.T if side == "left" else m.T @ m).numpy())[1][:, ::-1] for m in (before, after))
    expected = np.abs(old[:, :6].T @ new[:, :4]).max(axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert intruder_dimensions(before, after, count=4, threshold=0.7, side=side) == (expected < 0.7).sum()


def test_a_change_along_the_weights_own_directions_brings_no_intruder():
    weight = draw(9, 6, seed=1)
    u, values, vh = torch.linalg.svd(weight, full_matrices=False)
    after = (u * (values + torch.tensor([0.0, 9.0, 0.0, 7.0, 0.0, 0.0]))) @ vh
    assert intruder_dimensions(weight, after, count=6, threshold=0.999) == 0


def test_a_strong_direction_outside_the_weights_column_space_is_an_intruder():
    before = torch.zeros(9, 6, dtype=torch.float64)
    before[:6] = torch.diag(torch.arange(6.0, 0.0, -1.0, dtype=torch.float64))
    after = before.clone()
    after[8, 5] = 20.0  # an output that W never writes
    assert intruder_dimensions(before, after, count=3) == 1
    assert closest_cosines(before, after, 1).item() == pytest.approx(1 / np.sqrt(20**2 + 1))  # its column holds W's 1 as well
    assert closest_cosines(before, after, 1, side="right").item() == pytest.approx(1.0, abs=1e-3)


def test_what_cannot_be_compared_is_refused():
    weight = draw(9, 6)
    with pytest.raises(ValueError, match=r"count must be 1\.\.6 for a 9x6 weight, got 7"):
        closest_cosines(weight, weight, 7)
    with pytest.raises(ValueError, match="left or right"):
        closest_cosines(weight, weight, 2, side="both")
    with pytest.raises(ValueError, match="shapes must agree"):
        intruder_dimensions(weight, weight.T, count=2)
    with pytest.raises(ValueError, match=r"threshold must be 0\.\.1"):
        intruder_dimensions(weight, weight, count=2, threshold=1.5)
