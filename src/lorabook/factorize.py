"""A low-rank product learned from a known matrix: loss, gradients, and two ways down. It knows no network and no adapter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factorization:
    """Two factors, and the loss on the way to them.

    Args:
        A: (r, k), the factor that reads the input.
        B: (d, r), the factor that writes the output.
        losses: (steps + 1,), the loss at the start and after every step.

    Chapter: Factorizing by learning.
    """

    A: Tensor
    B: Tensor
    losses: Tensor

    @property
    def product(self) -> Tensor:
        """BA, (d, k)."""
        return self.B @ self.A


def factorization_loss(W: Tensor, A: Tensor, B: Tensor) -> Tensor:
    r"""How far a product is from a matrix: :math:`\mathcal{L}(A, B) = \tfrac12 \lVert BA - W \rVert_F^2`.

    Args:
        W: (d, k).
        A: (r, k).
        B: (d, r).

    Returns:
        A scalar that autograd can differentiate. Its least value is half the sum of the squared singular values after the r-th.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Source: Baldi and Hornik 1989.
    Chapter: Factorizing by learning.

    Example:
        >>> factorization_loss(torch.tensor([[3.0, 4.0]]), A=torch.zeros(1, 2), B=torch.ones(1, 1)).item()
        12.5
    """
    _check_factors(W, A, B)
    return (B @ A - W).square().sum() / 2


def factorization_gradients(W: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradients of :func:`factorization_loss`, derived by hand.

    .. math:: \frac{\partial \mathcal{L}}{\partial A} = B^\top G, \qquad \frac{\partial \mathcal{L}}{\partial B} = G A^\top,
        \qquad G = BA - W

    Args:
        W: (d, k).
        A: (r, k).
        B: (d, r).

    Returns:
        The gradient of A, (r, k), and that of B, (d, r).

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Chapter: Factorizing by learning.

    Example:
        >>> grad_A, grad_B = factorization_gradients(torch.ones(2, 3), A=torch.ones(1, 3), B=torch.zeros(2, 1))
        >>> grad_A.tolist(), grad_B.tolist()
        ([[0.0, 0.0, 0.0]], [[-3.0], [-3.0]])
    """
    _check_factors(W, A, B)
    G = B @ A - W  # (d, r) @ (r, k) -> (d, k)
    return B.T @ G, G @ A.T


def factorize_by_gradient_descent(W: Tensor, A: Tensor, B: Tensor, *, learning_rate: float, steps: int) -> Factorization:
    r"""Move both factors against their gradients, :math:`A \leftarrow A - \eta B^\top G` and :math:`B \leftarrow B - \eta G A^\top`.

    Both gradients of a step are taken at the same point. No minimum is stable unless :math:`\eta \le 1 / \sigma_1`; factors that
    are far from balanced need a smaller rate.

    Args:
        W: the target, (d, k).
        A: where the first factor starts, (r, k); left as it is.
        B: where the second factor starts, (d, r); left as it is.
        learning_rate: :math:`\eta`.
        steps: how many.

    Returns:
        The factors after the last step, and steps + 1 losses.

    Raises:
        ValueError: shapes or dtypes that do not fit, a rate that is not positive, negative steps, or a loss that overflowed.

    Source: Saxe, McClelland and Ganguli 2014.
    Chapter: Factorizing by learning.

    Example:
        >>> W = torch.tensor([[3.0, 4.0]])
        >>> run = factorize_by_gradient_descent(W, torch.ones(1, 2), torch.zeros(1, 1), learning_rate=0.1, steps=100)
        >>> torch.allclose(run.product, W)
        True
    """
    _check_factors(W, A, B)
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    losses = torch.empty(steps + 1, dtype=W.dtype, device=W.device)
    with torch.no_grad():
        for step in range(steps):
            G = B @ A - W  # (d, k)
            losses[step] = G.square().sum() / 2
            A, B = A - learning_rate * B.T @ G, B - learning_rate * G @ A.T
        losses[steps] = factorization_loss(W, A, B)
    if not losses.isfinite().all():
        first = int((~losses.isfinite()).nonzero()[0])
        limit = 1 / float(torch.linalg.matrix_norm(W, ord=2))
        raise ValueError(
            f"the loss overflowed at step {first} with learning_rate {learning_rate:g}; "
            f"try below 1 / sigma_1 = {limit:.3g}, and lower where the factors start large"
        )
    return Factorization(A.detach().clone(), B.detach().clone(), losses)


def factorize_by_alternating_least_squares(W: Tensor, B: Tensor, *, sweeps: int) -> Factorization:
    r"""Solve for A with B fixed, then for B with A fixed, and so on; each is an ordinary least-squares problem.

    .. math:: A \leftarrow \arg\min_A \lVert BA - W \rVert_F, \qquad B \leftarrow \arg\min_B \lVert A^\top B^\top - W^\top \rVert_F

    Where a solution is not unique, the one of least norm is taken. The loss never rises.

    Args:
        W: the target, (d, k).
        B: where the second factor starts, (d, r); left as it is. A needs no start.
        sweeps: how often both factors are solved for.

    Returns:
        The factors after the last sweep, and sweeps + 1 losses: the first with the starting B and the best A for it.

    Raises:
        ValueError: shapes or dtypes that do not fit, or no sweep.

    Chapter: Factorizing by learning.

    Example:
        >>> W = torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0]))
        >>> run = factorize_by_alternating_least_squares(W, torch.ones(2, 1), sweeps=1)
        >>> torch.allclose(run.product, W)
        True
    """
    if sweeps < 1:
        raise ValueError(f"sweeps must be at least 1, got {sweeps}")
    _check_factors(W, W.new_zeros(B.shape[-1], W.shape[-1]), B)
    with torch.no_grad():
        A = _least_squares(B, W)
        losses = [factorization_loss(W, A, B)]
        for _ in range(sweeps):
            B = _least_squares(A.T, W.T).T
            A = _least_squares(B, W)
            losses.append(factorization_loss(W, A, B))
    return Factorization(A, B.clone(), torch.stack(losses))


def _least_squares(matrix: Tensor, target: Tensor) -> Tensor:
    """The X of least norm among those that bring matrix @ X nearest to the target."""
    # Through the SVD, not the normal equations, which square the condition number and fail where the matrix lacks full rank.
    inverse: Tensor = torch.linalg.pinv(matrix)
    return inverse @ target


def _check_factors(W: Tensor, A: Tensor, B: Tensor) -> None:
    if not (W.ndim == A.ndim == B.ndim == 2) or B.shape[1] != A.shape[0] or (B.shape[0], A.shape[1]) != W.shape or 0 in A.shape:
        raise ValueError(
            f"B @ A must have the shape of W: B (d, r), A (r, k), W (d, k); got B {tuple(B.shape)}, A {tuple(A.shape)}, W {tuple(W.shape)}"
        )
    if not W.dtype == A.dtype == B.dtype or W.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"need one dtype, float32 or float64, got W {W.dtype}, A {A.dtype}, B {B.dtype}")
