"""``Site``: one place of a model where several adapters take turns over one base. It knows no file format and no config."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from lorabook.adapters.bases import AdapterError, OwnBias
from lorabook.adapters.linear import LoRALinear
from lorabook.adapters.paths import replace, submodule, unwrapped


class Site(nn.Module):
    """A base and the layers that stand in for it, at most one at a time.

    A layer is a :class:`~lorabook.LoRALinear`, an ``OwnBias`` or a ``TrainedCopy``. The site owns the base; a layer
    over it only borrows it, so that parameters and state dicts hold the base once, as ``base``, and each adapter's own tensors
    under ``layers.<name>``.

    Args:
        base: what the model had here.

    Example:
        >>> site = Site(nn.Linear(6, 4))
        >>> site.add("sql", LoRALinear(site.base, rank=2, alpha=8.0))
        >>> site.add("text", LoRALinear(site.base, rank=3, alpha=8.0))
        >>> site.activate("text")
        >>> site.current is site.layers["text"], list(site.state_dict())[:3]
        (True, ['base.weight', 'base.bias', 'layers.sql.lora_A'])
    """

    current: nn.Module | None

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.layers = nn.ModuleDict()
        self.activate(None)

    def add(self, name: str, layer: nn.Module) -> None:
        """Take in a layer; its base, where it is this site's, is borrowed from now on."""
        holder = layer.base if isinstance(layer, LoRALinear) and isinstance(layer.base, OwnBias) else layer
        if holder._modules.get("base") is self.base:
            del holder._modules["base"]
            holder.__dict__["base"] = self.base  # a plain attribute: found by name, not registered
        self.layers[name] = layer

    def activate(self, name: str | None) -> None:
        """Let the layer of that name answer; the base, where the name is None or not here."""
        # A plain attribute, because the layer is registered already. Its own name stays out of it: torch.compile would
        # otherwise build the same graph again for each name.
        self.__dict__["current"] = None if name is None or name not in self.layers else self.layers[name]

    @property
    def active(self) -> str | None:
        """The name of the layer that answers, None for the base."""
        return next((name for name, layer in self.layers.items() if layer is self.current), None)

    @property
    def weight(self) -> Tensor:
        """The weight of what answers, for code that reads a layer's weight instead of calling it."""
        weight: Tensor = (self.base if self.current is None else self.current).weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> Tensor | None:
        """Its bias."""
        bias: Tensor | None = (self.base if self.current is None else self.current).bias  # type: ignore[assignment]
        return bias

    def __getattr__(self, name: str) -> Any:
        """What a site lacks, the layer that answers has, or the base: in_features, say, for code that asks what the layer was."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            for module in (self.__dict__.get("current"), self.__dict__.get("_modules", {}).get("base")):
                if hasattr(module, name) and not name.startswith("__"):
                    return getattr(module, name)
            raise

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the active layer makes of the inputs, whichever the base takes."""
        return self.base(*inputs, **named) if self.current is None else self.current(*inputs, **named)


DISABLED: WeakSet[nn.Module] = WeakSet()
"""Places inside an adapter_disabled block, which puts back what it found when it ends. Copies made in the block are not among them."""

MIXED: WeakSet[nn.Module] = WeakSet()
"""Places inside a mixed_batch block, likewise."""


def places(model: nn.Module, path: str = "") -> Iterator[tuple[str, LoRALinear | Site]]:
    """Path and module of every place that is adapted; one that stands in two places comes twice.

    Example:
        >>> [path for path, _ in places(nn.Sequential(nn.ReLU(), LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0)))]
        ['1']
    """
    model = unwrapped(model)
    if isinstance(model, LoRALinear | Site):
        yield path, model
        return
    for name, child in model._modules.items():
        if child is not None:
            yield from places(child, f"{path}.{name}" if path else name)


def layers_of(place: LoRALinear | Site) -> dict[str, nn.Module]:
    """The layers of a place by the name of their adapter; a bare :class:`LoRALinear` belongs to "default".

    Example:
        >>> list(layers_of(LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0)))
        ['default']
    """
    return {"default": place} if isinstance(place, LoRALinear) else dict(place.layers.items())


def backbone(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Path and module of everything that the model had before it was adapted, under its paths from then.

    Example:
        >>> [path for path, _ in backbone(nn.Sequential(LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0)))]
        ['', '0']
    """
    model = unwrapped(model)
    if isinstance(model, LoRALinear | Site):
        model = unwrapped(model.base)
    yield path, model
    for name, child in model._modules.items():
        if child is not None:
            yield from backbone(child, f"{path}.{name}" if path else name)


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the model's adapters, sorted.

    Example:
        >>> from lorabook import LoRAConfig, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5))
        >>> for name in ("sql", "text"):
        ...     paths = add_lora(model, LoRAConfig(rank=2, targets=("0",)), name)
        >>> adapter_names(model)
        ('sql', 'text')
    """
    return tuple(sorted({name for _, place in places(model) for name in layers_of(place)}))


