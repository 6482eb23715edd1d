"""Count what a model holds and what of it trains, from the model or from its shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lorabook.adapters.bases import AdapterError, features, is_linear
from lorabook.adapters.inject import LoRAConfig
from lorabook.adapters.linear import is_whole
from lorabook.adapters.site import backbone
from lorabook.adapters.targets import Target, fits, matching_layers
from lorabook.measure.presets import ModelShape


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters, each shared one counted once.

    Args:
        trainable: those that require a gradient.
        total: all.

    Example:
        >>> ParameterCount(trainable=1_000, total=8_000).share
        0.125
    """

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable divided by total, 0 for a model without parameters."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters train ({self.share:.2%})"


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters; an adapter's A and B are part of the total.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> print(count_parameters(nn.Linear(6, 4).requires_grad_(False)))
        0 of 28 parameters train (0.00%)
    """
    parameters = list(model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return ParameterCount(trainable, sum(parameter.numel() for parameter in parameters))


@dataclass(frozen=True)
class LoRACount(ParameterCount):
    """What a LoRA adapter of one rank would hold, layer by layer.

    Args:
        trainable: numbers in all A and B together.
        total: those of the model, with the adapter.
        layers: numbers in A and B of each adapted layer, by path.

    Example:
        >>> LoRACount(trainable=40, total=100, layers={"query": 20, "value": 20}).checkpoint_bytes(torch.float16)
        80
    """

    layers: Mapping[str, int]

    def checkpoint_bytes(self, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of the adapter's tensors when saved in this dtype; a file's header adds a few kilobytes."""
        return self.trainable * dtype.itemsize


def count_lora(model: nn.Module | ModelShape, targets: Iterable[Target] | str, rank: int = 8) -> LoRACount:
    r"""Count LoRA on any model, without adding it: :math:`\sum r (d + k)` over the targeted :math:`d \times k` matrices.

    Args:
        model: a module, which may be on the meta device and stays as it is, or the shapes of one, such as ``PRESETS["gpt2"]``.
        targets: names as in :class:`~lorabook.LoRAConfig`, which are also PEFT's; "all-linear" leaves out the output head,
            also one that is not tied, as PEFT does and :func:`~lorabook.add_lora`; a module names it by ``get_output_embeddings``.
        rank: r of every adapted layer, at least 1.

    Returns:
        The counts, equal to those of PEFT's ``print_trainable_parameters``. With "all-linear" PEFT adapts more where a model keeps its
        experts in three-dimensional parameters, ties linear layers that are no output layer, or holds an ``nn.MultiheadAttention``.

    Raises:
        AdapterError: a target that matches no layer; the message lists what there is.
        TypeError: targets is some other string.
        ValueError: no targets, or a rank outside 1..min(d, k) of a targeted layer.

    Source: Hu et al. 2021 (LoRA), section 5.1.
    Chapter: Counting: parameters, memory, FLOPs.

    Example:
        >>> from lorabook.measure.presets import PRESETS
        >>> print(count_lora(PRESETS["llama-2-7b"], ("q_proj", "v_proj"), rank=8))
        4,194,304 of 6,742,609,920 parameters train (0.06%)
    """
    if not is_whole(rank) or rank < 1:
        raise ValueError(f"rank must be a whole number of at least 1, got {rank!r}")
    sizes = targeted_sizes(model, targets)
    for path, (d, k) in sizes.items():
        if rank > min(d, k):
            raise ValueError(f"rank must be 1..{min(d, k)} for '{path}', a {d}x{k} layer, got {rank}")
    layers = {path: int(rank) * (d + k) for path, (d, k) in sizes.items()}
    trainable = sum(layers.values())
    total = model.total if isinstance(model, ModelShape) else count_parameters(model).total
    return LoRACount(trainable, total + trainable, layers)


def targeted_sizes(model: nn.Module | ModelShape, targets: Iterable[Target] | str) -> dict[str, tuple[int, int]]:
    """The targeted layers' (out_features, in_features), by path; a layer that stands in two places comes once.

    Raises:
        AdapterError, TypeError, ValueError: as :func:`count_lora` says.

    Example:
        >>> targeted_sizes(nn.ModuleDict({"query": nn.Linear(6, 4), "value": nn.Linear(6, 5)}), ("value",))
        {'value': (5, 6)}
    """
    targets = LoRAConfig(targets=targets if isinstance(targets, str) else tuple(targets)).targets
    if isinstance(model, ModelShape):
        return _sizes_in_shape(model, targets)
    modules = dict(backbone(model))
    chosen = {modules[path]: path for path in reversed(matching_layers(model, targets))}
    return {path: features(module) for module, path in reversed(chosen.items())}


def linear_sizes(model: nn.Module | ModelShape) -> dict[str, tuple[int, int]]:
    """Every linear layer's (out_features, in_features), by path, the output head included.

    Example:
        >>> linear_sizes(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5)))
        {'0': (4, 6), '2': (5, 4)}
    """
    if isinstance(model, ModelShape):
        return {layer.path: (layer.d, layer.k) for layer in model.linear_layers()}
    return {path: features(module) for path, module in backbone(model) if is_linear(module)}


def _sizes_in_shape(shape: ModelShape, targets: tuple[Target, ...] | str) -> dict[str, tuple[int, int]]:
    linear = linear_sizes(shape)
    if isinstance(targets, str):
        return {path: sizes for path, sizes in linear.items() if path != shape.head}
    tables = {path: (columns, rows) for path, (rows, columns) in shape.embeddings.items()}
    for target in targets:
        if not any(fits(path, target) for path in (*linear, *tables)):
            endings = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in (*linear, *tables)))
            raise AdapterError(f"no layer of {shape.name} matches {target!r}; layers end in {endings}")
    return {path: sizes for path, sizes in (linear | tables).items() if any(fits(path, target) for target in targets)}
