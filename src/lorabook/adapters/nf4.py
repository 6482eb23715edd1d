"""Four-bit weights: the NF4 levels derived, a weight packed with two-level scales, a frozen linear layer on top. It knows no adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 64
"""Weights that share one scale."""
SCALE_BLOCK = 256
"""Scales that share one scale of their own."""


def nf4_levels() -> Tensor:
    r"""The 16 levels of NormalFloat-4: quantiles of the normal distribution, scaled to [-1, 1], with an exact zero.

    Seven levels lie below zero and eight above, each at evenly spaced probabilities between 1/2 and
    :math:`\delta = \tfrac12 (1 - \tfrac1{30} + 1 - \tfrac1{32})`, the mean of the outermost bin centres of 15 and of 16 bins.

    Returns:
        (16,), rising, float32.

    Source: Dettmers et al. 2023 (QLoRA), section 3 and appendix E.
    Chapter: Four bits: QLoRA.

    Example:
        >>> [round(level, 4) for level in nf4_levels().tolist()][5:10]
        [-0.1848, -0.091, 0.0, 0.0796, 0.1609]
    """
    outermost = (1 - 1 / 30 + 1 - 1 / 32) / 2

    def quantiles(count: int) -> Tensor:  # `count` of them, from the outermost inwards, the median left out
        levels: Tensor = torch.special.ndtri(torch.linspace(outermost, 0.5, count + 1, dtype=torch.float64)[:-1])
        return levels

    below, above = -quantiles(7), quantiles(8).flip(0)
    levels = torch.cat((below, torch.zeros(1, dtype=torch.float64), above))
    return (levels / levels.abs().max()).float()


class NF4(NamedTuple):
    """A weight in four bits.

    Args:
        codes: two levels a byte, (ceil(n / 2),) uint8, padded to whole blocks.
        scale_codes: each block's largest magnitude, less the mean, in 8 bits, (blocks,) int8.
        scale_scales: the scale of each 256 of those, (ceil(blocks / 256),) float32.
        scale_mean: the mean of the blocks' largest magnitudes, () float32.

    Example:
        >>> [part.dtype for part in quantize_nf4(torch.randn(64, 96))]
        [torch.uint8, torch.int8, torch.float32, torch.float32]
    """

    codes: Tensor
    scale_codes: Tensor
    scale_scales: Tensor
    scale_mean: Tensor


def quantize_nf4(weight: Tensor) -> NF4:
    r"""Round each weight to the nearest of 16 levels times its block's largest magnitude, itself kept in 8 bits.

    .. math:: w_i \approx a_{b(i)}\, q_{c_i}, \qquad a_b = \max_{i \in b} |w_i|

    With blocks of 64 and scales in blocks of 256 that is 4 + 8/64 + 32/(64 * 256) = 4.127 bits a weight.

    Args:
        weight: any shape, finite.

    Returns:
        The codes and scales.

    Raises:
        ValueError: the weight is empty or holds a NaN or an infinity.

    Source: Dettmers et al. 2023 (QLoRA), section 3; the 8-bit scales are evenly spaced here, floating-point there.
    Chapter: Four bits: QLoRA.

    Example:
        >>> weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
        >>> packed = quantize_nf4(weight)
        >>> sum(part.nbytes for part in packed) * 8 / weight.numel() < 4.2
        True
    """
    if not weight.numel() or not weight.isfinite().all():
        raise ValueError(f"need a weight of finite numbers, got shape {tuple(weight.shape)}")
    flat = _blocks(weight.detach().float(), BLOCK)  # (blocks, 64)
    largest = flat.abs().amax(dim=1)
    mean = largest.mean()
    centred = _blocks(largest - mean, SCALE_BLOCK)  # (scale blocks, 256)
    scale_scales = centred.abs().amax(dim=1) / 127
    safe = scale_scales.where(scale_scales > 0, 1.0)
    scale_codes = (centred / safe[:, None]).round().flatten()[: len(largest)].to(torch.int8)

    scales = _scales(scale_codes, scale_scales, mean)
    levels = nf4_levels().to(weight.device)
    middles = (levels[1:] + levels[:-1]) / 2
    # Against the scale that will be read back; a block of zeros has code 7, level 0, whatever its scale.
    codes = torch.bucketize(flat / scales.where(scales > 0, 1.0)[:, None], middles).to(torch.uint8).flatten()
    return NF4(codes[0::2] << 4 | codes[1::2], scale_codes, scale_scales, mean)


def dequantize_nf4(packed: NF4, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that the codes stand for.

    Args:
        packed: as :func:`quantize_nf4` returned it.
        shape: of the weight.
        dtype: of the result; it is formed in float32 and rounded once.

    Chapter: Four bits: QLoRA.

    Example:
        >>> weight = torch.tensor([[1.0, -1.0, 0.0, 0.5626]])
        >>> dequantize_nf4(quantize_nf4(weight), (1, 4)).round(decimals=3)
        tensor([[ 1.0000, -1.0000,  0.0000,  0.5630]])
    """
    codes = torch.stack((packed.codes >> 4, packed.codes & 15), dim=1).flatten().long()
    levels = nf4_levels().to(codes.device)
    values = levels[codes].view(-1, BLOCK) * _scales(packed.scale_codes, packed.scale_scales, packed.scale_mean)[:, None]
    return values.flatten()[: torch.Size(shape).numel()].view(shape).to(dtype)


