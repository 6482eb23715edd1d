"""``DoRALinear``: a weight's length and direction adapted apart. It knows one layer and no model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorabook.adapters.bases import weight_of
from lorabook.adapters.inits import DECOMPOSITIONS
from lorabook.adapters.linear import LoRALinear


class DoRALinear(LoRALinear):
    r"""A frozen linear layer whose rows get a trainable length and a low-rank change of direction.

    .. math:: y = c \odot (W x + s\, B A x) + b, \qquad c_i = m_i \,/\, \|(W + s\, B A)_{i,:}\|

    The magnitude m starts at the rows' lengths, so a fresh layer computes exactly what its base computes. The norm counts as a
    constant in the backward pass, as the paper proposes; the bias is not scaled.

    Args:
        base: a linear layer, as for :class:`~lorabook.LoRALinear`; no row of its weight may be zero.
        rank: r, from 1 to min(out_features, in_features).
        alpha: numerator of the scaling, a finite number above 0.
        dropout: probability of zeroing an input of A while training.
        rank_stabilized: divide alpha by the square root of r instead of r.
        init: "kaiming", "gaussian" or "orthogonal".
        generator: a CPU generator for A; the global one when None.

    Raises:
        TypeError: the base is not a linear layer.
        ValueError: a setting outside its range, or a weight with a zero row, which has no direction.

    Source: Liu et al. 2024 (DoRA), sections 4.1 and 4.3.
    Chapter: Variants where they act.

    Example:
        >>> layer = DoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0)
        >>> x = torch.randn(3, 6)
        >>> torch.equal(layer(x), layer.base(x)), layer.magnitude.shape
        (True, torch.Size([4]))
    """

    magnitude: nn.Parameter

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start afresh, the magnitude at the lengths of the base's rows."""
        super().reset_parameters(generator)
        if not hasattr(self, "magnitude"):  # the layer is being built
            self.magnitude = nn.Parameter(self.row_norms())
        self.magnitude.copy_(self.row_norms())

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        r"""Lengths of the rows of :math:`W + s B A`, (out_features,), in the dtype of A and B."""
        norms: Tensor = torch.linalg.vector_norm(weight_of(self.base).to(self.lora_A.dtype) + self.delta_direction(), dim=1)
        return norms

    def delta_direction(self, dtype: torch.dtype | None = None) -> Tensor:
        r"""The low-rank part :math:`s B A`, before the rows are brought to their lengths."""
        return super().delta_weight(dtype)

    def delta_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        r"""The update of the weight as a whole, :math:`c \odot (W + s B A) - W`, (out_features, in_features)."""
        weight = weight_of(self.base).to(dtype or self.lora_A.dtype)
        direction = weight + self.delta_direction(weight.dtype)
        return self.magnitude.to(weight.dtype)[:, None] * F.normalize(direction, dim=1, eps=0) - weight

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (..., in_features)."""
        y: Tensor = self.base(x)
        if self.merged or not self.enabled:
            return y
        c = self.magnitude / self.row_norms()
        h = F.linear(self.dropout(x).to(self.lora_A.dtype), self.lora_A)  # (..., in) -> (..., r)
        bias = getattr(self.base, "bias", None)
        product = y if bias is None else y - bias  # W x
        # Written as a change of y, so that it vanishes exactly at the start, where c is 1 and B is 0.
        change = (c - 1) * product.to(c.dtype) + c * F.linear(self.scaling * h, self.lora_B)
        return y + change.to(y.dtype)

    @staticmethod
    def check_settings(base: nn.Module, rank: int, alpha: float, dropout: float, init: str) -> None:
        """As for LoRA; a part of the weight is no start, either, and no row of it may be zero."""
        if init in DECOMPOSITIONS:
            raise ValueError(f"DoRA starts from the weight's own direction: init must not be {init!r}")
        LoRALinear.check_settings(base, rank, alpha, dropout, init)
        weight = weight_of(base)
        norms = torch.linalg.vector_norm(weight.to(torch.promote_types(weight.dtype, torch.float32)), dim=1)
        if not (norms.is_meta or ((norms > 0) & norms.isfinite()).all()):
            raise ValueError("a row of the base's weight is zero or not finite, so it has no direction: use LoRALinear here")
