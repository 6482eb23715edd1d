"""Where a weight's change points: shared subspaces, amplification, and singular vectors that are new. It knows no model."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lorabook.low_rank import numerical_rank, truncated_svd

Side = Literal["left", "right"]


def subspace_similarity(first: Tensor, second: Tensor, ranks: tuple[int, int] | None = None) -> Tensor:
    r"""How far the leading right singular vectors of two matrices span the same directions, for every i and j.

    .. math:: \phi(i, j) = \frac{\lVert V_i^\top V'_j \rVert_F^2}{\min(i, j)}

    with :math:`V_i` the first i right singular vectors of the first matrix as
    columns, and :math:`V'_j` the first j of the second. It is the mean squared
    cosine of the angles between the two subspaces: 1 if the smaller lies in the
    larger, 0 if they are orthogonal. For two random subspaces its mean is
    max(i, j) / k.

    Args:
        first: (m, k), such as a factor A or a change of weights.
        second: (n, k).
        ranks: how many directions of each; all of them, by
            :func:`~lorabook.low_rank.numerical_rank`, when None.

    Returns:
        (p, q) in float64, with :math:`\phi(i, j)` in row i - 1 and column j - 1.

    Raises:
        ValueError: another number of columns, or more directions than a matrix
            has; those beyond its rank would be arbitrary.

    Source: Hu et al. 2021 (LoRA), section 7.2 and appendix G.
    Chapter: What an adapter learns.

    Example:
        >>> first = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> second = torch.tensor([[0.0, 5.0, 0.0]])
        >>> subspace_similarity(first, second).tolist()
        [[0.0], [1.0]]
    """
    if first.shape[-1] != second.shape[-1]:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"both matrices need the same number of columns, got {shapes}")
    p, q = ranks if ranks is not None else (None, None)
    first, second = _right_directions(first, p), _right_directions(second, q)
    squared = (first @ second.mT).square()  # (p, k) @ (k, q) -> (p, q)
    i = torch.arange(1, squared.shape[0] + 1, device=squared.device)[:, None]
    j = torch.arange(1, squared.shape[1] + 1, device=squared.device)
    return squared.cumsum(0).cumsum(1) / torch.minimum(i, j)


def random_similarity(i: int, j: int, k: int) -> float:
    r"""The mean of :math:`\phi(i, j)` for two random subspaces of a space with k dimensions: :math:`\max(i, j) / k`.

    A random direction has the mean squared cosine j / k with a subspace of j dimensions, and :math:`\phi` averages i of them when i
    is the smaller.

    Args:
        i: dimensions of the one, from 1 to k.
        j: dimensions of the other, from 1 to k.
        k: dimensions of the space.

    Raises:
        ValueError: a number outside its range.

    Chapter: What an adapter learns.

    Example:
        >>> random_similarity(8, 64, 192), random_similarity(8, 64, 12288)
        (0.3333333333333333, 0.005208333333333333)
    """
    if not 1 <= min(i, j) <= max(i, j) <= k:
        raise ValueError(f"i and j must be 1..{k}, got {i} and {j}")
    return max(i, j) / k


def projected_norm(weight: Tensor, directions: Tensor, rank: int) -> float:
    r"""How large a weight is in the first r directions of another matrix: :math:`\lVert U_r^\top W V_r \rVert_F`.

    :math:`U_r` and :math:`V_r` hold the first r left and right singular vectors of the other matrix as columns. In its own directions W
    has the norm :math:`\sqrt{\sigma_1^2 + \dots + \sigma_r^2}`, which is the largest possible; in random ones, on average over the
    squares, :math:`\lVert W \rVert_F\, r / \sqrt{dk}`.

    Args:
        weight: W, (d, k).
        directions: the other matrix, (d, k).
        rank: r, at most the other matrix's numerical rank.

    Raises:
        ValueError: shapes that differ, or more directions than the other matrix has.

    Source: Hu et al. 2021 (LoRA), section 7.3 and table 7.
    Chapter: What an adapter learns.

    Example:
        >>> weight, other = torch.diag(torch.tensor([3.0, 4.0])), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> projected_norm(weight, other, rank=1), projected_norm(weight, weight, rank=1)
        (3.0, 4.0)
    """
    if weight.shape != directions.shape:
        raise ValueError(f"the shapes must agree, got {tuple(weight.shape)} and {tuple(directions.shape)}")
    _check_directions(directions, rank)
    u, _, vh = truncated_svd(directions.double(), rank)
    return float(torch.linalg.norm(u.mT @ weight.double() @ vh.mT))  # (r, d) @ (d, k) @ (k, r)


def amplification_factor(weight: Tensor, change: Tensor, rank: int | None = None) -> float:
    r"""How much larger a change is than what the weight had in the change's own directions.

    .. math:: \frac{\lVert \Delta W \rVert_F}{\lVert U_r^\top W V_r \rVert_F}

    Args:
        weight: W, (d, k), before the change.
        change: :math:`\Delta W`, (d, k).
        rank: r, how many of the change's directions; all, by its numerical rank, when None.

    Returns:
        The factor; infinite where W has nothing in these directions.

    Raises:
        ValueError: shapes that differ, more directions than the change has, or a change that is zero.

    Source: Hu et al. 2021 (LoRA), section 7.3 and appendix H.4.
    Chapter: What an adapter learns.

    Example:
        >>> weight, change = torch.diag(torch.tensor([4.0, 0.5, 1.0])), torch.diag(torch.tensor([0.0, 3.0, 0.0]))
        >>> amplification_factor(weight, change)
        6.0
    """
    found = projected_norm(weight, change, numerical_rank(change) if rank is None else rank)
    return float(torch.linalg.norm(change.double())) / found if found else math.inf


def closest_cosines(before: Tensor, after: Tensor, count: int = 10, *, side: Side = "left") -> Tensor:
    r"""For each of the first singular vectors of a changed weight, its cosine with the nearest singular vector that the weight had.

    .. math:: c_j = \max_i \lvert u_i^\top u'_j \rvert, \qquad j = 1, \dots, n

    Signs do not count, since a pair of singular vectors may change both of theirs.

    Args:
        before: W, (d, k); all its min(d, k) singular vectors are compared.
        after: :math:`W + \Delta W`, (d, k).
        count: n, from 1 to min(d, k).
        side: left singular vectors, directions of the output, or right ones, directions of the input.

    Returns:
        (n,) in float64, in the order of the changed weight's singular values.

    Raises:
        ValueError: shapes that differ, a count outside its range, or another side.

    Source: Shuttleworth et al. 2025 (LoRA vs Full Fine-tuning: An Illusion of Equivalence).
    Chapter: What an adapter learns.

    Example:
        >>> before = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> after = before + 9 * torch.ones(3, 3)
        >>> closest_cosines(before, after, 1) < 0.7, closest_cosines(before, 2 * before, 3).round(decimals=6).tolist()
        (tensor([True]), [1.0, 1.0, 1.0])
    """
    if before.shape != after.shape:
        raise ValueError(f"the shapes must agree, got {tuple(before.shape)} and {tuple(after.shape)}")
    if side not in ("left", "right"):
        raise ValueError(f"side must be left or right, got {side!r}")
    if not 1 <= count <= min(before.shape):
        raise ValueError(f"count must be 1..{min(before.shape)} for a {before.shape[0]}x{before.shape[1]} weight, got {count}")
    old, new = (torch.linalg.svd(weight.double(), full_matrices=False) for weight in (before, after))
    cosines: Tensor = old.U.mT @ new.U[:, :count] if side == "left" else old.Vh @ new.Vh[:count].mT  # (min(d, k), n)
    return cosines.abs().amax(0).clamp(max=1.0)


def intruder_dimensions(before: Tensor, after: Tensor, *, count: int = 10, threshold: float = 0.5, side: Side = "left") -> int:
    r"""How many of a changed weight's first n singular vectors are new.

    .. math:: \#\{j \le n : c_j < \epsilon\}

    with the cosines :math:`c_j` of :func:`closest_cosines`: such a vector resembles
    none that the weight had.

    Args:
        before: W, (d, k).
        after: :math:`W + \Delta W`, (d, k).
        count: n, from 1 to min(d, k).
        threshold: :math:`\epsilon`, from 0 to 1; the number depends on it.
        side: left or right singular vectors.

    Raises:
        ValueError: a threshold outside its range, or what
            :func:`closest_cosines` refuses.

    Source: Shuttleworth et al. 2025 (LoRA vs Full Fine-tuning).
    Chapter: What an adapter learns.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> before = torch.randn(40, 30, generator=generator)
        >>> u = torch.randn(40, 1, generator=generator)
        >>> v = torch.randn(1, 30, generator=generator)
        >>> [intruder_dimensions(before, before + t * u @ v) for t in (0.01, 1.0)]
        [0, 1]
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be 0..1, got {threshold}")
    cosines = closest_cosines(before, after, count, side=side)
    return int((cosines < threshold).sum())


def _right_directions(matrix: Tensor, count: int | None) -> Tensor:
    """The first right singular vectors, as rows."""
    if count is None:
        count = max(1, numerical_rank(matrix))
    _check_directions(matrix, count)
    return truncated_svd(matrix.double(), count)[2]


def _check_directions(matrix: Tensor, count: int) -> None:
    found = numerical_rank(matrix)
    if not 1 <= count <= found:
        raise ValueError(f"a matrix of rank {found} has that many directions, got {count}")