class _Product(torch.autograd.Function):
    """x W^T that keeps the codes for the backward pass, not the weight that it made from them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantize().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantize().to(gradient.dtype), None


class NF4Linear(nn.Module):
    r"""A frozen linear layer whose weight takes 4.127 bits: :math:`y = x\, \tilde W^\top + b`, :math:`\tilde W` dequantized at each use.

    Args:
        base: the linear layer to quantize; its bias is kept as it is.
        dtype: of the dequantized weight; the base's when None.

    Raises:
        TypeError: the base is not an ``nn.Linear``.
        ValueError: its weight holds a NaN or an infinity.

    Source: Dettmers et al. 2023 (QLoRA), section 3.
    Chapter: Four bits: QLoRA.

    Example:
        >>> from lorabook import LoRALinear
        >>> layer = LoRALinear(NF4Linear(nn.Linear(96, 64)), rank=2, alpha=8.0)
        >>> layer(torch.randn(3, 96)).shape
        torch.Size([3, 64])
    """

    def __init__(self, base: nn.Linear, *, dtype: torch.dtype | None = None) -> None:
        if not isinstance(base, nn.Linear):
            raise TypeError(f"base must be an nn.Linear, got {type(base).__name__}")
        packed = quantize_nf4(base.weight)
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.dtype = dtype or base.weight.dtype
        for name, part in packed._asdict().items():
            self.register_buffer(name, part)
        self.bias = None if base.bias is None else nn.Parameter(base.bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (..., in_features)."""
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NF4Linear:
        # A cast of the model is one of what it computes with; rounded scales would be another weight than the one trained against.
        scales = {name: self.get_buffer(name) for name in ("scale_scales", "scale_mean")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, scale in scales.items():
            if self.get_buffer(name).dtype != scale.dtype:
                setattr(self, name, scale.to(self.get_buffer(name).device))
        return self

    def dequantize(self) -> Tensor:
        """The weight, (out_features, in_features)."""
        packed = NF4(*(self.get_buffer(name) for name in NF4._fields))
        return dequantize_nf4(packed, (self.out_features, self.in_features), self.dtype)

    def to_linear(self) -> nn.Linear:
        """A plain frozen layer with the dequantized weight."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.dequantize(), requires_grad=False)
        plain.bias = self.bias
        return plain

    def extra_repr(self) -> str:
        """The sizes, as ``print(model)`` shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _blocks(flat: Tensor, size: int) -> Tensor:
    """(n,) or any shape -> (ceil(n / size), size), padded with zeros."""
    flat = flat.flatten()
    return F.pad(flat, (0, -len(flat) % size)).view(-1, size)


def _scales(codes: Tensor, scale_scales: Tensor, mean: Tensor) -> Tensor:
    """(blocks,): the blocks' largest magnitudes, as their codes give them; never below zero, whatever the rounding."""
    return (codes.float() * scale_scales.repeat_interleave(SCALE_BLOCK)[: len(codes)] + mean).clamp_min(0)
