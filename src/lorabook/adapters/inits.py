"""How fresh factors are filled. Whatever the choice, the adapted layer starts out computing what its base computes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lorabook.low_rank import truncated_svd


def kaiming(rank: int, in_features: int, generator: torch.Generator | None) -> Tensor:
    r"""Uniform on :math:`[-1/\sqrt{k}, 1/\sqrt{k}]` with :math:`k` = in_features, hence variance :math:`1/(3k)`.

    This is what Kaiming's uniform rule with :math:`a = \sqrt 5` comes to for an (r, k) matrix.

    Returns:
        A, (rank, in_features), float32.

    Source: the reference code of Hu et al. 2021 (microsoft/LoRA), which departs from the paper here.

    Example:
        >>> bool(kaiming(2, 100, None).abs().max() <= 0.1)
        True
    """
    bound = 1 / math.sqrt(in_features)
    return torch.empty(rank, in_features, dtype=torch.float32).uniform_(-bound, bound, generator=generator)


def gaussian(rank: int, in_features: int, generator: torch.Generator | None) -> Tensor:
    r"""Normal with mean 0 and standard deviation :math:`1/r`.

    The paper says "random Gaussian" and leaves the variance open; PEFT's option of this name uses :math:`1/r`.

    Returns:
        A, (rank, in_features), float32.

    Source: Hu et al. 2021 (LoRA), section 4.1.

    Example:
        >>> gaussian(2, 6, None).shape
        torch.Size([2, 6])
    """
    return torch.empty(rank, in_features, dtype=torch.float32).normal_(0, 1 / rank, generator=generator)


def orthogonal(rank: int, in_features: int, generator: torch.Generator | None) -> Tensor:
    r"""Rows of length 1 at right angles, :math:`A A^\top = I`, spread evenly over all such matrices.

    Returns:
        A, (rank, in_features), float32.

    Source: Saxe et al. 2014.

    Example:
        >>> A = orthogonal(2, 6, None)
        >>> torch.allclose(A @ A.T, torch.eye(2), atol=1e-6)
        True
    """
    normal = torch.empty(in_features, rank, dtype=torch.float32).normal_(generator=generator)
    q, r = torch.linalg.qr(normal)  # (in, r): the signs of R's diagonal make Q uniform
    A: Tensor = (q * r.diagonal().sign()).T.contiguous()
    return A


def pissa(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    r"""The leading singular part of W, split evenly: :math:`A_0 = \sqrt{\Sigma_r / s}\, V_r^\top,\ B_0 = U_r \sqrt{\Sigma_r / s}`.

    Args:
        weight: W, (out_features, in_features), finite.
        rank: r.
        scaling: s, so that :math:`s B_0 A_0` is the best approximation of W of rank r.

    Returns:
        A (r, in_features) and B (out_features, r).

    Source: Meng et al. 2024 (PiSSA), section 3.

    Example:
        >>> A, B = pissa(torch.diag(torch.tensor([3.0, 1.0])), rank=1, scaling=2.0)
        >>> torch.allclose(2 * B @ A, torch.diag(torch.tensor([3.0, 0.0])), atol=1e-6)
        True
    """
    u, singular_values, vh = truncated_svd(weight, rank)
    root = (singular_values / scaling).sqrt()
    return root[:, None] * vh, u * root


def olora(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    r"""The leading part of :math:`W = QR`: :math:`A_0` the first r rows of R, :math:`B_0` the first r columns of Q.

    Args:
        weight: W, (out_features, in_features).
        rank: r.
        scaling: s; as in PEFT it does not enter the factors.

    Returns:
        A (r, in_features) and B (out_features, r).

    Source: Büyükakyüz 2024 (OLoRA), section 3.

    Example:
        >>> A, B = olora(torch.diag(torch.tensor([3.0, 1.0])), rank=1, scaling=2.0)
        >>> torch.allclose(B @ A, torch.diag(torch.tensor([3.0, 0.0])), atol=1e-6)
        True
    """
    q, r = torch.linalg.qr(weight)
    return r[:rank].contiguous(), q[:, :rank].contiguous()


INITS: dict[str, Callable[[int, int, torch.Generator | None], Tensor]] = {
    "kaiming": kaiming,
    "gaussian": gaussian,
    "orthogonal": orthogonal,
}
"""Fill A; B starts at zero."""

DECOMPOSITIONS: dict[str, Callable[[Tensor, int, float], tuple[Tensor, Tensor]]] = {"pissa": pissa, "olora": olora}
"""Take A and B from the weight; the layer remembers them and adds only what has changed since."""
