"""Rank, the singular value decomposition, and how well few dimensions stand for many. Tensors in, tensors out; no network."""

from __future__ import annotations

import torch
from torch import Tensor


def numerical_rank(matrix: Tensor, *, relative_tolerance: float | None = None) -> int:
    r"""Number of singular values above a tolerance: :math:`\#\{i : \sigma_i > \tau \sigma_1\}`.

    Args:
        matrix: (d, k).
        relative_tolerance: :math:`\tau`; max(d, k) times the dtype's machine epsilon when None, as in NumPy and MATLAB.

    Returns:
        The rank that the matrix has in the precision of its numbers.

    Raises:
        ValueError: not a matrix, not finite, or a negative tolerance.

    Source: Golub and Van Loan, Matrix Computations, section 5.4.
    Chapter: Rank.

    Example:
        >>> u, v = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[4.0, 5.0]])
        >>> numerical_rank(u @ v)
        1
    """
    _check_matrix(matrix)
    singular_values = torch.linalg.svdvals(matrix)
    if relative_tolerance is None:
        relative_tolerance = max(matrix.shape) * torch.finfo(singular_values.dtype).eps
    if not relative_tolerance >= 0:
        raise ValueError(f"relative_tolerance must be at least 0, got {relative_tolerance}")
    return int((singular_values > relative_tolerance * singular_values.max()).sum())


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""The leading part of :math:`W = U \Sigma V^\top`: the r largest singular values and their directions.

    Args:
        matrix: W, (d, k).
        rank: r, from 1 to min(d, k).

    Returns:
        U (d, r) with orthonormal columns, the singular values (r,) in falling order, and :math:`V^\top` (r, k) with orthonormal
        rows.

    Raises:
        ValueError: not a matrix, not finite, or a rank outside its range.

    Chapter: Rank.
    """
    _check_rank(matrix, rank)
    u, singular_values, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], singular_values[:rank], vh[:rank]


def randomized_svd(
    matrix: Tensor, rank: int, *, oversampling: int = 8, power_iterations: int = 2, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Nearly what :func:`truncated_svd` gives, from a few products with W and no SVD of it.

    W is multiplied by a random matrix. An orthonormal basis Q of what comes out catches the directions in which W is large, and the
    SVD of the small matrix :math:`Q^\top W` does the rest:

    .. math:: Q = \operatorname{orth}\big((W W^\top)^q\, W \Omega\big), \qquad W \approx Q\,(Q^\top W)_r

    With :math:`\ell` columns in :math:`\Omega` the products with W take :math:`4 (q + 1)\, d k \ell` floating-point operations.

    Args:
        matrix: W, (d, k).
        rank: r, from 1 to min(d, k).
        oversampling: columns of :math:`\Omega` beyond r, at least 0; there are :math:`\ell = \min(r + \text{oversampling}, d, k)`.
        power_iterations: q, at least 0; more of them help where the singular values fall slowly.
        generator: draws :math:`\Omega`; the global generator of the matrix's device when None.

    Returns:
        U (d, r) with orthonormal columns, r approximate singular values in falling order, each at most the true one up to rounding,
        and :math:`V^\top` (r, k) with orthonormal rows.

    Raises:
        ValueError: not a matrix, not finite, a rank outside its range, or a negative count.

    Source: Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1.
    Chapter: The best low-rank approximation.

    Example:
        >>> u, values, vh = randomized_svd(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2)
        >>> [round(value, 4) for value in values.tolist()]
        [3.0, 2.0]
    """
    _check_rank(matrix, rank)
    if oversampling < 0 or power_iterations < 0:
        raise ValueError(f"oversampling and power_iterations must be at least 0, got {oversampling} and {power_iterations}")
    columns = min(rank + oversampling, *matrix.shape)
    device = generator.device if generator is not None else matrix.device
    test_matrix = torch.randn(matrix.shape[1], columns, generator=generator, dtype=matrix.dtype, device=device).to(matrix.device)
    basis = torch.linalg.qr(matrix @ test_matrix).Q  # (d, k) @ (k, l) -> (d, l)
    for _ in range(power_iterations):
        # Without a new basis after every product, rounding would leave only the strongest direction.
        basis = torch.linalg.qr(matrix.mT @ basis).Q  # (k, d) @ (d, l) -> (k, l)
        basis = torch.linalg.qr(matrix @ basis).Q  # (d, k) @ (k, l) -> (d, l)
    u, singular_values, vh = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)  # of (l, k)
    return basis @ u[:, :rank], singular_values[:rank], vh[:rank]


