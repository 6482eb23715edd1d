"""Build an adapter's layers from a config and tensors in PEFT's form, checking each against the model. It knows no file."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lorabook.adapters.bases import AdapterError, OwnBias, features, is_linear
from lorabook.adapters.dora import DoRALinear
from lorabook.adapters.factors import layer_from
from lorabook.adapters.inject import build_all
from lorabook.adapters.peft_config import PeftConfig, endings
from lorabook.adapters.peft_keys import sort_tensors
from lorabook.adapters.site import backbone, places
from lorabook.adapters.trained_copy import TrainedCopy

LARGEST_RANK_RATIO = 4
"""No adapter's rank is larger than this many times the layer's larger side."""


def largest_bytes(model: nn.Module) -> int:
    """No file of tensors for this model is larger: 64 bytes for each of its numbers, and a mebibyte for names.

    Example:
        >>> largest_bytes(nn.Linear(6, 4)) - 2**20
        1792
    """
    return 2**20 + 64 * sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def build_layers(model: nn.Module, config: PeftConfig, tensors: dict[str, Tensor], where: str) -> dict[str, nn.Module]:
    """A layer for each place that the adapter changes; the model is left as it was, whether that succeeds or not.

    Raises:
        AdapterError: tensors, config and model disagree.

    Example:
        >>> factors = {"lora_A": torch.ones(2, 6), "lora_B": torch.ones(4, 2)}
        >>> tensors = {f"base_model.model.0.{part}.weight": factor for part, factor in factors.items()}
        >>> config = PeftConfig(r=2, lora_alpha=8.0, target_modules=None)
        >>> build_layers(nn.Sequential(nn.Linear(6, 4)), config, tensors, "folder")["0"].scaling
        4.0
    """
    factors, rest = sort_tensors(tensors)
    modules = dict(backbone(model))
    whole = _outermost([path for path in modules if path and _saved_whole(path, modules, config, rest)])
    _check_targets(modules, config, factors, whole, where)
    factors = {path: factors[path] for path in modules if path in factors}  # in the model's order
    for path, parts in factors.items():
        _check_factors(path, modules[path], parts, config, where)
    _check_shared(modules, factors, config, where)
    saved = {path: _take(rest, modules[path].state_dict(), path, where) for path in whole}
    biases = {path: _take(rest, {"bias": bias}, path, where)["bias"] for path, bias in _biases(modules, config, factors, whole, where)}
    for key, tensor in rest.items():
        if not _repeats(key, tensor, modules, saved):
            raise AdapterError(f"'{where}': unexpected tensor {key!r}, which no setting of the config accounts for")

    def build(path: str) -> nn.Module:
        base = modules[path]
        if any(tensor.is_meta for tensor in (*base.parameters(), *base.buffers())):
            raise AdapterError(f"'{path}' has no numbers yet (meta device), nor would the adapter's stay: load the base's weights first")
        if path in saved:
            trained = TrainedCopy(base)
            trained.module.load_state_dict(saved[path])
            return trained
        return _adapted(base, path, factors.get(path), biases.get(path), config)

    paths = [*factors, *(path for path in biases if path not in factors), *whole]
    for path, _ in places(model):
        if any(path.startswith(outer + ".") for outer in whole):
            raise AdapterError(f"'{where}' trains a module in full that holds '{path}', which is adapted: remove_lora(model) first")
        if any(inner.startswith(path + ".") for inner in paths):
            raise AdapterError(f"'{where}' adapts a layer inside '{path}', which another adapter trains in full: delete that one first")
    try:
        return build_all(model, paths, build)
    except (RuntimeError, TypeError, ValueError) as error:
        raise AdapterError(f"'{where}': {error}") from None


def _adapted(base: nn.Module, path: str, parts: dict[str, Tensor] | None, bias: Tensor | None, config: PeftConfig) -> nn.Module:
    over = base
    if bias is not None:
        over = OwnBias(base)
        over.bias.data.copy_(bias)
    if parts is None:
        return over
    A, B = (parts[kind] if kind in parts else parts[f"embedding_{kind}"] for kind in ("A", "B"))
    layer = layer_from(
        over,
        A,
        B,
        alpha=float(config.rank_and_alpha(path)[1]),
        rank_stabilized=config.use_rslora,
        dropout=config.lora_dropout,
        magnitude=parts.get("magnitude"),
    )
    if isinstance(layer, DoRALinear) and not layer.delta_weight().isfinite().all():
        raise ValueError("with these tensors a row of the weight is zero, so it has no direction")
    return layer


def _check_targets(
    modules: dict[str, nn.Module], config: PeftConfig, factors: dict[str, dict[str, Tensor]], whole: list[str], where: str
) -> None:
    """The layers that the config names and those that the tensors are for must be the same."""
    for path in factors:
        if path not in modules:
            raise AdapterError(f"'{where}' has tensors for '{path}', which this model does not have: load the base it was trained on")
        if not config.targets(path) or _within(path, whole):
            raise AdapterError(f"'{where}' has tensors for '{path}', which its config does not target")
    for path, module in modules.items():
        adaptable = is_linear(module) or isinstance(module, nn.Embedding)
        if adaptable and config.target_modules is not None and config.targets(path) and not _within(path, whole) and path not in factors:
            raise AdapterError(f"'{where}' lacks the tensors for '{path}', which its config targets")


def _check_factors(path: str, base: nn.Module, parts: dict[str, Tensor], config: PeftConfig, where: str) -> None:
    """The tensors of one layer must be those of its kind, of the shapes that the layer and the config's rank give."""
    if not (is_linear(base) or isinstance(base, nn.Embedding)):
        raise AdapterError(f"'{where}' has tensors for '{path}', which is a {type(base).__name__} and cannot be adapted")
    if isinstance(base, nn.Embedding) and config.use_dora:
        raise AdapterError(f"'{where}' has DoRA on the embedding '{path}', which is not implemented here")
    out_features, in_features = features(base)
    rank, alpha = config.rank_and_alpha(path)
    if rank > LARGEST_RANK_RATIO * max(out_features, in_features):
        raise AdapterError(f"'{where}': rank {rank} is absurd for '{path}', a {out_features}x{in_features} layer")
    kind = "embedding_" if isinstance(base, nn.Embedding) else ""
    shapes: dict[str, tuple[int, ...]] = {f"{kind}A": (rank, in_features), f"{kind}B": (out_features, rank)}
    if config.use_dora:
        shapes["magnitude"] = (out_features,)
    if not all(tensor.is_floating_point() for tensor in parts.values()):
        raise AdapterError(f"'{where}': the tensors of '{path}' must be floating-point numbers")
    got = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    if got != shapes:
        raise AdapterError(f"'{where}': at rank {rank}, which its config says, '{path}' needs tensors of shapes {shapes}, got {got}")
    largest = alpha * math.prod(float(parts[part].double().norm()) for part in (f"{kind}A", f"{kind}B"))
    if largest > torch.finfo(torch.float32).max:
        raise AdapterError(f"'{where}': alpha {alpha} and the tensors of '{path}' make an update too large for float32")


