"""What makes two runs the same run: settings, data and frozen weights, in a form that can be stored and compared. It knows no file."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lorabook.adapters.fingerprint import SAMPLE
from lorabook.adapters.nf4 import NF4Linear
from lorabook.language.likelihood import Example

Setting = int | float | str | None
Identity = dict[str, Setting]


def run_identity(model: nn.Module, examples: Sequence[Example], settings: Mapping[str, Setting]) -> Identity:
    """The settings, and hashes of the examples, of the model's layers and of its frozen weights.

    Trained weights are left out: a checkpoint brings its own.

    Example:
        >>> run_identity(nn.Linear(6, 4), [([1], [2])], {"steps": 3})["steps"]
        3
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    shown = re.sub(r"\b0x[0-9a-fA-F]+", "", repr(model))  # an address in memory is no setting
    layers = f"{shown}\n{trained}"  # with what no weight tells and the layers show: alpha, nn.Dropout's rate
    return {
        **settings,
        "examples": _hash_of_examples(examples),
        "layers": hashlib.sha256(layers.encode()).hexdigest()[:16],
        "frozen weights": _hash_of_tensors(_frozen(model)),
    }


def differences(mine: Identity, theirs: Identity) -> str:
    """What differs, in words; an empty string if nothing does.

    Example:
        >>> differences({"steps": 3, "seed": 0}, {"steps": 4, "seed": 0})
        'steps is 3, there 4'
    """
    keys = [key for key in dict.fromkeys((*mine, *theirs)) if mine.get(key) != theirs.get(key)]
    return "; ".join(f"{key} is {mine.get(key)}, there {theirs.get(key)}" for key in keys)


def _hash_of_examples(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        for tokens in example:
            digest.update(array("q", [len(tokens), *tokens]).tobytes())
    return digest.hexdigest()[:16]


def _frozen(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            yield name, parameter
    for path, module in model.named_modules():
        if isinstance(module, NF4Linear):  # holds its weight in buffers
            for name, buffer in module.named_buffers(prefix=path, recurse=False):
                yield name, buffer


@torch.no_grad()
def _hash_of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of names, shapes, and evenly spread numbers: a real model's frozen weights are too many to read them all."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        # A sharded weight is put together again, which all ranks do alike.
        whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()
        digest.update(f"{name}{tuple(whole.shape)}{whole.dtype}".encode())
        flat = whole.reshape(-1)
        sample = flat[:: max(1, len(flat) // SAMPLE)].cpu()
        digest.update((sample.double() if sample.is_floating_point() else sample).numpy().tobytes())
    return digest.hexdigest()[:16]
