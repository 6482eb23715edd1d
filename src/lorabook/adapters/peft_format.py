"""Save an adapter as a directory that PEFT reads, and load such a directory. It knows no training and no network."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from lorabook.adapters.bases import AdapterError, OwnBias, is_conv1d, is_linear
from lorabook.adapters.dora import DoRALinear
from lorabook.adapters.embedding import LoRAEmbedding
from lorabook.adapters.factors import factors_of
from lorabook.adapters.fingerprint import base_fingerprint
from lorabook.adapters.linear import LoRALinear
from lorabook.adapters.paths import unwrapped
from lorabook.adapters.peft_config import PeftConfig, dump_config, endings, parse_config
from lorabook.adapters.peft_keys import tensors_of
from lorabook.adapters.peft_read import build_layers, largest_bytes
from lorabook.adapters.site import backbone, check_held, check_new_name, check_settled, install, layers_named
from lorabook.adapters.storage import CONFIG, check_case, locate, read_pair, write_pair
from lorabook.adapters.trained_copy import TrainedCopy

Value = TypeVar("Value")


def save_adapter(model: nn.Module, directory: str | Path, name: str = "default") -> Path:
    """Write one adapter as PEFT's two files, so that a crash leaves the adapter that was there or the new one, whole.

    An adapter called "default" goes into the directory itself, any other into the subfolder of its name. PiSSA and OLoRA are
    written as the change since the start, at twice the rank, so that any reader gets them right on the original base. The
    tensors' metadata hold a fingerprint of the base.

    What no parameter holds is not saved: the running means of a BatchNorm that was in training mode while the adapter learned, say. Keep
    it in eval(), or name it among the config's ``train_modules``.

    Args:
        model: a model with that adapter, not merged.
        directory: where to write; it is made if need be.
        name: of the adapter.

    Returns:
        The directory of the two files.

    Raises:
        AdapterError: no adapter has that name, one is merged, the adapter holds a NaN or an infinity, or the directory holds an
            adapter whose name differs in upper and lower case only; layers put in place by hand that differ in what PEFT's files
            hold once for all (dropout, DoRA). Nothing is written then.
        OSError: the directory cannot be written.

    Chapter: Saving, sharing, loading safely.

    Example:
        >>> import tempfile
        >>> from lorabook import LoRAConfig, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> paths = add_lora(model, LoRAConfig(rank=2, targets=("0",)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in save_adapter(model, folder).iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    layers = layers_named(model, name)
    check_held(model)
    check_settled(model, "saving", while_disabled=True)
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        tensors.update(tensors_of(path, layer))
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise AdapterError(f"{key} holds a NaN or an infinity, so adapter {name!r} is not saved: train it again")
    config = _config_of(model, layers)
    own_modules = dict(backbone(model))
    base_name = getattr(getattr(unwrapped(model), "config", None), "name_or_path", None)
    content = dump_config(
        config,
        base_name=base_name if isinstance(base_name, str) and base_name else None,
        fan_in_fan_out=any(is_conv1d(own_modules[path]) for path, layer in layers.items() if isinstance(layer, LoRALinear)),
    )
    target = Path(directory) / ("" if name == "default" else name)
    check_case(target)
    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    write_pair(target, content, plain, {"format": "pt", "base_fingerprint": base_fingerprint(model)})
    return target


def load_adapter(model: nn.Module, directory: str | Path, name: str = "default", *, check_base: bool = True) -> tuple[str, ...]:
    """Add the adapter in a directory, ours or PEFT's, under a name; like a new one it is in use and all that trains.

    Every tensor must be expected and every expected one be there; nothing in the model changes before all has been checked.

    Args:
        model: the backbone, with or without other adapters.
        directory: as :func:`save_adapter` or PEFT wrote it. The adapter is looked for in its subfolder ``name``, then in the
            directory itself.
        name: that the adapter gets in the model.
        check_base: compare the fingerprint of the base, if the file has one, with this model's.

    Returns:
        The paths of the adapted layers.

    Raises:
        AdapterError: a name that is taken, a merged adapter; files that are missing, damaged or lead out of the directory; tensors
            that are unexpected, missing, misshapen, not floating-point or not finite; settings that are unknown or disagree with
            the tensors; another base. The model is as it was.

    Chapter: Saving, sharing, loading safely.

    Example:
        >>> import tempfile
        >>> from lorabook import LoRAConfig, add_lora, remove_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> paths = add_lora(model, LoRAConfig(rank=2, targets=("0",)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = save_adapter(model, folder)
        ...     remove_lora(model)
        ...     load_adapter(model, folder)
        ('0',)
    """
    check_held(model)
    check_new_name(model, name)
    check_settled(model, "loading")
    try:
        found = locate(Path(directory), name)
        content, tensors, metadata = read_pair(found, largest_bytes(model))
    except (OSError, ValueError) as error:  # a directory that cannot be entered, a name that holds a zero byte
        raise AdapterError(f"'{directory}' cannot be read: {error}") from None
    config = parse_config(content, str(found / CONFIG))
    expected = metadata.get("base_fingerprint")
    if check_base and expected is not None and expected != (actual := base_fingerprint(model)):
        raise AdapterError(
            f"'{found}' was trained on another base (fingerprint {expected[:12]}, this model's is {actual[:12]}): load that one, "
            "or pass check_base=False if only its dtype differs"
        )
    layers = build_layers(model, config, tensors, str(found))
    install(model, name, layers)
    return tuple(path for path, layer in layers.items() if isinstance(layer, LoRALinear))


def _config_of(model: nn.Module, layers: dict[str, nn.Module]) -> PeftConfig:
    """The settings that describe these layers; ranks and alphas that differ go under whole, escaped paths, in no need of order."""
    lora = {path: layer for path, layer in layers.items() if isinstance(layer, LoRALinear)}
    ranks = {path: factors_of(layer)[0].shape[0] for path, layer in lora.items()}
    stabilized = bool(lora) and all(layer.rank_stabilized for layer in lora.values())
    alphas = {path: _alpha(layer, ranks[path], stabilized) for path, layer in lora.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] if values else 1 for values in (ranks, alphas))
    dropout = _common({path: layer.dropout.p for path, layer in lora.items() if not isinstance(layer, LoRAEmbedding)}, "dropout")
    dora = _common({path: isinstance(layer, DoRALinear) for path, layer in lora.items()}, "DoRA")
    return PeftConfig(
        r=int(rank),
        lora_alpha=alpha,
        target_modules=_target_modules(model, frozenset(lora)),
        lora_dropout=float(dropout or 0.0),
        use_rslora=stabilized,
        use_dora=bool(dora),
        bias=_bias(layers),
        modules_to_save=frozenset(path for path, layer in layers.items() if isinstance(layer, TrainedCopy)),
        rank_pattern={f"^{re.escape(path)}": value for path, value in ranks.items() if value != rank},
        alpha_pattern={f"^{re.escape(path)}": value for path, value in alphas.items() if value != alpha},
    )


def _common(values: dict[str, Value], what: str) -> Value | None:
    """The one value of all layers, since the files hold no more than one.

    Raises:
        AdapterError: there are several.
    """
    first = next(iter(values), "")
    for path, value in values.items():
        if value != values[first]:
            rule = "PEFT's files hold one for all layers: make them alike"
            raise AdapterError(f"'{first}' and '{path}' differ in {what} ({values[first]} and {value}), and {rule}")
    return values.get(first)


def _alpha(layer: LoRALinear, rank: int, stabilized: bool) -> float:
    """The alpha that gives the layer's scaling at the rank that is written, which for PiSSA and OLoRA is twice the layer's."""
    if stabilized == layer.rank_stabilized:
        alpha = float(layer.alpha * (math.sqrt(rank / layer.rank) if stabilized else rank / layer.rank))
    else:  # one of several layers, whose kinds of scaling differ: all are written as alpha / rank
        alpha = float(layer.scaling * rank)
    return int(alpha) if alpha == int(alpha) else alpha


def _bias(layers: dict[str, nn.Module]) -> str:
    if any(isinstance(layer, OwnBias) for layer in layers.values()):
        return "all"
    return "lora_only" if any(isinstance(layer, LoRALinear) and isinstance(layer.base, OwnBias) for layer in layers.values()) else "none"


def _target_modules(model: nn.Module, paths: frozenset[str]) -> frozenset[str] | str:
    """The layers' whole paths; one regular expression, if the list would also mean a layer whose path ends like another's."""
    others = [path for path, module in backbone(model) if path not in paths and (is_linear(module) or isinstance(module, nn.Embedding))]
    if any(ending in paths for other in others for ending in endings(other)):
        return "|".join(re.escape(path) for path in sorted(paths))
    return paths
