"""Layers made from given factors, as files and combinations bring them. It knows no path and no name."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lorabook.adapters.bases import OwnBias
from lorabook.adapters.decomposed import DecomposedLoRALinear
from lorabook.adapters.dora import DoRALinear
from lorabook.adapters.embedding import LoRAEmbedding
from lorabook.adapters.linear import LoRALinear
from lorabook.low_rank import relative_error, truncated_svd


def layer_from(
    base: nn.Module,
    A: Tensor,
    B: Tensor,
    *,
    alpha: float,
    rank_stabilized: bool = False,
    dropout: float = 0.0,
    magnitude: Tensor | None = None,
) -> LoRALinear:
    """The layer over this base that has these factors, of whichever kind the base and the magnitude call for.

    Args:
        base: a linear layer or an embedding, or the :class:`OwnBias` of a linear layer.
        A: (r, in_features). Unlike that of a fresh layer, r may exceed min(out_features, in_features).
        B: (out_features, r).
        alpha: numerator of the scaling.
        rank_stabilized: divide alpha by the square root of r instead of r.
        dropout: dropout on the input of A; an embedding has none.
        magnitude: of a DoRA layer, (out_features,).

    Example:
        >>> layer = layer_from(nn.Linear(6, 4), torch.ones(5, 6), torch.ones(4, 5), alpha=10.0)
        >>> layer.rank, layer.scaling, layer.delta_weight()[0, 0].item()
        (5, 2.0, 10.0)
    """
    seed = torch.Generator()  # its draws are overwritten; the global generator is left alone
    layer: LoRALinear
    if isinstance(base, nn.Embedding):
        layer = LoRAEmbedding(base, 1, alpha, generator=seed)
    else:
        kind = LoRALinear if magnitude is None else DoRALinear
        layer = kind(base, 1, alpha, dropout=dropout, generator=seed)
    layer.rank = A.shape[0]
    layer.rank_stabilized = rank_stabilized
    layer.scaling = alpha / math.sqrt(layer.rank) if rank_stabilized else alpha / layer.rank
    layer.lora_A = nn.Parameter(A.to(layer.lora_A))
    layer.lora_B = nn.Parameter(B.to(layer.lora_B))
    if isinstance(layer, DoRALinear) and magnitude is not None:
        layer.magnitude = nn.Parameter(magnitude.to(layer.magnitude))
    return layer


def factors_of(layer: LoRALinear) -> tuple[Tensor, Tensor]:
    r"""A and B such that the layer's low-rank update is :math:`s B A`; those of PiSSA and OLoRA have twice the layer's rank.

    Example:
        >>> A, B = factors_of(DecomposedLoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0))
        >>> A.shape, B.shape
        (torch.Size([4, 6]), torch.Size([4, 4]))
    """
    return layer.factors() if isinstance(layer, DecomposedLoRALinear) else (layer.lora_A, layer.lora_B)


def cut(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The factors of the matrix of that rank nearest to B A, and its relative Frobenius error, worked out in float64.

    Example:
        >>> A, B, error = cut(torch.diag(torch.tensor([4.0, 3.0])), torch.eye(2), 1)
        >>> round(error, 6)
        0.6
    """
    product = B.double() @ A.double()  # (out, in)
    u, singular_values, vh = truncated_svd(product, min(rank, *product.shape))
    u = u * singular_values  # all in B, so that a sum of zero still has an A from which to learn
    return vh.to(A.dtype), u.to(B.dtype), relative_error(product, u @ vh)


def is_plain(layer: nn.Module) -> bool:
    """Whether what the layer adds is s B A and nothing else.

    Example:
        >>> is_plain(LoRALinear(nn.Linear(6, 4), 2, 8.0)), is_plain(DoRALinear(nn.Linear(6, 4), 2, 8.0))
        (True, False)
    """
    return isinstance(layer, LoRALinear) and not isinstance(layer, DoRALinear) and not isinstance(layer.base, OwnBias)
