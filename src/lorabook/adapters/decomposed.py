"""``DecomposedLoRALinear``: A and B start as parts of the weight (PiSSA, OLoRA). It knows one layer and no model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorabook.adapters.bases import weight_of
from lorabook.adapters.inits import DECOMPOSITIONS
from lorabook.adapters.linear import LoRALinear, check_linear


class DecomposedLoRALinear(LoRALinear):
    r"""A frozen linear layer whose factors start as a part of its weight; it adds what has changed since.

    .. math:: y = W x + b + s\, (B A - B_0 A_0)\, x

    The papers take :math:`s B_0 A_0` out of the weight. Here W stays as it is, so that several adapters can share it and a saved
    one, at twice the rank, is right on the weight that everybody has. The gradients are the same.

    Args:
        base: a linear layer, as for :class:`~lorabook.LoRALinear`; its weight must be finite.
        rank: r, from 1 to min(out_features, in_features).
        alpha: numerator of the scaling, a finite number above 0.
        dropout: probability of zeroing an input of A while training.
        rank_stabilized: divide alpha by the square root of r instead of r.
        init: "pissa", the leading singular part of W, or "olora", the leading part of its QR decomposition.
        generator: not used, since nothing is drawn.

    Raises:
        TypeError: the base is not a linear layer.
        ValueError: a setting outside its range, or a weight that holds a NaN or an infinity.

    Source: Meng et al. 2024 (PiSSA), section 3; Büyükakyüz 2024 (OLoRA), section 3.
    Chapter: Variants where they act.

    Example:
        >>> layer = DecomposedLoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0)
        >>> layer.lora_B.abs().max() > 0, layer.delta_weight().abs().max() < 1e-5
        (tensor(True), tensor(True))
    """

    start_A: Tensor  # noqa: N815
    start_B: Tensor  # noqa: N815

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        *,
        dropout: float = 0.0,
        rank_stabilized: bool = False,
        init: str = "pissa",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(base, rank, alpha, dropout=dropout, rank_stabilized=rank_stabilized, init=init, generator=generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start afresh from the base's weight as it is now."""
        if not self.lora_A.is_meta:
            A, B = DECOMPOSITIONS[self.init](weight_of(self.base).to(self.lora_A.dtype), self.rank, self.scaling)
            self.lora_A.copy_(A)
            self.lora_B.copy_(B)
        self.register_buffer("start_A", self.lora_A.detach().clone())
        self.register_buffer("start_B", self.lora_B.detach().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        r"""The change as one product of rank 2r: :math:`B A - B_0 A_0` from A over :math:`A_0`, and B beside :math:`-B_0`."""
        return torch.cat((self.lora_A, self.start_A)), torch.cat((self.lora_B, -self.start_B), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (..., in_features)."""
        y: Tensor = self.base(x)
        if self.merged or not self.enabled:
            return y
        A, B = self.factors()
        h = F.linear(self.dropout(x).to(A.dtype), A)  # (..., in) -> (..., 2r)
        return y + F.linear(self.scaling * h, B).to(y.dtype)  # (..., 2r) -> (..., out)

    def delta_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        r"""The update :math:`s (B A - B_0 A_0)`, (out_features, in_features), in the dtype of A and B or the one given."""
        A, B = (factor.to(dtype or factor.dtype) for factor in self.factors())
        return self.scaling * (B @ A)

    @staticmethod
    def check_settings(base: nn.Module, rank: int, alpha: float, dropout: float, init: str) -> None:
        """Refuse what the layer cannot be built from, before anything is built; raises as the class says."""
        check_linear(base, rank, alpha, dropout)
        if init not in DECOMPOSITIONS:
            raise ValueError(f"init must be one of {', '.join(DECOMPOSITIONS)}, got {init!r}; LoRALinear has the others")
        weight = weight_of(base)
        if not (weight.is_meta or weight.isfinite().all()):
            raise ValueError(f"init={init!r} needs a finite weight, and this one holds a NaN or an infinity")
