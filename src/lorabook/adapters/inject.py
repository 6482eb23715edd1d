"""Put LoRA on a model's layers, find it there, switch it off. It works on any ``nn.Module``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lorabook.adapters.linear import AdapterError, LoRALinear, check_settings

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoRAConfig:
    """What to adapt, and how.

    Args:
        rank: r of every adapted layer.
        alpha: the update is scaled by alpha / rank.
        targets: names of the layers to adapt. ``"q_proj"`` matches every module of that name, ``"blocks.0.attention.q_proj"``
            one; the string ``"all-linear"`` matches every linear layer, except one whose weight is shared with another module,
            as the output layer of many language models is.
        dropout: dropout on the input of A.
        rank_stabilized: scale by alpha / sqrt(rank) instead.
        init: how A starts, "kaiming" or "gaussian".

    Raises:
        TypeError: targets is some other string, where a tuple of names is meant.
        ValueError: no targets.

    Chapter: Fine-tuning with LoRA.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] | str = ("q_proj", "v_proj")
    dropout: float = 0.0
    rank_stabilized: bool = False
    init: str = "kaiming"

    def __post_init__(self) -> None:
        if isinstance(self.targets, str) and self.targets != ALL_LINEAR:
            raise TypeError(f"targets is a tuple of names or {ALL_LINEAR!r}: write targets=({self.targets!r},)")
        if not self.targets:
            raise ValueError(f"targets is empty: name layers, or write targets={ALL_LINEAR!r}")


def add_lora(model: nn.Module, config: LoRAConfig, *, generator: torch.Generator | None = None) -> tuple[str, ...]:
    """Wrap every layer that the config targets in :class:`LoRALinear`, in place.

    The whole model is frozen first; afterwards A and B of the adapted layers are all that trains.

    Args:
        model: any module.
        config: what to adapt, and how.
        generator: a CPU generator for the A matrices, used in the order of the layers' names in the model.

    Returns:
        The paths of the adapted layers.

    Raises:
        AdapterError: a target that matches no linear layer (the message lists what there is), a model that already has LoRA, or a
            model that is itself a linear layer.
        ValueError: a rank, alpha, dropout or init outside its range.
        After an error the model is as it was.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> model = nn.ModuleDict({"query": nn.Linear(6, 4), "value": nn.Linear(6, 4)})
        >>> add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("query",)))
        ('query',)
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['query.lora_A', 'query.lora_B']
    """
    if isinstance(model, nn.Linear):
        raise AdapterError("the model is one linear layer: wrap it as LoRALinear(model, rank, alpha)")
    if next(lora_layers(model), None):
        raise AdapterError("the model has LoRA already: remove_lora(model) first")
    paths = _matches(model, config.targets)
    for path in paths:
        try:
            check_settings(model.get_submodule(path), config.rank, config.alpha, config.dropout, config.init)
        except ValueError as error:
            raise ValueError(f"'{path}': {error}") from None

    model.requires_grad_(False)
    wrapped: dict[int, LoRALinear] = {}  # a layer that stands in two places is wrapped once and stays shared
    for path in paths:
        parent, name = parent_of(model, path)
        base = getattr(parent, name)
        if id(base) not in wrapped:
            wrapped[id(base)] = LoRALinear(
                base,
                config.rank,
                config.alpha,
                dropout=config.dropout,
                rank_stabilized=config.rank_stabilized,
                init=config.init,
                generator=generator,
            ).train(base.training)
        setattr(parent, name, wrapped[id(base)])
    return tuple(paths)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Path and layer of every :class:`LoRALinear` in the model; one that stands in two places comes twice."""
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LoRALinear):
            yield path, module


def lora_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Every A and B of the model, each once: what an optimizer gets.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5))
        >>> paths = add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("1",)))
        >>> [tuple(parameter.shape) for parameter in lora_parameters(model)]
        [(2, 4), (5, 2)]
    """
    for module in model.modules():
        if isinstance(module, LoRALinear):
            yield module.lora_A
            yield module.lora_B


@contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Inside the block the model computes what its bare backbone computes; afterwards all is as before, also after an exception.

    Raises:
        AdapterError: the model has no LoRA, or a layer is merged, so that its bare weight is not in use.
    """
    layers = {layer for _, layer in lora_layers(model)}
    if not layers:
        raise AdapterError("the model has no LoRA to disable")
    if any(layer.merged for layer in layers):
        raise AdapterError("a merged adapter cannot be disabled: unmerge_lora(model) first")
    before = {layer: layer.enabled for layer in layers}
    try:
        for layer in layers:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in before.items():
            layer.enabled = enabled


def _matches(model: nn.Module, targets: tuple[str, ...] | str) -> list[str]:
    """Paths of the targeted linear layers, in the order of the model; every target must match."""
    modules = dict(model.named_modules(remove_duplicate=False))
    # nn.MultiheadAttention reads its out_proj's weight and never calls it, so an adapter there would do nothing.
    linear = [
        path
        for path, module in modules.items()
        if isinstance(module, nn.Linear) and not isinstance(modules[path.rpartition(".")[0]], nn.MultiheadAttention)
    ]
    if targets == ALL_LINEAR:
        shared = {path for paths in shared_weights(model).values() for path in paths}
        chosen = [path for path in linear if path not in shared]
        if not chosen:
            raise AdapterError("the model has no linear layer with a weight of its own")
        return chosen
    for target in targets:
        if not any(_fits(path, target) for path in linear):
            raise AdapterError(f"no linear layer matches {target!r}; linear layers end in {_endings(linear)}")
    return [path for path in linear if any(_fits(path, target) for target in targets)]


def _fits(path: str, target: str) -> bool:
    return path == target or path.endswith("." + target)


def _endings(paths: list[str]) -> str:
    return ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in paths)) or "nothing: the model has none"


def shared_weights(model: nn.Module) -> dict[int, list[str]]:
    """Paths of the modules that hold one and the same weight matrix, for those held by more than one module."""
    owners: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1:
                owners[parameter.data_ptr() or id(parameter)].append((path, module))  # on the meta device every address is 0
    return {key: [path for path, _ in found] for key, found in owners.items() if len({module for _, module in found}) > 1}


def parent_of(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the one at ``path``, and the name under which it does."""
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name