def active_adapter(model: nn.Module) -> str | None:
    """Name of the adapter that is in use, None when there is none.

    Example:
        >>> from lorabook import LoRAConfig, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> paths = add_lora(model, LoRAConfig(rank=2, targets=("0",)))
        >>> active_adapter(model)
        'default'
    """
    for _, place in places(model):
        if isinstance(place, LoRALinear):
            return "default" if place.enabled else None
        if place.active is not None:
            return place.active
    return None


def layers_named(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """The layers of one adapter by path.

    Raises:
        AdapterError: no adapter has that name.

    Example:
        >>> list(layers_named(nn.Sequential(LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0)), "default"))
        ['0']
    """
    found = {path: layers_of(place)[name] for path, place in places(model) if name in layers_of(place)}
    if not found:
        there = ", ".join(adapter_names(model)) or "none: add_lora(model, LoRAConfig(...)) first"
        raise AdapterError(f"no adapter is called {name!r}; there are: {there}")
    return found


def check_new_name(model: nn.Module, name: str) -> None:
    """Refuse a name that cannot be given to a new adapter.

    Raises:
        AdapterError: the name is taken, or is not made of letters, digits, "_" and "-".

    Example:
        >>> check_new_name(nn.Sequential(nn.Linear(6, 4)), "sql")
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name) or hasattr(nn.ModuleDict(), name):
        raise AdapterError(f"a name is 1 to 100 letters, digits, '_' or '-', and no attribute of ModuleDict, got {name!r}")
    if name in adapter_names(model):
        raise AdapterError(f"the model has LoRA already: remove_lora(model) first, or take a name other than {name!r}")


def check_settled(model: nn.Module, what: str, *, while_disabled: bool = False) -> None:
    """Refuse while an adapter is merged, a mixed batch runs or, unless that is allowed, adapters are disabled.

    Raises:
        AdapterError: as said.

    Example:
        >>> check_settled(nn.Sequential(LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0)), "switching")
    """
    for path, place in places(model):
        if place in MIXED:
            raise AdapterError(f"a mixed_batch block is running, so {what} would go wrong: leave the block first")
        if place in DISABLED and not while_disabled:
            raise AdapterError(f"an adapter_disabled block is running, so {what} would not last: leave the block first")
        if any(isinstance(layer, LoRALinear) and layer.merged for layer in layers_of(place).values()):
            raise AdapterError(f"'{path}' is merged, so {what} would go wrong: unmerge_lora(model) first")


def check_held(model: nn.Module) -> None:
    """Refuse a model that is itself an adapted layer, in whose place nothing can be put.

    Raises:
        AdapterError: it is.

    Example:
        >>> check_held(nn.Sequential(LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0)))
    """
    if isinstance(unwrapped(model), LoRALinear | Site):
        raise AdapterError("the model is itself one adapted layer, which nothing holds: put it into an nn.Sequential, or take model.base")


def install(model: nn.Module, name: str, layers: dict[str, nn.Module]) -> None:
    """Put a new adapter's layers, each built over the base at its path, into the model, and use and train it alone.

    The sole adapter of a model, if called "default", stands bare where it can: the module at its path is the
    :class:`~lorabook.LoRALinear` itself. In every other case each place becomes a :class:`Site`.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> install(model, "sql", {"0": LoRALinear(model[0], rank=2, alpha=8.0)})
        >>> active_adapter(model)
        'sql'
    """
    bare = name == "default" and not adapter_names(model)
    model.requires_grad_(False)
    already: dict[int, Site] = {}  # a layer that stands in two places is put there once and stays shared
    for path, place in [] if bare else list(places(model)):
        if isinstance(place, LoRALinear):
            site = already.setdefault(id(place), Site(place.base))
            if not site.layers:
                site.add("default", place)
            replace(model, path, site)
    for path, layer in layers.items():
        there = submodule(model, path)
        if bare and isinstance(layer, LoRALinear) and not isinstance(layer.base, OwnBias):
            replace(model, path, layer)
            continue
        site = there if isinstance(there, Site) else already.setdefault(id(there), Site(there))
        if name not in site.layers:
            site.add(name, layer)
        replace(model, path, site)
    activate(model, name)


def activate(model: nn.Module, name: str | None) -> None:
    """Use one adapter alone, or none; its parameters train, all others' do not.

    Example:
        >>> model = nn.Sequential(LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0))
        >>> activate(model, None)
        >>> any(parameter.requires_grad for parameter in model.parameters())
        False
    """
    for _, place in places(model):
        for owner, layer in layers_of(place).items():
            for parameter in own(layer):
                parameter.requires_grad_(owner == name)
        if isinstance(place, Site):
            place.activate(name)
        else:
            place.enabled = name == "default"


def own(layer: nn.Module) -> list[nn.Parameter]:
    """An adapter layer's own parameters, without those of its base.

    Example:
        >>> [tuple(parameter.shape) for parameter in own(LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0))]
        [(2, 6), (4, 2)]
    """
    frozen = set()
    if isinstance(layer, LoRALinear):
        frozen = set((layer.base.base if isinstance(layer.base, OwnBias) else layer.base).parameters())
    return [parameter for parameter in layer.parameters() if parameter not in frozen]
