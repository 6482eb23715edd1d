"""Factorizing by learning, against autograd, NumPy's SVD and brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorabook.factorize import (
    factorization_gradients,
    factorization_loss,
    factorize_by_alternating_least_squares,
    factorize_by_gradient_descent,
)

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9)).filter(lambda shape: shape[0] != shape[1])
seeds = st.integers(0, 2**32 - 1)


def problem(shape, rank, seed, dtype=torch.float64):
    """A target and two factors, all random."""
    generator = torch.Generator().manual_seed(seed)
    d, k = shape
    return tuple(torch.randn(size, generator=generator, dtype=dtype) for size in ((d, k), (rank, k), (d, rank)))


def with_spectrum(d, k, values, seed=0):
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(d, len(values), generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(k, len(values), generator=generator, dtype=torch.float64)).Q
    return (u * torch.tensor(values, dtype=torch.float64)) @ v.T


def least_error(W, rank):
    """The Frobenius error that no product of this rank goes below, from NumPy's SVD."""
    return math.sqrt(np.sum(np.linalg.svd(W.numpy(), compute_uv=False)[rank:] ** 2))


@given(shapes, seeds, st.integers(1, 12))
def test_loss_is_half_the_sum_of_squared_differences(shape, seed, rank):
    W, A, B = problem(shape, rank, seed)
    expected = 0.5 * np.linalg.norm(B.numpy() @ A.numpy() - W.numpy()) ** 2
    assert factorization_loss(W, A, B).item() == pytest.approx(expected, rel=1e-12)


@given(shapes, seeds, st.integers(1, 12))
def test_gradients_agree_with_autograd(shape, seed, rank):
    W, A, B = problem(shape, rank, seed)
    A, B = A.requires_grad_(), B.requires_grad_()
    expected = torch.autograd.grad(factorization_loss(W, A, B), (A, B))
    for computed, automatic in zip(factorization_gradients(W, A.detach(), B.detach()), expected, strict=True):
        torch.testing.assert_close(computed, automatic, rtol=1e-12, atol=1e-12)


def test_the_loss_passes_gradcheck():
    W, A, B = problem((5, 7), 3, seed=0)
    assert torch.autograd.gradcheck(lambda A, B: factorization_loss(W, A, B), (A.requires_grad_(), B.requires_grad_()))


@given(shapes, seeds, st.integers(1, 12))
def test_gradients_agree_with_finite_differences(shape, seed, rank):
    W, A, B = problem(shape, rank, seed)
    _, change_A, change_B = problem(shape, rank, seed + 1)
    h = 1e-5
    up, down = (factorization_loss(W, A + sign * h * change_A, B + sign * h * change_B) for sign in (1, -1))
    grad_A, grad_B = factorization_gradients(W, A, B)
    slope = ((grad_A * change_A).sum() + (grad_B * change_B).sum()).item()
    assert ((up - down) / (2 * h)).item() == pytest.approx(slope, rel=1e-5, abs=1e-5)


@given(shapes, seeds, st.integers(1, 12))
def test_both_factors_zero_are_stationary_and_one_is_not(shape, seed, rank):
    W, A, B = problem(shape, rank, seed)
    assert not any(gradient.any() for gradient in factorization_gradients(W, 0 * A, 0 * B))
    grad_A, grad_B = factorization_gradients(W, A, 0 * B)
    assert not grad_A.any()
    torch.testing.assert_close(grad_B, -W @ A.T)


@given(shapes, seeds, st.integers(0, 5))
def test_gradient_descent_takes_the_steps_of_torch_sgd(shape, seed, steps):
    W, A, B = problem(shape, 2, seed)
    run = factorize_by_gradient_descent(W, A, B, learning_rate=0.01, steps=steps)
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    optimizer = torch.optim.SGD([A, B], lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (B @ A - W).square().sum() / 2
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    torch.testing.assert_close(run.A, A.detach())
    torch.testing.assert_close(run.B, B.detach())
    assert run.losses[:-1].tolist() == pytest.approx(losses)
    assert run.losses[-1].item() == factorization_loss(W, run.A, run.B).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "k"), [(12, 8), (8, 12)])
