"""Merge a model's adapters into its weights, take them out again, or remove them: all layers or none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lorabook.adapters.bases import AdapterError, OwnBias
from lorabook.adapters.inject import lora_layers
from lorabook.adapters.linear import LoRALinear
from lorabook.adapters.paths import replace
from lorabook.adapters.site import Site, check_held, check_settled, places
from lorabook.adapters.targets import shared_weights
from lorabook.adapters.trained_copy import TrainedCopy

NO_LORA = "the model has no LoRA: add_lora(model, LoRAConfig(...)) first"


def merge_lora(model: nn.Module) -> None:
    """Add every update of the adapter in use to its layer's weight: the model then runs at the speed of its backbone.

    Trained biases and modules trained in full cost nothing extra and stay as they are. While merged, a model refuses to be
    saved, loaded, given another adapter or switched. (``load_state_dict`` comes to the refusal at the first merged layer, and has
    filled by then what stands before it.)

    Args:
        model: a model with LoRA, none of it merged.

    Raises:
        AdapterError: no LoRA, some layer merged already, a NaN or an infinity in an adapter, a quantized base, a sum too large
            for the weight's dtype, or a weight that another module shares and that merging would change there too. No layer has
            been merged then.

    Chapter: LoRALinear.

    Example:
        >>> from lorabook import LoRAConfig, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> paths = add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("0",)))
        >>> merge_lora(model)
        >>> model[0].merged
        True
    """
    layers = _layers(model)
    for path, layer in layers:
        if layer.merged:
            raise AdapterError(f"'{path}' is merged already: unmerge_lora(model) first")
        if not layer.enabled:
            raise AdapterError(f"'{path}' is disabled: merge outside adapter_disabled(model)")
    check_settled(model, "merging")
    bases = dict(layers)
    for group in shared_weights(model):
        merging = [path for path, _ in group if path in bases]
        if merging and len({bases.get(path, module) for path, module in group}) > 1:
            names = " and ".join(f"{path}.base" if path in bases else path for path, _ in group)
            raise AdapterError(
                f"{names} share one weight, so merging would change them all: untie them first, "
                f"module.weight = nn.Parameter(module.weight.clone()), or copy.deepcopy a module that stands in two places"
            )
    try:
        for path, layer in {layer: (path, layer) for path, layer in layers}.values():
            _at(path, layer.merge)
    except BaseException:
        for _, layer in layers:
            if layer.merged:
                layer.unmerge()
        raise


def unmerge_lora(model: nn.Module) -> None:
    """Restore every weight bit for bit to what it was before :func:`merge_lora`.

    Raises:
        AdapterError: no LoRA, or some layer not merged. Nothing has changed then.

    Example:
        >>> from lorabook import LoRAConfig, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> paths = add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("0",)))
        >>> merge_lora(model)
        >>> unmerge_lora(model)
        >>> model[0].merged
        False
    """
    layers = _layers(model)
    for path, layer in layers:
        if not layer.merged:
            raise AdapterError(f"'{path}' is not merged: there is nothing to unmerge")
    for layer in {layer: None for _, layer in layers}:
        layer.unmerge()


def remove_lora(model: nn.Module, *, merge: bool = False) -> None:
    """Take every adapter away and leave the plain layers.

    Args:
        model: a model with LoRA. Its parameters stay frozen: ``model.requires_grad_(True)`` thaws them.
        merge: keep what the adapter in use does, for good: updates added to the weights, trained biases and modules put in place;
            otherwise the model has the parameters from before ``add_lora``.

    Raises:
        AdapterError: no LoRA, or ``merge`` is asked for and :func:`merge_lora` refuses, or a trained bias or module is not finite
            in the model's dtype. Nothing has changed then.

    Example:
        >>> from lorabook import LoRAConfig, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> paths = add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("0",)))
        >>> remove_lora(model)
        >>> model
        Sequential(
          (0): Linear(in_features=6, out_features=4, bias=True)
        )
    """
    found = list(places(model))
    if not found:
        raise AdapterError(NO_LORA)
    check_held(model)
    layers = _layers(model) if merge else list(lora_layers(model))
    for path, place in found if merge else ():
        _check_kept(path, place)
    if merge and not all(layer.merged for _, layer in layers):
        merge_lora(model)
    for _, layer in layers:
        if layer.merged and not merge:
            layer.unmerge()
    for path, place in found:
        replace(model, path, plain(place, merge=merge))


def plain(place: LoRALinear | Site, *, merge: bool) -> nn.Module:
    """What is to stand at a place without adapters; with ``merge``, the biases and modules that its active layer trained.

    Example:
        >>> plain(LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0), merge=False)
        Linear(in_features=6, out_features=4, bias=True)
    """
    layer = place.current if isinstance(place, Site) else place
    if merge and isinstance(layer, TrainedCopy):
        return layer.module.to(layer.outer.dtype).requires_grad_(False)
    base = place.base
    biased = layer.base if isinstance(layer, LoRALinear) else layer
    if merge and isinstance(biased, OwnBias):  # a new parameter, since another module may share the old one
        dtype = base.get_parameter("bias").dtype
        base.bias = nn.Parameter(biased.bias.detach().to(dtype, copy=True), requires_grad=False)
    return base


def _check_kept(path: str, place: LoRALinear | Site) -> None:
    """Refuse to keep a trained bias or module that is not finite, or would not be in the model's own dtype."""
    layer = place.current if isinstance(place, Site) else place
    biased = layer.base if isinstance(layer, LoRALinear) else layer
    kept: list[tuple[Tensor, torch.dtype]] = []
    if isinstance(layer, TrainedCopy):
        kept = [(parameter, layer.outer.dtype) for parameter in layer.module.parameters()]
    elif isinstance(biased, OwnBias):
        kept = [(biased.bias, biased.base.get_parameter("bias").dtype)]
    for tensor, dtype in kept:
        if not tensor.detach().to(dtype).isfinite().all():
            raise AdapterError(f"'{path}' was trained to a NaN, an infinity or a number too large for {dtype}: it is not kept")


def _at(path: str, action: Callable[[], None]) -> None:
    """Do it, and say where it went wrong."""
    try:
        action()
    except AdapterError as error:
        raise AdapterError(str(error).replace("this layer", f"'{path}'")) from None


def _layers(model: nn.Module) -> list[tuple[str, LoRALinear]]:
    layers = list(lora_layers(model))
    if not layers:
        in_use = "no adapter is in use: use_adapter first, and not while the adapters are disabled"
        raise AdapterError(in_use if any(True for _ in places(model)) else NO_LORA)
    return layers
