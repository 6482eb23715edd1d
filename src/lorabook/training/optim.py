"""AdamW for adapters: which tensor moves at which rate and which decays. It knows no data and no loop."""

from __future__ import annotations

import math

import torch
from torch import nn

from lorabook.adapters.linear import LoRALinear
from lorabook.adapters.site import layers_of, places

_BETAS = (0.9, 0.98)  # the second moment averages some fifty steps; the usual 0.999 would outlast a short run


def adamw(model: nn.Module, *, learning_rate: float, weight_decay: float = 0.0, lora_plus_ratio: float = 1.0) -> torch.optim.AdamW:
    r"""AdamW over all parameters that require a gradient, in groups that settle the learning rate and the decay.

    .. math:: \eta_B = \lambda\, \eta_A, \qquad \theta \leftarrow (1 - \eta\, w)\, \theta - \eta \cdot (\text{Adam's direction})

    ======== ==================================================== ================= ============
    group    tensors                                              learning rate     decay
    ======== ==================================================== ================= ============
    A        every ``lora_A``                                     rate              weight_decay
    B        every ``lora_B``                                     ratio times rate  weight_decay
    matrices all others with two dimensions or more               rate              weight_decay
    vectors  biases, norms' scales, DoRA's magnitudes             rate              0
    ======== ==================================================== ================= ============

    Decay pulls each tensor toward zero, which means different things. With A and B at zero the model is the backbone, so their decay
    holds the model near the backbone (those of PiSSA and OLoRA near the backbone *without* its principal part). A full matrix at zero
    is no model at all: its decay pulls away from the backbone. A magnitude or a norm's scale at zero would switch its layer off,
    so vectors do not decay. As AdamW multiplies the decay by the group's own rate, B decays ratio times as fast as A.

    Args:
        model: with or without adapters.
        learning_rate: of every group but B.
        weight_decay: w, at least 0.
        lora_plus_ratio: :math:`\lambda`, above 0; 1 is plain LoRA, 16 the value that LoRA+ proposes.

    Raises:
        ValueError: nothing to train, a setting outside its range, or a ratio for a model none of whose B trains.

    Source: Loshchilov and Hutter 2019 (AdamW); Hayou et al. 2024 (LoRA+), section 4.
    Chapter: Fine-tuning with LoRA.

    Example:
        >>> from lorabook import LoRAConfig, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> paths = add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("0",)))
        >>> optimizer = adamw(model, learning_rate=0.25, weight_decay=0.5, lora_plus_ratio=16.0)
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        [('A', 0.25, 0.5), ('B', 4.0, 0.5)]
    """
    if not (learning_rate >= 0 and weight_decay >= 0 and 0 < lora_plus_ratio < math.inf):
        raise ValueError(
            "learning_rate and weight_decay must be at least 0 and lora_plus_ratio above 0, "
            f"got {learning_rate}, {weight_decay} and {lora_plus_ratio}"
        )
    groups = parameter_groups(model)
    if not any(groups.values()):
        raise ValueError("no parameter requires a gradient: add an adapter or unfreeze something")
    if lora_plus_ratio != 1 and not groups["B"]:
        raise ValueError(f"lora_plus_ratio is {lora_plus_ratio}, but no lora_B trains: add_lora first, or leave the ratio at 1")
    rates = {name: learning_rate * (lora_plus_ratio if name == "B" else 1) for name in groups}
    settings = [
        {
            "name": name,
            "params": parameters,
            "lr": rates[name],
            "peak": rates[name],
            "weight_decay": 0.0 if name == "vectors" else weight_decay,
        }
        for name, parameters in groups.items()
        if parameters
    ]
    return torch.optim.AdamW(settings, betas=_BETAS)


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters that require a gradient, each once, as the groups A, B, matrices and vectors.

    Example:
        >>> {name: len(found) for name, found in parameter_groups(nn.Linear(6, 4)).items()}
        {'A': 0, 'B': 0, 'matrices': 1, 'vectors': 1}
    """
    layers = [layer for _, place in places(model) for layer in layers_of(place).values() if isinstance(layer, LoRALinear)]
    factors = {id(layer.lora_A): "A" for layer in layers} | {id(layer.lora_B): "B" for layer in layers}
    groups: dict[str, list[nn.Parameter]] = {"A": [], "B": [], "matrices": [], "vectors": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[factors.get(id(parameter), "matrices" if parameter.dim() > 1 else "vectors")].append(parameter)
    return groups


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Linear warm-up to 1, then a half cosine down to 0.

    Args:
        step: 0 for the first step.
        steps: length of the run.
        warmup_steps: how many steps the rise takes.

    Example:
        >>> [round(learning_rate_factor(step, 8, 2), 2) for step in range(8)]
        [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Let each group of an optimizer from :func:`adamw` learn at this share of its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