def test_all_ways_reach_the_error_of_the_svd(d, k, dtype):
    W = with_spectrum(d, k, [5.0, 3.0, 2.0, 1.0, 0.5])
    generator = torch.Generator().manual_seed(1)
    A, B = torch.randn(3, k, generator=generator, dtype=dtype), torch.randn(d, 3, generator=generator, dtype=dtype)
    descended = factorize_by_gradient_descent(W.to(dtype), 0.1 * A, 0 * B, learning_rate=0.1, steps=400)
    alternated = factorize_by_alternating_least_squares(W.to(dtype), B, sweeps=20)
    for run in (descended, alternated):
        error = torch.linalg.norm(run.product.double() - W).item()
        assert error == pytest.approx(least_error(W, 3), rel=1e-4)
        assert run.A.dtype == run.B.dtype == dtype


@given(shapes, seeds, st.data())
def test_no_way_goes_below_the_error_of_the_svd(shape, seed, data):
    rank = data.draw(st.integers(1, min(shape)))
    W, A, B = problem(shape, rank, seed)
    least = least_error(W, rank) ** 2 / 2
    descended = factorize_by_gradient_descent(W, A, 0 * B, learning_rate=0.01, steps=20)
    alternated = factorize_by_alternating_least_squares(W, B, sweeps=5)
    assert min(descended.losses.min(), alternated.losses.min()) >= least - 1e-10


@given(shapes, seeds, st.integers(1, 12))
def test_alternating_least_squares_never_raises_the_loss(shape, seed, rank):
    W, _, B = problem(shape, rank, seed)
    losses = factorize_by_alternating_least_squares(W, B, sweeps=6).losses
    assert len(losses) == 7
    assert (losses.diff() <= 1e-10 * W.square().sum()).all()


@given(shapes, seeds, st.integers(1, 12))
def test_each_half_of_a_sweep_is_numpys_least_squares(shape, seed, rank):
    W, _, B = problem(shape, rank, seed)
    run = factorize_by_alternating_least_squares(W, B, sweeps=1)
    A = np.linalg.lstsq(B.numpy(), W.numpy(), rcond=None)[0]
    B = np.linalg.lstsq(A.T, W.numpy().T, rcond=None)[0].T
    A = np.linalg.lstsq(B, W.numpy(), rcond=None)[0]
    np.testing.assert_allclose(run.product, B @ A, atol=1e-7)


def test_neither_way_leaves_zero():
    W, A, B = problem((6, 4), 2, seed=0)
    for run in (
        factorize_by_gradient_descent(W, 0 * A, 0 * B, learning_rate=0.1, steps=50),
        factorize_by_alternating_least_squares(W, 0 * B, sweeps=5),
    ):
        assert not run.product.any()
        assert (run.losses == W.square().sum() / 2).all()


def test_factors_with_more_pairs_than_the_rank_find_the_matrix_itself():
    W = with_spectrum(9, 6, [3.0, 2.0])
    generator = torch.Generator().manual_seed(2)
    A = 0.1 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    descended = factorize_by_gradient_descent(W, A, torch.zeros(9, 4, dtype=torch.float64), learning_rate=0.2, steps=200)
    alternated = factorize_by_alternating_least_squares(W, torch.randn(9, 4, generator=generator, dtype=torch.float64), sweeps=2)
    torch.testing.assert_close(descended.product, W)
    torch.testing.assert_close(alternated.product, W)


def test_callers_tensors_stay_as_they_are():
    W, A, B = problem((6, 4), 2, seed=0)
    before = W.clone(), A.clone(), B.clone()
    run = factorize_by_gradient_descent(W, A.requires_grad_(), B.requires_grad_(), learning_rate=0.01, steps=3)
    still = factorize_by_gradient_descent(W, A, B, learning_rate=0.01, steps=0)
    factorize_by_alternating_least_squares(W, B, sweeps=1)
    still.A.zero_()
    assert all(torch.equal(now, then) for now, then in zip((W, A, B), before, strict=True))
    assert not run.A.requires_grad
    assert not run.B.requires_grad


