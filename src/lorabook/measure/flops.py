"""How many floating-point operations training takes in its matrix products: predicted from shapes, and counted as they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lorabook.adapters.targets import ALL_LINEAR, Target
from lorabook.measure.counting import count_lora, linear_sizes
from lorabook.measure.presets import ModelShape


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, a multiplication and an addition being two.

    Args:
        forward: of the forward pass.
        backward: of the backward pass.

    Example:
        >>> Flops(forward=2, backward=4).total
        6
    """

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Both passes."""
        return self.forward + self.backward


def training_flops(
    model: nn.Module | ModelShape, method: str, *, rank: int = 8, targets: Iterable[Target] | str = ALL_LINEAR, tokens: int = 1
) -> Flops:
    r"""Predict the operations of one step in the linear layers, output head included.

    A :math:`d \times k` matrix takes 2dk forward, 2dk for the gradient of its input and, if it trains, 2dk for that of its weight. An
    adapter has two matrices, both trained: :math:`6 r (d + k)` in all. So the ratio of LoRA to full fine-tuning is

    .. math:: \frac{4 d k + 6 r (d + k)}{6 d k} = \frac{2}{3} + \frac{r (d + k)}{d k} .

    Attention scores, norms and everything else that grows slower than the matrices are left out. Each linear layer is taken to run once
    for each token, so a layer that stands in several places, and a mixture of experts, takes other numbers. Every layer is given an
    input gradient; those at the bottom of the model, below which nothing trains, do without, and a real backward pass is a little
    cheaper.

    Args:
        model: a bare module, which may be on the meta device, or the shapes of one.
        method: "full" or "lora".
        rank: r of the adapter; without meaning for "full".
        targets: the linear layers that the adapter adapts, as in :class:`~lorabook.LoRAConfig`.
        tokens: how many go through.

    Raises:
        AdapterError: a target that matches no layer.
        ValueError: another method, or a rank outside 1..min(d, k) of a targeted layer.

    Source: Schulman et al. 2025 (LoRA Without Regret); Kaplan et al. 2020 for 6 operations a parameter.
    Chapter: Counting: parameters, memory, FLOPs.

    Example:
        >>> model = nn.Sequential(nn.Linear(60, 40))
        >>> training_flops(model, "full"), training_flops(model, "lora", rank=2)
        (Flops(forward=4800, backward=9600), Flops(forward=5200, backward=5600))
    """
    if method not in ("full", "lora"):
        raise ValueError(f"method must be full or lora, got {method!r}")
    linear = linear_sizes(model)
    matrices = sum(d * k for d, k in linear.values())
    if method == "full":
        return Flops(2 * matrices * tokens, 4 * matrices * tokens)
    adapters = sum(numbers for path, numbers in count_lora(model, targets, rank).layers.items() if path in linear)
    return Flops(2 * (matrices + adapters) * tokens, (2 * matrices + 4 * adapters) * tokens)


def counted_flops(model: nn.Module, loss: Callable[[], Tensor]) -> Flops:
    """Count the operations of the matrix products as PyTorch runs them; the gradients are cleared afterwards.

    Products that run in batches (``bmm``) are left out: those of attention, and of a frozen layer whose three-dimensional input is not
    contiguous.

    Args:
        model: whose parameters receive gradients.
        loss: computes the loss of one batch with the model.

    Chapter: Counting: parameters, memory, FLOPs.

    Example:
        >>> layer = nn.Linear(60, 40)
        >>> counted_flops(layer, lambda: layer(torch.ones(3, 60)).sum())  # nobody asks for the gradient of the input
        Flops(forward=14400, backward=14400)
    """
    with FlopCounterMode(display=False) as forward:
        value = loss()
    with FlopCounterMode(display=False) as backward:
        value.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    return Flops(_products(forward), _products(backward))


def _products(counter: FlopCounterMode) -> int:
    counts = counter.get_flop_counts().get("Global", {})
    return int(sum(count for operation, count in counts.items() if operation in (torch.ops.aten.mm, torch.ops.aten.addmm)))