def _check_shared(modules: dict[str, nn.Module], factors: dict[str, dict[str, Tensor]], config: PeftConfig, where: str) -> None:
    """A layer that stands in two places gets one adapter, so the tensors for both must be the same."""
    first: dict[nn.Module, str] = {}
    for path, parts in factors.items():
        other = first.setdefault(modules[path], path)
        same = all(torch.equal(tensor, factors[other][part]) for part, tensor in parts.items())
        if not same or config.rank_and_alpha(path) != config.rank_and_alpha(other):
            raise AdapterError(f"'{where}' differs for '{other}' and '{path}', which are one layer in this model: untie them first")


def _take(rest: dict[str, Tensor], like: dict[str, Tensor], path: str, where: str) -> dict[str, Tensor]:
    """Take a module's tensors out of the rest, each of the shape that it has in the model."""
    for name, own in like.items():
        found = rest.get(f"{path}.{name}")
        if found is None or found.shape != own.shape or found.is_floating_point() != own.is_floating_point():
            got = "none" if found is None else f"shape {tuple(found.shape)}, {found.dtype}"
            raise AdapterError(f"'{where}' must hold a tensor of shape {tuple(own.shape)} for '{path}.{name}', got {got}")
    return {name: rest.pop(f"{path}.{name}") for name in like}


def _biases(
    modules: dict[str, nn.Module], config: PeftConfig, factors: dict[str, dict[str, Tensor]], whole: list[str], where: str
) -> list[tuple[str, Tensor]]:
    """Path and bias of the modules whose bias the config trains."""
    found: list[tuple[str, Tensor]] = []
    for path, module in modules.items():
        wanted = config.bias == "all" or (config.bias == "lora_only" and path in factors)
        if wanted and not _within(path, whole) and "bias" in dict(module.named_parameters(recurse=False)):
            if any(True for _ in module.children()):
                raise AdapterError(f"'{where}' trains '{path}.bias', the bias of a module that holds others: that is not implemented here")
            found.append((path, module.get_parameter("bias")))
    return found


def _saved_whole(path: str, modules: dict[str, nn.Module], config: PeftConfig, rest: dict[str, Tensor]) -> bool:
    """Whether the config trains this module in full. PEFT takes any path that ends so; tensors tell what it found."""
    names = config.modules_to_save
    if path in names or any(ending in names and ending not in modules for ending in endings(path)):
        return True
    return any(path[i:] in names for i in range(len(path))) and any(key.startswith(path + ".") for key in rest)


def _repeats(key: str, tensor: Tensor, modules: dict[str, nn.Module], saved: dict[str, dict[str, Tensor]]) -> bool:
    """Whether a tensor only repeats what is known: PEFT may write the base's own numbers along, or a trained bias twice."""
    path, _, name = key.replace(".original_module.", ".").rpartition(".")
    known = dict(modules[path].named_parameters(recurse=False)).get(name) if path in modules else None
    if ".modules_to_save." in key:
        path, _, name = key.partition(".modules_to_save.")
        known = saved.get(path, {}).get(name)  # type: ignore[assignment]
    return known is not None and torch.equal(known.detach().cpu().to(tensor.dtype), tensor)


def _outermost(paths: list[str]) -> list[str]:
    return [path for path in paths if not any(path.startswith(other + ".") for other in paths)]


def _within(path: str, whole: list[str]) -> bool:
    return any(path == outer or path.startswith(outer + ".") for outer in whole)
