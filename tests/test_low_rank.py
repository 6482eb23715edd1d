"""Rank and the SVD, against NumPy and brute force."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorabook.low_rank import (
    break_even_rank,
    effective_rank,
    energy,
    factor_storage,
    low_rank_approximation,
    numerical_rank,
    randomized_svd,
    relative_error,
    truncated_svd,
)

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12)).filter(lambda shape: shape[0] != shape[1])
seeds = st.integers(0, 2**32 - 1)
spectra = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12).map(lambda values: sorted(values, reverse=True))


def random_matrix(d, k, seed, dtype=torch.float64):
    return torch.randn(d, k, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_product(d, k, rank, seed, dtype=torch.float64):
    return random_matrix(d, rank, seed, dtype) @ random_matrix(rank, k, seed + 1, dtype)


@given(shapes, seeds, st.data())
def test_a_product_of_random_factors_has_the_rank_of_its_factors(shape, seed, data):
    rank = data.draw(st.integers(1, min(shape)))
    matrix = random_product(*shape, rank, seed)
    assert numerical_rank(matrix) == np.linalg.matrix_rank(matrix.numpy()) == rank


@given(shapes, seeds, st.sampled_from([torch.float32, torch.float64]), st.data())
def test_rank_agrees_with_numpy_in_both_precisions(shape, seed, dtype, data):
    matrix = random_product(*shape, data.draw(st.integers(1, min(shape))), seed, dtype)
    tolerance = max(shape) * np.finfo(matrix.numpy().dtype).eps * np.linalg.svd(matrix.numpy(), compute_uv=False)[0]
    assert numerical_rank(matrix) == np.linalg.matrix_rank(matrix.numpy(), tol=tolerance)


@given(shapes, seeds, st.data(), st.integers(-30, 30))
def test_rank_ignores_scale_and_transposition(shape, seed, data, exponent):
    matrix = random_product(*shape, data.draw(st.integers(1, min(shape))), seed)
    assert numerical_rank(matrix) == numerical_rank(matrix.T) == numerical_rank(2.0**exponent * matrix)


def test_the_zero_matrix_has_rank_zero():
    assert numerical_rank(torch.zeros(3, 5)) == 0


def test_a_singular_value_at_the_tolerance_does_not_count():
    matrix = torch.zeros(2, 3, dtype=torch.float64)
    matrix[0, 0], matrix[1, 1] = 4.0, 1.0
    assert numerical_rank(matrix, relative_tolerance=0.25) == 1
    assert numerical_rank(matrix, relative_tolerance=math.nextafter(0.25, 0)) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("share", "rank"), [(0.9, 1), (1.1, 2)])
def test_the_tolerance_is_by_default_the_longer_side_times_epsilon(dtype, share, rank):
    matrix = torch.zeros(2, 9, dtype=dtype)
    matrix[0, 0], matrix[1, 1] = 1.0, share * 9 * torch.finfo(dtype).eps
    assert numerical_rank(matrix) == np.linalg.matrix_rank(matrix.numpy()) == rank


@given(shapes, seeds, st.data())
def test_truncated_svd_holds_the_leading_singular_triples(shape, seed, data):
    rank = data.draw(st.integers(1, min(shape)))
    matrix = random_matrix(*shape, seed)
    u, values, vh = truncated_svd(matrix, rank)
    assert (u.shape, values.shape, vh.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))
    np.testing.assert_allclose(values, np.linalg.svd(matrix.numpy(), compute_uv=False)[:rank], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=1e-12)
    np.testing.assert_allclose(vh @ vh.T, np.eye(rank), atol=1e-12)
    np.testing.assert_allclose(matrix @ vh.T, u * values, atol=1e-12)


def matrix_with(values, d, k, seed):
    """A d x k matrix with the given singular values, and its leading left singular vectors as columns."""
    n = min(d, k)
    u, _ = np.linalg.qr(random_matrix(d, n, seed).numpy())
    v, _ = np.linalg.qr(random_matrix(k, n, seed + 1).numpy())
    return torch.from_numpy((u * np.asarray(values)) @ v.T), u


@given(shapes, seeds, st.integers(0, 3), st.integers(0, 3), st.data())
def test_randomized_svd_has_the_form_of_an_svd(shape, seed, oversampling, iterations, data):
    rank = data.draw(st.integers(1, min(shape)))
    matrix = random_matrix(*shape, seed)
    options = {"oversampling": oversampling, "power_iterations": iterations}
    u, values, vh = randomized_svd(matrix, rank, **options, generator=torch.Generator().manual_seed(seed))
    assert (u.shape, values.shape, vh.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))
    np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=1e-12)
    np.testing.assert_allclose(vh @ vh.T, np.eye(rank), atol=1e-12)
    assert (values[:-1] >= values[1:]).all()
    # A basis shortens: no singular value can come out too large, and no error below the best.
    exact = np.linalg.svd(matrix.numpy(), compute_uv=False)
    assert (values.numpy() <= exact[:rank] + 1e-12).all()
    rest = (matrix - (u * values) @ vh).numpy()
    assert np.linalg.norm(rest) >= np.linalg.norm(exact[rank:]) - 1e-12
    assert np.linalg.norm(rest, 2) >= np.append(exact, 0)[rank] - 1e-12


@given(shapes, seeds, st.integers(0, 2), st.data())
def test_randomized_svd_is_exact_for_a_matrix_of_that_rank(shape, seed, iterations, data):
    rank = data.draw(st.integers(1, min(shape)))
    matrix, _ = matrix_with([2.0] * rank + [0.0] * (min(shape) - rank), *shape, seed)
    options = {"oversampling": 1, "power_iterations": iterations}
    u, values, vh = randomized_svd(matrix, rank, **options, generator=torch.Generator().manual_seed(seed))
    np.testing.assert_allclose((u * values) @ vh, matrix, atol=1e-7)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_randomized_svd_agrees_with_numpy_where_singular_values_fall_fast(shape):
    matrix, _ = matrix_with(0.5 ** np.arange(40), *shape, seed=3)
    u, values, vh = randomized_svd(matrix, 5, generator=torch.Generator().manual_seed(0))
    exact_u, exact_values, exact_vh = np.linalg.svd(matrix.numpy())
    np.testing.assert_allclose(values, exact_values[:5], rtol=1e-10)
    # Singular vectors are given up to a sign; the products u_i v_i^T are not.
    np.testing.assert_allclose((u * values) @ vh, (exact_u[:, :5] * exact_values[:5]) @ exact_vh[:5], atol=1e-10)


@pytest.mark.parametrize("oversampling", [2, 4, 8])
def test_mean_error_without_iterations_obeys_the_published_bound(oversampling):
    rank, d, k = 6, 60, 40
    values = 1 / np.sqrt(np.arange(1, 41))
    matrix, _ = matrix_with(values, d, k, seed=5)
    errors = []
    for seed in range(200):
        # All columns are kept, so that this is the error of the basis, which theorem 10.5 bounds.
        options = {"oversampling": 0, "power_iterations": 0}
        u, found, vh = randomized_svd(matrix, rank + oversampling, **options, generator=torch.Generator().manual_seed(seed))
        errors.append(np.linalg.norm((matrix - (u * found) @ vh).numpy()))
    bound = np.sqrt(1 + rank / (oversampling - 1)) * np.linalg.norm(values[rank:])
    assert np.mean(errors) <= bound


def test_iterations_bring_slowly_falling_singular_values_near_the_best():
    matrix, left = matrix_with(1 / np.sqrt(np.arange(1, 41)), 60, 40, seed=7)

    def found(iterations, seed):
        u, _, _ = randomized_svd(matrix, 4, power_iterations=iterations, generator=torch.Generator().manual_seed(seed))
        return np.linalg.norm(left[:, :4].T @ u.numpy()) ** 2 / 4

    shares = [np.mean([found(iterations, seed) for seed in range(20)]) for iterations in (0, 1, 2, 8)]
    assert shares == sorted(shares)
    assert shares[0] < 0.95 < 0.999 < shares[-1]


def test_power_iterations_survive_float32():
    # (W W^T)^8 would span 1e-32: taken as a power, it would keep one direction of the five.
    matrix, _ = matrix_with([1, 0.1, 1e-2, 1e-3, 1e-4] + [1e-6] * 15, 30, 20, seed=11)
    _, values, _ = randomized_svd(matrix.float(), 5, power_iterations=8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(values, [1, 0.1, 1e-2, 1e-3, 1e-4], rtol=1e-2)


def test_randomized_svd_depends_on_its_generator_alone():
    matrix = random_matrix(9, 7, seed=0)
    options = {"oversampling": 1, "power_iterations": 0}
    first, second, third = (randomized_svd(matrix, 2, **options, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.allclose(first, third)


@pytest.mark.parametrize(("name", "value"), [("oversampling", -1), ("power_iterations", -2)])
def test_negative_counts_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"must be at least 0, got .*{value}"):
        randomized_svd(torch.ones(3, 5), 1, **{name: value})


@given(shapes, seeds, st.data())
def test_low_rank_approximation_has_the_error_that_eckart_and_young_give(shape, seed, data):
    rank = data.draw(st.integers(1, min(shape)))
    matrix = random_matrix(*shape, seed)
    approximation = low_rank_approximation(matrix, rank)
    left_out = np.linalg.svd(matrix.numpy(), compute_uv=False)[rank:]
    distance = np.linalg.norm((matrix - approximation).numpy())
    assert np.linalg.matrix_rank(approximation.numpy()) <= rank
    np.testing.assert_allclose(distance, np.sqrt(np.sum(left_out**2)), atol=1e-12)


@given(shapes, seeds, st.data())
def test_no_competitor_of_the_same_rank_is_nearer(shape, seed, data):
    rank = data.draw(st.integers(1, min(shape)))
    matrix = random_matrix(*shape, seed)
    best = relative_error(matrix, low_rank_approximation(matrix, rank))
    # The competitor is as good as its column space allows: least squares on random columns.
    columns = random_matrix(shape[0], rank, seed + 1).numpy()
    competitor = columns @ np.linalg.lstsq(columns, matrix.numpy(), rcond=None)[0]
    assert best <= relative_error(matrix, torch.from_numpy(competitor)) + 1e-12


@given(shapes, seeds, st.data())
def test_relative_error_squared_is_one_minus_the_energy(shape, seed, data):
    rank = data.draw(st.integers(1, min(shape)))
    matrix = random_matrix(*shape, seed)
    share = energy(torch.linalg.svdvals(matrix))[rank - 1].item()
    error = relative_error(matrix, low_rank_approximation(matrix, rank))
    assert error**2 == pytest.approx(1 - share, abs=1e-12)


@given(shapes, seeds)
def test_relative_error_agrees_with_numpy(shape, seed):
    matrix, other = random_matrix(*shape, seed).numpy(), random_matrix(*shape, seed + 1).numpy()
    expected = np.linalg.norm(matrix - other) / np.linalg.norm(matrix)
    assert relative_error(torch.from_numpy(matrix), torch.from_numpy(other)) == pytest.approx(expected, rel=1e-12)


def test_zero_approximates_zero_without_error():
    assert relative_error(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


@given(spectra)
def test_energy_is_the_running_share_of_squares(values):
    shares = energy(torch.tensor(values, dtype=torch.float64)).tolist()
    total = math.fsum(value**2 for value in values)
    expected = [math.fsum(value**2 for value in values[: rank + 1]) / total for rank in range(len(values))]
    assert shares == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energy_is_float64_whatever_it_was_computed_from(dtype):
    assert energy(torch.tensor([2.0, 1.0], dtype=dtype)).dtype == torch.float64


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_shares_do_not_depend_on_the_unit(size):
    values = torch.tensor([4.0, 3.0], dtype=torch.float64)
    assert torch.allclose(energy(size * values), energy(values))
    assert effective_rank(size * values) == pytest.approx(effective_rank(values))


@given(st.integers(1, 40), st.integers(0, 5), st.floats(1e-3, 1e3))
def test_effective_rank_of_equal_singular_values_is_their_number(count, zeros, size):
    assert effective_rank(torch.tensor([size] * count + [0.0] * zeros)) == pytest.approx(count)


@given(spectra, st.integers(-20, 20))
def test_effective_rank_is_the_exponential_of_the_entropy(values, exponent):
    shares = [value / math.fsum(values) for value in values]
    expected = math.exp(-math.fsum(share * math.log(share) for share in shares))
    rank = effective_rank(torch.tensor(values, dtype=torch.float64))
    assert rank == pytest.approx(expected)
    assert 1 - 1e-9 <= rank <= len(values) + 1e-9
    assert effective_rank(2.0**exponent * torch.tensor(values, dtype=torch.float64)) == pytest.approx(rank)


@given(shapes)
def test_factors_save_exactly_below_the_break_even_rank(shape):
    d, k = shape
    for rank in range(1, min(shape) + 1):
        stored = torch.empty(d, rank).numel() + torch.empty(rank, k).numel()
        assert factor_storage(rank, d, k) == stored
        assert (stored < d * k) == (rank < break_even_rank(d, k))


BAD_MATRICES = {
    "vector": torch.ones(3),
    "batch": torch.ones(2, 3, 4),
    "empty": torch.ones(0, 3),
    "NaN": torch.tensor([[1.0, float("nan")]]),
    "infinity": torch.tensor([[1.0, float("inf")]]),
}


@pytest.mark.parametrize("matrix", BAD_MATRICES.values(), ids=BAD_MATRICES)
@pytest.mark.parametrize(
    "function", [numerical_rank, *(partial(f, rank=1) for f in (truncated_svd, randomized_svd, low_rank_approximation))]
)
def test_what_is_no_finite_matrix_is_refused(function, matrix):
    with pytest.raises(ValueError, match=r"need a matrix of finite numbers, got shape \("):
        function(matrix)


@pytest.mark.parametrize("rank", [-1, 0, 4])
@pytest.mark.parametrize("function", [truncated_svd, randomized_svd, low_rank_approximation])
def test_a_rank_outside_its_range_is_refused_with_the_range(function, rank):
    with pytest.raises(ValueError, match=rf"rank must be 1\.\.3 for a 3x5 matrix, got {rank}"):
        function(torch.ones(3, 5), rank)


@pytest.mark.parametrize("function", [energy, effective_rank])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 2.0]], "vector of finite numbers"),
        ([1.0, float("nan")], "vector of finite numbers"),
        ([float("inf"), 1.0], "vector of finite numbers"),
        ([1.0, -1.0], "at least 0"),
        ([0.0, 0.0], "all singular values are zero"),
        ([], "all singular values are zero"),
    ],
)
def test_what_is_no_spectrum_is_refused(function, values, message):
    with pytest.raises(ValueError, match=message):
        function(torch.tensor(values))


def test_errors_of_comparison_name_the_rule():
    with pytest.raises(ValueError, match=r"relative_tolerance must be at least 0, got -0.5"):
        numerical_rank(torch.ones(2, 3), relative_tolerance=-0.5)
    with pytest.raises(ValueError, match=r"shapes must agree, got \(2, 3\) and \(3, 2\)"):
        relative_error(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match="not defined for a zero matrix"):
        relative_error(torch.zeros(2, 3), torch.ones(2, 3))