def low_rank_approximation(matrix: Tensor, rank: int) -> Tensor:
    r"""The matrix of rank at most r nearest to W: :math:`W_r = \sum_{i \le r} \sigma_i u_i v_i^\top`.

    Args:
        matrix: W, (d, k).
        rank: r, from 1 to min(d, k).

    Returns:
        :math:`W_r`, (d, k).

    Source: Eckart and Young 1936.
    Chapter: Rank.

    Example:
        >>> low_rank_approximation(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2).diagonal().tolist()
        [3.0, 2.0, 0.0]
    """
    u, singular_values, vh = truncated_svd(matrix, rank)
    return (u * singular_values) @ vh  # (d, r) * (r,) @ (r, k) -> (d, k)


def relative_error(matrix: Tensor, approximation: Tensor) -> float:
    r"""Relative Frobenius error :math:`\|W - \hat W\|_F / \|W\|_F`, 0 when both are zero.

    Args:
        matrix: W, (d, k).
        approximation: :math:`\hat W`, (d, k).

    Raises:
        ValueError: not matrices of finite numbers, the shapes differ, or W is zero and the approximation is not.

    Chapter: Rank.
    """
    if matrix.shape != approximation.shape:
        raise ValueError(f"the shapes must agree, got {tuple(matrix.shape)} and {tuple(approximation.shape)}")
    _check_matrix(matrix)
    _check_matrix(approximation)
    size, distance = torch.linalg.norm(matrix.double()), torch.linalg.norm(matrix.double() - approximation.double())
    if size == 0 and distance > 0:
        raise ValueError("the relative error is not defined for a zero matrix")
    return float(distance / size) if size else 0.0


def energy(singular_values: Tensor) -> Tensor:
    r"""Share of the squared Frobenius norm that the first r singular values hold, for every r.

    .. math:: E_r = \frac{\sum_{i \le r} \sigma_i^2}{\sum_i \sigma_i^2}

    Args:
        singular_values: (n,), in falling order, not all zero.

    Returns:
        (n,), float64, rising to 1. The relative error at rank r is :math:`\sqrt{1 - E_r}`.

    Raises:
        ValueError: not a vector, all zero, or not finite.

    Chapter: Rank.

    Example:
        >>> [round(share, 2) for share in energy(torch.tensor([4.0, 3.0])).tolist()]
        [0.64, 1.0]
    """
    squares = _spectrum(singular_values).square()
    return squares.cumsum(0) / squares.sum()


def effective_rank(singular_values: Tensor) -> float:
    r"""How many singular values the matrix behaves as if it had: the exponential of their entropy.

    .. math:: \exp\Big(-\sum_i p_i \log p_i\Big), \qquad p_i = \sigma_i \Big/ \sum_j \sigma_j

    It is n for n equal singular values and 1 for a single one, and moves smoothly between.

    Args:
        singular_values: (n,), not all zero.

    Raises:
        ValueError: not a vector, all zero, or not finite.

    Source: Roy and Vetterli 2007.
    Chapter: Rank.

    Example:
        >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
        2.0
    """
    values = _spectrum(singular_values)
    shares = values / values.sum()
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


def factor_storage(rank: int, d: int, k: int) -> int:
    """Numbers in a (d, r) and an (r, k) factor: r (d + k). The matrix itself holds d k.

    Chapter: Rank.
    """
    return rank * (d + k)


def break_even_rank(d: int, k: int) -> float:
    r"""The rank :math:`dk / (d + k)` at which two factors hold as many numbers as the matrix; below it they save.

    Chapter: Rank.

    Example:
        >>> break_even_rank(600, 300)
        200.0
    """
    return d * k / (d + k)


def _check_matrix(matrix: Tensor) -> None:
    if matrix.ndim != 2 or 0 in matrix.shape or not matrix.isfinite().all():
        raise ValueError(f"need a matrix of finite numbers, got shape {tuple(matrix.shape)}")
    if matrix.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"need float32 or float64, got {matrix.dtype}: convert with .float()")


def _check_rank(matrix: Tensor, rank: int) -> None:
    _check_matrix(matrix)
    if not 1 <= rank <= min(matrix.shape):
        raise ValueError(f"rank must be 1..{min(matrix.shape)} for a {matrix.shape[0]}x{matrix.shape[1]} matrix, got {rank}")


def _spectrum(singular_values: Tensor) -> Tensor:
    if singular_values.ndim != 1 or not singular_values.isfinite().all() or (singular_values < 0).any():
        raise ValueError("singular values are a vector of finite numbers of at least 0")
    if not singular_values.any():
        raise ValueError("all singular values are zero, so there is nothing to share")
    # Shares do not depend on the unit; dividing by the largest keeps the squares in range.
    return singular_values.double() / singular_values.max()
