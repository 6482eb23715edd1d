"""Which layers of a model a list of names means. It knows paths and kinds of layers, and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

from lorabook.adapters.bases import AdapterError, is_linear, why_not
from lorabook.adapters.linear import LoRALinear
from lorabook.adapters.paths import unwrapped
from lorabook.adapters.site import Site, backbone, places

ALL_LINEAR = "all-linear"
Target = str | re.Pattern[str]
Value = TypeVar("Value")


def fits(path: str, target: Target) -> bool:
    r"""Whether a path is the target, ends in it after a dot, or is matched whole by a regular expression.

    Example:
        >>> fits("blocks.0.q_proj", "q_proj"), fits("blocks.0.q_proj", "proj"), fits("blocks.0.q_proj", re.compile(r".*\.0\..*"))
        (True, False, True)
    """
    if isinstance(target, re.Pattern):
        return target.fullmatch(path) is not None
    return path == target or path.endswith("." + target)


def check_targets(targets: object) -> None:
    """Refuse what is no list of names.

    Raises:
        TypeError: a string other than "all-linear", or a name that is neither a string nor a compiled expression.
        ValueError: no name.

    Example:
        >>> check_targets("q_proj")
        Traceback (most recent call last):
        TypeError: targets is a tuple of names or 'all-linear': write targets=('q_proj',)
    """
    if targets == ALL_LINEAR:
        return
    if isinstance(targets, str) or not isinstance(targets, Iterable):
        raise TypeError(f"targets is a tuple of names or {ALL_LINEAR!r}: write targets=({str(targets)!r},)")
    if not targets:
        raise ValueError(f"targets is empty: name layers, or write targets={ALL_LINEAR!r}")
    check_names(targets)


def check_names(names: Iterable[object]) -> None:
    """Refuse a name that is neither a string nor a compiled expression.

    Example:
        >>> check_names([0])
        Traceback (most recent call last):
        TypeError: a layer's name is a string or a compiled expression, got 0: write '0'
    """
    for name in names:
        if not isinstance(name, str | re.Pattern):
            raise TypeError(f"a layer's name is a string or a compiled expression, got {name!r}: write {str(name)!r}")


def matching_layers(model: nn.Module, targets: Iterable[Target] | str) -> list[str]:
    """Paths of the targeted linear layers and embeddings, in the order of the model; every target must match.

    "all-linear" leaves out a layer whose weight another module shares, and the output layer of a model that says which one that is
    (``get_output_embeddings``, as those of transformers do): the same layers that PEFT takes of a model whose layers are called and
    not shared.

    Raises:
        AdapterError: a target matches nothing, or nothing that can be adapted; the message lists what there is.
        TypeError: targets is some other string, where a tuple of names is meant.

    Example:
        >>> matching_layers(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5)), ("2",))
        ['2']
    """
    check_targets(targets)
    layers = {path: module for path, module in _open_to_adapters(model) if is_linear(module) or isinstance(module, nn.Embedding)}
    if targets == ALL_LINEAR:
        shared = {path for group in shared_weights(model) for path, _ in group if len({module for _, module in group}) > 1}
        head = _output_layer(model)
        chosen = [path for path, module in layers.items() if is_linear(module) and path not in shared and module is not head]
        if not chosen:
            raise AdapterError("the model has no linear layer with a weight of its own")
        return chosen
    for target in targets:
        if not any(fits(path, target) for path in layers):
            linear = _endings(path for path, module in layers.items() if is_linear(module))
            tables = _endings(path for path, module in layers.items() if not is_linear(module))
            named = next((module for path, module in _open_to_adapters(model) if fits(path, target)), None)
            reason = f": {why_not(named)}" if named is not None else ""
            raise AdapterError(f"no linear layer matches {_name(target)}{reason}; linear layers end in {linear}; embeddings in {tables}")
    return [path for path in layers if any(fits(path, target) for target in targets)]


def matching_modules(model: nn.Module, targets: Iterable[Target], adapted: Iterable[str]) -> list[str]:
    """Paths of the modules to train in full; every target must match, and none may hold or lie in another or an adapted layer.

    Raises:
        AdapterError: a target matches nothing, or modules overlap.

    Example:
        >>> matching_modules(nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)), ("1",), ["0"])
        ['1']
    """
    modules = [path for path, _ in _open_to_adapters(model) if path]
    for target in targets:
        if not any(fits(path, target) for path in modules):
            raise AdapterError(f"no module matches {_name(target)}, which is to train in full; modules end in {_endings(modules)}")
    chosen = [path for path in modules if any(fits(path, target) for target in targets)]
    inside = [path for path, place in places(model) if not isinstance(place, Site) or path not in chosen]
    for path in chosen:
        for other in (*chosen, *adapted, *inside):
            if other.startswith(path + ".") or (other == path and other in adapted):
                raise AdapterError(f"'{path}' is to train in full, but '{other}' is in it and adapted too: name one of the two")
    return chosen


def value_for(path: str, patterns: Mapping[Target, Value], default: Value) -> Value:
    """The value of the first pattern that fits the path, else the default.

    Example:
        >>> value_for("blocks.0.q_proj", {"q_proj": 4}, 8), value_for("blocks.0.v_proj", {"q_proj": 4}, 8)
        (4, 8)
    """
    return next((value for target, value in patterns.items() if fits(path, target)), default)


def shared_weights(model: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """Paths and modules that hold weight matrices in one stretch of memory, for each stretch that more than one path leads to.

    Example:
        >>> layer = nn.Linear(6, 6)
        >>> [[path for path, _ in group] for group in shared_weights(nn.Sequential(layer, nn.ReLU(), layer))]
        [['0', '2']]
    """
    held = [
        (str(parameter.device), *_stretch(parameter), path, module)
        for path, module in backbone(model)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim > 1
    ]
    groups: list[list[tuple[str, nn.Module]]] = []
    reached = ("", 0)
    for device, start, stop, path, module in sorted(held, key=lambda item: item[:3]):
        if (device, start) >= reached or device != reached[0]:
            groups.append([])
            reached = (device, stop)
        groups[-1].append((path, module))
        reached = max(reached, (device, stop))
    return [group for group in groups if len({path for path, _ in group}) > 1]


def _stretch(parameter: nn.Parameter) -> tuple[int, int]:
    """The addresses from which and up to which the parameter's numbers lie; on the meta device every address is 0."""
    start = parameter.data_ptr()
    if not start:
        return -id(parameter), 1 - id(parameter)
    last = sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
    return start, start + (last + 1) * parameter.element_size()


def _open_to_adapters(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's own modules, less what lies inside one that an adapter trains in full."""
    sites = [path for path, _ in places(model)]
    return [(path, module) for path, module in backbone(model) if not any(path.startswith(site + ".") for site in sites)]


def _output_layer(model: nn.Module) -> object:
    """The layer that gives the scores of the vocabulary, where the model names it."""
    named = getattr(unwrapped(model), "get_output_embeddings", None)
    head = named() if callable(named) else None
    return head.base if isinstance(head, LoRALinear | Site) else head


def _name(target: Target) -> str:
    return repr(target.pattern if isinstance(target, re.Pattern) else target)


def _endings(paths: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in paths)) or "nothing: the model has none"
