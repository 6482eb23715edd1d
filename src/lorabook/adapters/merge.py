"""Merge a model's adapters into its weights, take them out again, or remove them: all layers or none."""

from __future__ import annotations

from torch import nn

from lorabook.adapters.inject import lora_layers, parent_of, shared_weights
from lorabook.adapters.linear import AdapterError, LoRALinear


def merge_lora(model: nn.Module) -> None:
    """Add every update to its layer's weight: the model then runs at the speed of its backbone.

    Args:
        model: a model with LoRA, none of it merged.

    Raises:
        AdapterError: no LoRA, some layer merged already, a NaN or an infinity in an adapter, or a weight that another module
            shares and that merging would change there too. No layer has been merged then.

    Chapter: LoRALinear.
    """
    layers = _layers(model)
    for path, layer in layers:
        if layer.merged:
            raise AdapterError(f"'{path}' is merged already: unmerge_lora(model) first")
        if not layer.enabled:
            raise AdapterError(f"'{path}' is disabled: merge outside adapter_disabled(model)")
        if not (layer.lora_A.isfinite().all() and layer.lora_B.isfinite().all()):
            raise AdapterError(f"'{path}' holds a NaN or an infinity in lora_A or lora_B: it cannot be merged")
    bases = {f"{path}.base".lstrip(".") for path, _ in layers}
    for paths in shared_weights(model).values():
        if bases.intersection(paths):
            raise AdapterError(f"{' and '.join(paths)} share one weight, so merging would change them all: untie them first")
    merged: list[LoRALinear] = []
    try:
        for layer in {layer: None for _, layer in layers}:
            layer.merge()
            merged.append(layer)
    except AdapterError:
        for layer in merged:
            layer.unmerge()
        raise


def unmerge_lora(model: nn.Module) -> None:
    """Restore every weight bit for bit to what it was before :func:`merge_lora`.

    Raises:
        AdapterError: no LoRA, or some layer not merged. Nothing has changed then.
    """
    layers = _layers(model)
    for path, layer in layers:
        if not layer.merged:
            raise AdapterError(f"'{path}' is not merged: there is nothing to unmerge")
    for layer in {layer: None for _, layer in layers}:
        layer.unmerge()


def remove_lora(model: nn.Module, *, merge: bool = False) -> None:
    """Take every adapter away and leave plain linear layers.

    Args:
        model: a model with LoRA. Its parameters stay frozen: ``model.requires_grad_(True)`` thaws them.
        merge: keep the updates, added to the weights for good; otherwise the weights are those from before ``add_lora``.

    Raises:
        AdapterError: no LoRA, or ``merge`` is asked for and :func:`merge_lora` refuses. Nothing has changed then.

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
    layers = _layers(model)
    if isinstance(model, LoRALinear):
        raise AdapterError("the model is itself a LoRALinear, which nothing holds: its plain layer is model.base")
    if merge and not all(layer.merged for _, layer in layers):
        merge_lora(model)
    for path, layer in layers:
        if layer.merged and not merge:
            layer.unmerge()
        parent, name = parent_of(model, path)
        setattr(parent, name, layer.base)


def _layers(model: nn.Module) -> list[tuple[str, LoRALinear]]:
    layers = list(lora_layers(model))
    if not layers:
        raise AdapterError("the model has no LoRA: add_lora(model, LoRAConfig(...)) first")
    return layers
