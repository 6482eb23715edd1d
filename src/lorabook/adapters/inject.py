"""Put LoRA on a model's layers, find it there, switch it off. It works on any ``nn.Module``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from lorabook.adapters.bases import AdapterError, OwnBias, is_linear
from lorabook.adapters.decomposed import DecomposedLoRALinear
from lorabook.adapters.dora import DoRALinear
from lorabook.adapters.embedding import LoRAEmbedding
from lorabook.adapters.inits import DECOMPOSITIONS, INITS
from lorabook.adapters.linear import LoRALinear
from lorabook.adapters.site import DISABLED, Site, backbone, check_new_name, check_settled, install, layers_named, own, places
from lorabook.adapters.targets import Target, check_names, check_targets, matching_layers, matching_modules, value_for
from lorabook.adapters.trained_copy import TrainedCopy


@dataclass(frozen=True)
class LoRAConfig:
    r"""What to adapt, and how.

    Args:
        rank: r of every adapted layer.
        alpha: the update is scaled by alpha / rank.
        targets: the layers to adapt. ``"q_proj"`` matches every layer of that name, ``"blocks.0.attention.q_proj"`` one,
            ``re.compile(r"blocks\.[01]\..*_proj")`` those whose whole path it matches; the string ``"all-linear"`` matches every
            linear layer, except one whose weight another module shares, and the output layer of a model that names it
            (``get_output_embeddings``), as PEFT does. Embeddings are adapted where they are named.
        dropout: dropout on the input of A; an embedding has none.
        rank_stabilized: scale by alpha / sqrt(rank) instead.
        init: how linear layers start, "kaiming", "gaussian", "orthogonal", "pissa" or "olora".
        dora: make linear layers :class:`~lorabook.DoRALinear`.
        freeze_a: train B alone (LoRA-FA, Zhang et al. 2023); A is then a buffer. A loaded adapter trains both again.
        bias: which biases train too, "none", "lora_only" (of adapted layers) or "all".
        train_modules: modules to train in full, named as targets are.
        rank_pattern: other ranks for some targets, by name or regular expression; the first that fits counts.
        alpha_pattern: other alphas, likewise.

    Raises:
        TypeError: targets is some other string, where a tuple of names is meant; a name that is no string or expression.
        ValueError: no targets, or another bias mode.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> import re
        >>> LoRAConfig(rank=4, targets=(re.compile(r"blocks\.[01]\..*"),), rank_pattern={"v_proj": 8}).alpha
        16.0
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[Target, ...] | str = ("q_proj", "v_proj")
    dropout: float = 0.0
    rank_stabilized: bool = False
    init: str = "kaiming"
    dora: bool = False
    freeze_a: bool = False
    bias: str = "none"
    train_modules: tuple[Target, ...] = ()
    rank_pattern: Mapping[Target, int] = field(default_factory=dict, hash=False)
    alpha_pattern: Mapping[Target, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_targets(self.targets)
        if not isinstance(self.train_modules, tuple):
            raise TypeError(f"train_modules is a tuple of names, got {self.train_modules!r}")
        if not isinstance(self.rank_pattern, Mapping) or not isinstance(self.alpha_pattern, Mapping):
            raise TypeError("rank_pattern and alpha_pattern must be dictionaries from a name to a number")
        check_names((*self.train_modules, *self.rank_pattern, *self.alpha_pattern))
        if self.bias not in ("none", "lora_only", "all"):
            raise ValueError(f"bias must be none, lora_only or all, got {self.bias!r}")


def add_lora(model: nn.Module, config: LoRAConfig, name: str = "default", *, generator: torch.Generator | None = None) -> tuple[str, ...]:
    """Adapt every layer that the config targets, in place, and use the new adapter.

    All parameters are frozen first, those of other adapters included; afterwards the new adapter is all that trains. A BatchNorm in
    training mode still moves its running means, which no adapter saves: keep it in eval(), or name it among ``train_modules``. With
    gradient checkpointing use ``use_reentrant=False``: the other kind passes no gradient on from a frozen embedding.

    Args:
        model: any module.
        config: what to adapt, and how.
        name: of the adapter: letters, digits, "_" and "-".
        generator: a CPU generator for the factors, used in the order of the layers' names in the model.

    Returns:
        The paths of the adapted layers.

    Raises:
        AdapterError: a target that matches no layer (the message lists what there is), a name that is taken, a merged adapter,
            modules that overlap, or a model that is itself a linear layer.
        TypeError: no LoRAConfig.
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
    if not isinstance(config, LoRAConfig):
        raise TypeError(f"config must be a LoRAConfig, got {type(config).__name__}: write LoRAConfig(rank=8, targets=(...))")
    if is_linear(model) or isinstance(model, nn.Embedding):
        raise AdapterError("the model is one linear layer: wrap it as LoRALinear(model, rank, alpha)")
    check_new_name(model, name)
    check_settled(model, "adding an adapter")
    paths = matching_layers(model, config.targets)
    whole = matching_modules(model, config.train_modules, paths)
    _check_patterns(config, paths)
    biases = _biases(model, config, paths, whole)
    own_modules = dict(backbone(model))
    for path in paths:  # before any layer draws a random number
        rank, alpha = _rank_and_alpha(path, config)
        try:
            _kind(own_modules[path], config).check_settings(own_modules[path], rank, alpha, config.dropout, config.init)
        except ValueError as error:
            raise ValueError(f"'{path}': {error}") from None

    def build(path: str) -> nn.Module:
        base = own_modules[path]
        if path in whole:
            return TrainedCopy(base)
        return _adapted(base, path, config, path in biases, generator) if path in paths else OwnBias(base)

    install(model, name, build_all(model, [*paths, *(path for path in biases if path not in paths), *whole], build))
    return tuple(paths)


def build_all(model: nn.Module, paths: list[str], build: Callable[[str], nn.Module]) -> dict[str, nn.Module]:
    """Build a layer for each path, one for a base that stands in two places; an error leaves the model as it was.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> list(build_all(model, ["0"], lambda path: LoRALinear(model[0], rank=2, alpha=8.0)))
        ['0']
    """
    if "" in paths:
        raise AdapterError("the model is one layer, which nothing holds: put it into an nn.Sequential")
    own_modules = dict(backbone(model))
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    built: dict[int, nn.Module] = {}
    try:
        for path in paths:
            base = own_modules[path]
            if id(base) not in built:
                built[id(base)] = build(path).train(base.training)
    except Exception as error:
        for parameter, requires_grad in before.items():
            parameter.requires_grad_(requires_grad)
        if isinstance(error, ValueError):
            raise ValueError(f"'{path}': {error}") from None
        raise
    return {path: built[id(own_modules[path])] for path in paths}


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Path and layer of every LoRA layer in use; one that stands in two places comes twice.

    Example:
        >>> [path for path, _ in lora_layers(nn.Sequential(nn.ReLU(), LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0)))]
        ['1']
    """
    for path, place in places(model):
        layer = place if isinstance(place, LoRALinear) else place.current
        if isinstance(layer, LoRALinear):
            yield path, layer


def lora_parameters(model: nn.Module, name: str | None = None) -> Iterator[nn.Parameter]:
    """Every parameter of an adapter, each once: what an optimizer gets.

    Args:
        model: a model with LoRA; one without yields nothing.
        name: of the adapter; those in use when None.

    Raises:
        AdapterError: no adapter has that name.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5))
        >>> paths = add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("1",)))
        >>> [tuple(parameter.shape) for parameter in lora_parameters(model)]
        [(2, 4), (5, 2)]
    """
    if name is not None:
        layers = list(layers_named(model, name).values())
    else:
        current = [place if isinstance(place, LoRALinear) else place.current for _, place in places(model)]
        layers = [layer for layer in current if layer is not None]
    yield from dict.fromkeys(parameter for layer in layers for parameter in own(layer))


@contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Inside the block the model computes with its bare backbone's parameters; afterwards all is as before, also after an exception.

    Inside, adapters are neither added nor switched, renamed or deleted, which the end of the block would undo.

    Raises:
        AdapterError: the model has no LoRA, or a layer is merged, so that its bare weight is not in use.

    Example:
        >>> backbone = nn.Linear(6, 4)
        >>> model = nn.Sequential(backbone)
        >>> paths = add_lora(model, LoRAConfig(rank=2, targets=("0",)))
        >>> x = torch.randn(3, 6)
        >>> with adapter_disabled(model):
        ...     torch.equal(model(x), backbone(x))
        True
    """
    found = list(dict.fromkeys(place for _, place in places(model)))
    if not found:
        raise AdapterError("the model has no LoRA to disable")
    if any(layer.merged for _, layer in lora_layers(model)):
        raise AdapterError("a merged adapter cannot be disabled: unmerge_lora(model) first")
    check_settled(model, "disabling an adapter", while_disabled=True)
    before = [place.current if isinstance(place, Site) else place.enabled for place in found]
    newly = [place for place in found if place not in DISABLED]
    try:
        DISABLED.update(newly)
        for place in found:
            place.__dict__.update({"current": None} if isinstance(place, Site) else {"enabled": False})
        yield
    finally:
        DISABLED.difference_update(newly)
        for place, state in zip(found, before, strict=True):
            place.__dict__["current" if isinstance(place, Site) else "enabled"] = state


def _adapted(base: nn.Module, path: str, config: LoRAConfig, own_bias: bool, generator: torch.Generator | None) -> LoRALinear:
    rank, alpha = _rank_and_alpha(path, config)
    kind = _kind(base, config)
    if kind is LoRAEmbedding:
        return LoRAEmbedding(base, rank, alpha, rank_stabilized=config.rank_stabilized, generator=generator)
    layer = kind(
        OwnBias(base) if own_bias else base,
        rank,
        alpha,
        dropout=config.dropout,
        rank_stabilized=config.rank_stabilized,
        init=config.init,
        generator=generator,
    )
    if config.freeze_a:
        A = layer.lora_A.detach()
        del layer.lora_A
        layer.register_buffer("lora_A", A)
    return layer


def _kind(base: nn.Module, config: LoRAConfig) -> type[LoRALinear]:
    """The class of layer that goes over this base."""
    if config.init not in INITS and config.init not in DECOMPOSITIONS:
        raise ValueError(f"init must be one of {', '.join((*INITS, *DECOMPOSITIONS))}, got {config.init!r}")
    if isinstance(base, nn.Embedding):
        if config.dora or config.freeze_a:
            raise ValueError("DoRA and a frozen A need a linear layer, and this is an embedding: leave it out of the targets")
        return LoRAEmbedding
    if config.dora:
        return DoRALinear
    return DecomposedLoRALinear if config.init in DECOMPOSITIONS else LoRALinear


def _rank_and_alpha(path: str, config: LoRAConfig) -> tuple[int, float]:
    return value_for(path, config.rank_pattern, config.rank), value_for(path, config.alpha_pattern, config.alpha)


def _check_patterns(config: LoRAConfig, paths: list[str]) -> None:
    for pattern in (*config.rank_pattern, *config.alpha_pattern):
        if not any(value_for(path, {pattern: True}, False) for path in paths):
            raise AdapterError(f"the pattern {pattern!r} fits none of the adapted layers: {', '.join(paths)}")


def _biases(model: nn.Module, config: LoRAConfig, paths: list[str], whole: list[str]) -> list[str]:
    """Paths of the modules whose bias the config trains, without those that train in full."""
    found = []
    for path, module in backbone(model):
        inside = any(path == outer or path.startswith(outer + ".") for outer in whole)
        if config.bias == "none" or inside or (config.bias == "lora_only" and path not in paths):
            continue
        for parameter_name, _ in module.named_parameters(recurse=False):
            if parameter_name == "bias" and not any(True for _ in module.children()):
                found.append(path)
            elif "bias" in parameter_name:  # not the whole bias of a layer
                raise AdapterError(f"bias='all' cannot train '{path}.{parameter_name}': name '{path}' among train_modules")
    return found
