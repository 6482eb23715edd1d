"""``LoRALinear``: a frozen linear layer plus a trainable low-rank update. It knows one layer and no model."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorabook.adapters.bases import AdapterError as AdapterError  # re-exported
from lorabook.adapters.bases import adapter_options, computes_its_weight, features, is_quantized, is_transposed, weight_of
from lorabook.adapters.inits import INITS


class LoRALinear(nn.Module):
    r"""A frozen linear layer with a trainable update of low rank.

    .. math:: y = W x + b + s\, B A x, \qquad s = \alpha / r \ \text{ or } \ \alpha / \sqrt r

    Only A and B train. B starts at zero, so a fresh layer computes exactly what its base computes. Over a base in half
    precision A and B are float32, because optimizers and gradient scaling need them so.

    Args:
        base: the linear layer to adapt, W of shape (out_features, in_features) = (d, k): an ``nn.Linear``, GPT-2's ``Conv1D``,
            a :class:`~lorabook.NF4Linear`. Its parameters are frozen.
        rank: r, from 1 to min(d, k).
        alpha: numerator of the scaling, a finite number above 0.
        dropout: probability of zeroing an input of A while training, 0 <= dropout < 1.
        rank_stabilized: divide alpha by the square root of r instead of r.
        init: how A starts: "kaiming" (the reference code), "gaussian" (as in the paper, which gives
            no variance; the standard deviation is 1/r, PEFT's) or "orthogonal".
        generator: a CPU generator for A; the global one when None.

    Raises:
        TypeError: the base is not a linear layer.
        ValueError: a rank, alpha, dropout or init outside its range.

    Source: Hu et al. 2021 (LoRA), section 4.1; Kalajdzievski 2023 (rank stabilization).
    Chapter: LoRALinear.

    Example:
        >>> layer = LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0)
        >>> layer.lora_A.shape, layer.lora_B.shape, layer.scaling
        (torch.Size([2, 6]), torch.Size([4, 2]), 4.0)
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        *,
        dropout: float = 0.0,
        rank_stabilized: bool = False,
        init: str = "kaiming",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.check_settings(base, rank, alpha, dropout, init)
        self.out_features, self.in_features = features(base)
        device, dtype = adapter_options(base)
        self.base = base.requires_grad_(False)
        self.rank = int(rank)
        self.alpha = alpha
        self.rank_stabilized = rank_stabilized
        self.scaling = alpha / math.sqrt(rank) if rank_stabilized else alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.init = init
        self.enabled = True
        self._unmerged_weight: Tensor | None = None
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(self.out_features, rank, device=device, dtype=dtype))
        self.reset_parameters(generator)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: (..., in_features).

        Returns:
            (..., out_features), in the dtype that the base gives.
        """
        y: Tensor = self.base(x)
        if self.merged or not self.enabled:
            return y
        h = F.linear(self.dropout(x).to(self.lora_A.dtype), self.lora_A)  # (..., in) -> (..., r)
        # Scaling h costs r multiplications per token; scaling the output would cost out_features.
        return y + F.linear(self.scaling * h, self.lora_B).to(y.dtype)  # (..., r) -> (..., out)

    @property
    def merged(self) -> bool:
        """Whether the update is in the base's weight at the moment."""
        return self._unmerged_weight is not None

    @property
    def weight(self) -> Tensor:
        """The weight that the layer multiplies with, the update included, stored as the base stores its own.

        For code that reads a layer's weight instead of calling the layer, as PyTorch's transformer layers do in evaluation. It is
        worked out at each call, so that changing it changes nothing.
        """
        weight = weight_of(self.base)
        if self.enabled and not self.merged:
            update = self.delta_weight()
            weight = (weight.to(update.dtype) + update).to(weight.dtype)
        return weight.T if is_transposed(self.base) else weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return getattr(self.base, "bias", None)

    def delta_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        r"""The update :math:`\Delta W = s B A`, (out_features, in_features), in the dtype of A and B or the one given."""
        A, B = (factor.to(dtype or factor.dtype) for factor in (self.lora_A, self.lora_B))
        return self.scaling * (B @ A)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the base's weight, with one rounding; the layer then costs what its base costs.

        The sum is formed in float64 for a float32 base, in float32 for a half-precision one. The weight as it was is kept
        (one more copy in memory), so that :meth:`unmerge` restores it bit for bit.

        Raises:
            AdapterError: already merged, a quantized base, one on the meta device, one that does more than multiply with its
                weight, or the update or the sum holds a NaN or an infinity. Nothing has changed then.
        """
        if self.merged:
            raise AdapterError("this layer is merged already: unmerge it first")
        if is_quantized(self.base):
            raise AdapterError("this layer has a quantized base: dequantize_base(model) first, then merge")
        weight = weight_of(self.base)
        if weight.is_meta or self.lora_A.is_meta:
            raise AdapterError("this layer has no numbers yet (meta device): load the base's weights first")
        if not computes_its_weight(self.base):
            raise AdapterError("this layer does more with its input than multiply it with its weight: the update cannot be merged")
        wide = torch.float32 if weight.dtype.itemsize < 4 else torch.float64
        with torch.autocast(weight.device.type, enabled=False):  # it would form the product in 16 bits
            update = self.delta_weight(wide)
        if not update.isfinite().all():
            raise AdapterError("this layer holds a NaN or an infinity in its update: merging would destroy the base's weight")
        merged = (weight.to(wide) + update).to(weight.dtype)
        if not merged.isfinite().all():
            raise AdapterError(f"this layer's merged weight does not fit {weight.dtype}: lower alpha, or hold the base in a wider dtype")
        self._unmerged_weight = weight.clone()
        weight.copy_(merged)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base's weight back exactly as it was before :meth:`merge`, whatever became of A and B since.

        Raises:
            AdapterError: not merged.
        """
        if self._unmerged_weight is None:
            raise AdapterError("this layer is not merged: there is nothing to unmerge")
        weight_of(self.base).copy_(self._unmerged_weight)
        self._unmerged_weight = None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start afresh, as after construction; a layer built on the meta device needs it once it has memory."""
        # Drawn on the CPU, so that a seed gives the same A on every device.
        self.lora_A.copy_(INITS[self.init](self.rank, self.lora_A.shape[1], generator))
        self.lora_B.zero_()

    def extra_repr(self) -> str:
        """The settings, as ``print(model)`` shows them."""
        return f"rank={self.rank}, alpha={self.alpha}, scaling={self.scaling:.4g}, merged={self.merged}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # Loaded again, a merged weight would get the update a second time.
        if self.merged:
            raise AdapterError(f"'{prefix.rstrip('.')}' is merged: unmerge_lora(model) before saving, or remove_lora(model, merge=True)")
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        if self.merged:
            raise AdapterError(f"'{prefix.rstrip('.')}' is merged: unmerge_lora(model) before loading")
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @staticmethod
    def check_settings(base: nn.Module, rank: int, alpha: float, dropout: float, init: str) -> None:
        """Refuse what the layer cannot be built from, before anything is built; raises as the class says."""
        check_linear(base, rank, alpha, dropout)
        if init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}; pissa and olora are for DecomposedLoRALinear")


def check_linear(base: nn.Module, rank: int, alpha: float, dropout: float) -> None:
    """Refuse a base that is no linear layer, and what :func:`check_ranges` refuses.

    Example:
        >>> check_linear(nn.Linear(6, 4), rank=5, alpha=8.0, dropout=0.0)
        Traceback (most recent call last):
        ValueError: rank must be 1..4 for a 4x6 layer, got 5
    """
    if isinstance(base, nn.Embedding):
        raise TypeError("base must be an nn.Linear or another linear layer, got Embedding: use LoRAEmbedding")
    check_ranges(base, rank, alpha, dropout)


def check_ranges(base: nn.Module, rank: int, alpha: float, dropout: float) -> None:
    """Refuse a rank, alpha or dropout that this base does not allow.

    Raises:
        TypeError: the base has no features to adapt.
        ValueError: a number outside its range.

    Example:
        >>> check_ranges(nn.Linear(6, 4), rank=2, alpha=8.0, dropout=1.0)
        Traceback (most recent call last):
        ValueError: dropout must be at least 0 and below 1, got 1.0
    """
    out_features, in_features = features(base)
    largest = min(out_features, in_features)
    if not is_whole(rank) or not 1 <= rank <= largest:
        raise ValueError(f"rank must be 1..{largest} for a {out_features}x{in_features} layer, got {rank!r}")
    if not is_number(alpha) or not alpha > 0:
        raise ValueError(f"alpha must be a finite number above 0, got {alpha!r}")
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout!r}")


def is_whole(value: object) -> bool:
    """Whether the value is a whole number, NumPy's included.

    Example:
        >>> is_whole(8), is_whole(8.0), is_whole(True)
        (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether the value is a finite real number.

    Example:
        >>> is_number(0.5), is_number(float("nan")), is_number(10**400), is_number("1")
        (True, False, False, False)
    """
    try:
        return not isinstance(value, bool | str) and math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        return False