@pytest.mark.parametrize(("share", "stays"), [(0.95, True), (1.05, False)])
def test_the_minimum_is_stable_up_to_one_over_the_largest_singular_value(share, stays):
    W = with_spectrum(7, 5, [4.0, 2.0, 1.0])
    u, s, vh = np.linalg.svd(W.numpy(), full_matrices=False)
    generator = torch.Generator().manual_seed(3)
    A = torch.from_numpy(np.sqrt(s[:2])[:, None] * vh[:2]) + 1e-3 * torch.randn(2, 5, generator=generator, dtype=torch.float64)
    B = torch.from_numpy(u[:, :2] * np.sqrt(s[:2])) + 1e-3 * torch.randn(7, 2, generator=generator, dtype=torch.float64)
    run = factorize_by_gradient_descent(W, A, B, learning_rate=share / 4.0, steps=500)
    excess = run.losses[-1].item() - least_error(W, 2) ** 2 / 2
    assert (excess < 1e-6) == stays


def test_an_overflow_is_an_error_that_names_the_limit():
    W = with_spectrum(7, 5, [4.0, 2.0, 1.0])
    with pytest.raises(ValueError, match=r"overflowed at step \d+ with learning_rate 10; try below 1 / sigma_1 = 0\.25"):
        factorize_by_gradient_descent(W, torch.ones(2, 5).double(), torch.zeros(7, 2).double(), learning_rate=10, steps=50)


BAD_FACTORS = {
    "swapped": ((6, 2), (2, 4)),
    "inner sizes differ": ((2, 4), (6, 3)),
    "outputs differ": ((2, 4), (5, 2)),
    "inputs differ": ((2, 5), (6, 2)),
    "no pairs": ((0, 4), (6, 0)),
    "a vector": ((4,), (6, 1)),
}


@pytest.mark.parametrize(("shape_A", "shape_B"), BAD_FACTORS.values(), ids=BAD_FACTORS)
def test_factors_that_do_not_multiply_to_the_target_are_refused(shape_A, shape_B):
    W, A, B = torch.ones(6, 4), torch.ones(shape_A), torch.ones(shape_B)
    for call in (
        lambda: factorization_loss(W, A, B),
        lambda: factorization_gradients(W, A, B),
        lambda: factorize_by_gradient_descent(W, A, B, learning_rate=0.1, steps=1),
    ):
        with pytest.raises(ValueError, match=r"B @ A must have the shape of W: B \(d, r\), A \(r, k\), W \(d, k\); got B \("):
            call()


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float16, torch.float16), (torch.int64, torch.int64)])
def test_mixed_and_narrow_dtypes_are_refused(dtypes):
    W, A, B = torch.ones(6, 4, dtype=dtypes[0]), torch.ones(2, 4, dtype=dtypes[1]), torch.ones(6, 2, dtype=dtypes[0])
    with pytest.raises(ValueError, match="need one dtype, float32 or float64"):
        factorization_loss(W, A, B)


def test_senseless_settings_are_refused():
    W, A, B = problem((6, 4), 2, seed=0)
    with pytest.raises(ValueError, match="learning_rate must be positive, got 0"):
        factorize_by_gradient_descent(W, A, B, learning_rate=0, steps=1)
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        factorize_by_gradient_descent(W, A, B, learning_rate=0.1, steps=-1)
    with pytest.raises(ValueError, match="sweeps must be at least 1, got 0"):
        factorize_by_alternating_least_squares(W, B, sweeps=0)
    with pytest.raises(ValueError, match="must have the shape of W"):
        factorize_by_alternating_least_squares(W, B.T, sweeps=1)
