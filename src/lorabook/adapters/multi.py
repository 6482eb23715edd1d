"""The life of several adapters over one backbone: use, rename, delete, combine. It knows no file and no mixed batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lorabook.adapters.bases import AdapterError, features
from lorabook.adapters.factors import cut, factors_of, is_plain, layer_from
from lorabook.adapters.linear import LoRALinear, is_number, is_whole
from lorabook.adapters.merge import plain
from lorabook.adapters.paths import replace
from lorabook.adapters.site import (
    Site,
    activate,
    backbone,
    check_held,
    check_new_name,
    check_settled,
    install,
    layers_named,
    places,
)


def use_adapter(model: nn.Module, name: str) -> None:
    """Use one adapter alone: layers that it does not adapt compute what the backbone computes.

    Its parameters require gradients from now on, those of all others do not.

    Args:
        model: a model with that adapter.
        name: of the adapter.

    Raises:
        AdapterError: no adapter has that name, or one is merged. Nothing has changed then.

    Chapter: Many tasks, one backbone.

    Example:
        >>> from lorabook import LoRAConfig, active_adapter, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> for name in ("sql", "text"):
        ...     paths = add_lora(model, LoRAConfig(rank=2, targets=("0",)), name)
        >>> use_adapter(model, "sql")
        >>> active_adapter(model)
        'sql'
    """
    layers_named(model, name)
    check_settled(model, "switching")
    activate(model, name)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Take one adapter away, the others staying; if it was in use, the backbone is.

    Args:
        model: a model with that adapter.
        name: of the adapter.

    Raises:
        AdapterError: no adapter has that name, or one is merged. Nothing has changed then.

    Chapter: Many tasks, one backbone.

    Example:
        >>> from lorabook import LoRAConfig, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> paths = add_lora(model, LoRAConfig(rank=2, targets=("0",)), "sql")
        >>> delete_adapter(model, "sql")
        >>> model
        Sequential(
          (0): Linear(in_features=6, out_features=4, bias=True)
        )
    """
    layers_named(model, name)
    check_held(model)
    check_settled(model, "deleting an adapter")
    for path, place in list(places(model)):
        if isinstance(place, Site):
            if place.active == name:
                place.activate(None)
            if name in place.layers:
                place.layers.pop(name)
        if not isinstance(place, Site) or not place.layers:
            replace(model, path, plain(place, merge=False))


def rename_adapter(model: nn.Module, old: str, new: str) -> None:
    """Give an adapter another name; nothing else changes.

    Args:
        model: a model with that adapter.
        old: its name.
        new: its name from now on.

    Raises:
        AdapterError: no adapter has the old name, the new one is taken or not a name, or an adapter is merged. Nothing has
            changed then.

    Chapter: Many tasks, one backbone.

    Example:
        >>> from lorabook import LoRAConfig, adapter_names, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> paths = add_lora(model, LoRAConfig(rank=2, targets=("0",)))
        >>> rename_adapter(model, "default", "sql")
        >>> adapter_names(model)
        ('sql',)
    """
    layers_named(model, old)
    check_held(model)
    check_new_name(model, new)
    check_settled(model, "renaming an adapter")
    sites: dict[nn.Module, Site] = {}
    for path, place in list(places(model)):
        if isinstance(place, LoRALinear):
            if place not in sites:
                sites[place] = Site(place.base)
                sites[place].add(new, place)
                sites[place].activate(new if place.enabled else None)
            replace(model, path, sites[place])
        elif old in place.layers:
            active = place.active
            layers = {new if name == old else name: layer for name, layer in place.layers.items()}
            place.layers.clear()
            place.layers.update(layers)
            place.activate(new if active == old else active)


def combine_adapters(model: nn.Module, weights: Mapping[str, float], name: str, *, rank: int | None = None) -> dict[str, float]:
    r"""Make a new adapter whose update is the weighted sum of others', and use it.

    .. math:: \Delta W = \sum_i w_i\, s_i B_i A_i = \begin{bmatrix} w_1 s_1 B_1 & w_2 s_2 B_2 & \cdots \end{bmatrix}
        \begin{bmatrix} A_1 \\ A_2 \\ \vdots \end{bmatrix}

    That is exact, where averaging the A's and the B's would add cross terms; its rank is the sum of the ranks, or min(d, k) where
    that is less, which loses nothing. With ``rank`` the sum is cut to the nearest update of that rank.

    Args:
        model: a model with these adapters; they stay.
        weights: w by adapter, finite.
        name: of the new adapter.
        rank: largest rank of the new adapter; no limit when None.

    Returns:
        By path, the relative Frobenius error of the cut; 0.0 where nothing was cut.

    Raises:
        AdapterError: an unknown adapter, a name that is taken, a merged adapter, a weight that is not finite, a rank below 1, a sum
            that is not finite, or an adapter with DoRA layers, trained biases or modules trained in full, whose sum is not an update of
            that kind. Nothing has changed then.

    Chapter: Many tasks, one backbone.

    Example:
        >>> from lorabook import LoRAConfig, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> for name in ("sql", "text"):
        ...     paths = add_lora(model, LoRAConfig(rank=2, targets=("0",)), name)
        >>> combine_adapters(model, {"sql": 0.7, "text": 0.3}, "both")
        {'0': 0.0}
        >>> model[0].layers["both"].rank
        4
    """
    if not isinstance(weights, Mapping) or not weights or not all(is_number(weight) for weight in weights.values()):
        raise AdapterError(f"weights must name adapters and be finite numbers, as {{'sql': 0.5}}, got {weights!r}")
    if rank is not None and (not is_whole(rank) or rank < 1):
        raise AdapterError(f"rank must be an integer of at least 1, got {rank!r}")
    check_held(model)
    check_new_name(model, name)
    check_settled(model, "combining adapters")
    parts: dict[str, list[tuple[float, LoRALinear]]] = {}
    for adapter, weight in weights.items():
        for path, layer in layers_named(model, adapter).items():
            if not isinstance(layer, LoRALinear) or not is_plain(layer):
                raise AdapterError(f"'{path}' of {adapter!r} is no plain LoRA update, so a weighted sum is not exact: leave it out")
            parts.setdefault(path, []).append((weight, layer))

    bases = dict(backbone(model))
    errors: dict[str, float] = {}
    layers: dict[str, nn.Module] = {}
    with torch.no_grad():
        for path, terms in parts.items():
            A = torch.cat([factors_of(layer)[0] for _, layer in terms])  # (sum of r, in)
            B = torch.cat([weight * layer.scaling * factors_of(layer)[1] for weight, layer in terms], dim=1)  # (out, sum of r)
            errors[path] = 0.0
            if not (A.isfinite().all() and B.isfinite().all()):
                raise AdapterError(f"the sum of '{path}' holds a NaN or an infinity: lower the weights, or leave out what holds it")
            whole = min(features(bases[path]))
            if (wanted := whole if rank is None else min(int(rank), whole)) < A.shape[0]:
                A, B, error = cut(A, B, wanted)
                errors[path] = error if wanted < whole else 0.0
            layers[path] = layer_from(bases[path], A, B, alpha=float(A.shape[0]))
    install(model, name, layers)
    return errors
