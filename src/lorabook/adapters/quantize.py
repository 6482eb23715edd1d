"""Swap a model's linear layers for four-bit ones, and back. It knows which layers there are, not what they compute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import nn

from lorabook.adapters.bases import AdapterError
from lorabook.adapters.nf4 import NF4Linear
from lorabook.adapters.paths import replace, submodule
from lorabook.adapters.site import places
from lorabook.adapters.targets import ALL_LINEAR, Target, matching_layers


def quantize_base(model: nn.Module, targets: Iterable[Target] | str = ALL_LINEAR) -> tuple[str, ...]:
    """Replace linear layers by :class:`~lorabook.NF4Linear`, in place; adapters are then trained on top.

    Args:
        model: any module without adapters.
        targets: as in :class:`~lorabook.LoRAConfig`.

    Returns:
        The paths of the quantized layers.

    Raises:
        AdapterError: the model has adapters, trained over weights that rounding would change; a target that matches nothing or
            is no ``nn.Linear``; a weight that is not finite. Nothing has changed then.

    Chapter: Four bits: QLoRA.

    Example:
        >>> model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 5))
        >>> quantize_base(model, ("0",))
        ('0',)
        >>> model[0]
        NF4Linear(in_features=96, out_features=64, bias=True)
    """
    if any(True for _ in places(model)):
        raise AdapterError("the model has adapters, trained over the weights as they are: quantize before add_lora")
    paths = matching_layers(model, targets)
    quantized: dict[nn.Module, NF4Linear] = {}  # one for a layer that stands in two places
    try:
        for path in paths:
            layer = submodule(model, path)
            if layer not in quantized:
                quantized[layer] = NF4Linear(cast(nn.Linear, layer))
    except (TypeError, ValueError) as error:
        raise AdapterError(f"cannot quantize '{path}': {error}") from None
    for path, layer in [(path, submodule(model, path)) for path in paths]:
        replace(model, path, quantized.get(layer, layer))
    return tuple(paths)


def dequantize_base(model: nn.Module) -> None:
    """Replace every four-bit layer by an ``nn.Linear`` that holds its dequantized weight, the one that adapters were trained on.

    Args:
        model: with or without adapters; these stay, and can be merged afterwards.

    Raises:
        AdapterError: no four-bit layer, or the model is itself one.

    Chapter: Four bits: QLoRA.

    Example:
        >>> from lorabook import LoRAConfig, add_lora, merge_lora
        >>> model = nn.Sequential(nn.Linear(96, 64))
        >>> paths = quantize_base(model)
        >>> paths = add_lora(model, LoRAConfig(rank=2, targets=("0",)))
        >>> dequantize_base(model)
        >>> merge_lora(model)
    """
    if isinstance(model, NF4Linear):
        raise AdapterError("the model is itself a four-bit layer, which nothing holds: take model.to_linear()")
    plain = {module: module.to_linear() for module in model.modules() if isinstance(module, NF4Linear)}
    if not plain:
        raise AdapterError("the model has no four-bit layer to dequantize")
    for module in list(model.modules()):
        for held in (module._modules, module.__dict__):  # a layer at a site borrows its base as a plain attribute
            for key, child in list(held.items()):
                if isinstance(child, NF4Linear):
                    held[key] = plain[child]
