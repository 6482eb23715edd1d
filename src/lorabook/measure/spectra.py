"""How many directions a change of weights needs: its singular values, and the model with every change cut to rank r."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorabook.adapters.bases import AdapterError
from lorabook.adapters.paths import submodule
from lorabook.adapters.targets import ALL_LINEAR, matching_layers
from lorabook.low_rank import effective_rank, energy, low_rank_approximation


@dataclass(frozen=True)
class ChangeSpectrum:
    r"""The singular values of one layer's :math:`\Delta W = W - W_0` and what follows from them.

    Args:
        singular_values: in falling order.
        energy: share of :math:`\|\Delta W\|_F^2` in the first r, for every r.
        effective_rank: exponential of the entropy of the singular values.
        relative_size: :math:`\|\Delta W\|_F / \|W_0\|_F`, infinite where :math:`W_0` is zero.
    """

    singular_values: Tensor
    energy: Tensor
    effective_rank: float
    relative_size: float


def linear_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every linear layer's weight by path, of those that "all-linear" means: without the output layer, and without shared ones.

    Raises:
        AdapterError: there is none, or one that is adapted or quantized and so holds no weight of its own.

    Chapter: How large is the update, really?

    Example:
        >>> {path: tuple(weight.shape) for path, weight in linear_weights(nn.Sequential(nn.Linear(6, 4))).items()}
        {'0': (4, 6)}
    """
    layers = {path: submodule(model, path) for path in matching_layers(model, ALL_LINEAR)}
    for path, layer in layers.items():
        if "weight" not in layer._parameters:
            raise AdapterError(f"'{path}' is a {type(layer).__name__}, without a weight to copy: remove_lora or dequantize_base first")
    return {path: layer.get_parameter("weight").detach().clone() for path, layer in layers.items()}


def change_spectrum(before: Tensor, after: Tensor) -> ChangeSpectrum:
    """The spectrum of a weight's change.

    Args:
        before: (d, k).
        after: (d, k), another matrix.

    Raises:
        ValueError: nothing has changed, or the shapes differ.

    Source: Hu et al. 2021 (LoRA), section 7.
    Chapter: How large is the update, really?

    Example:
        >>> spectrum = change_spectrum(torch.zeros(3, 2) + 1, torch.tensor([[4.0, 1.0], [1.0, 5.0], [1.0, 1.0]]))
        >>> spectrum.singular_values.tolist(), [round(share, 2) for share in spectrum.energy.tolist()]
        ([4.0, 3.0], [0.64, 1.0])
    """
    if before.shape != after.shape:
        raise ValueError(f"the shapes must agree, got {tuple(before.shape)} and {tuple(after.shape)}")
    change = (after.double() - before.double()).cpu()
    values = torch.linalg.svdvals(change)
    size = torch.linalg.norm(before.double())
    relative_size = float(torch.linalg.norm(change) / size.cpu()) if size else math.inf
    return ChangeSpectrum(values, energy(values), effective_rank(values), relative_size)


@torch.no_grad()
def truncate_changes(model: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor], rank: int) -> None:
    r"""Set every linear layer to :math:`W_0 + (\Delta W)_r`, its change cut to the nearest matrix of rank r; 0 undoes the change.

    Args:
        model: whose layers are set, in place; its other parameters stay.
        before: :math:`W_0` by path, from :func:`linear_weights`.
        after: W by path.
        rank: r, at least 0; a layer with fewer rows or columns gets W itself.

    Raises:
        ValueError: a negative rank, or paths or shapes that differ; nothing has changed then.

    Source: Eckart and Young 1936.
    Chapter: How large is the update, really?

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> before = linear_weights(model)
        >>> truncate_changes(model, before, {"0": before["0"] + torch.randn(4, 6)}, rank=1)
        >>> int(torch.linalg.matrix_rank(model[0].weight - before["0"], rtol=1e-4))
        1
    """
    if rank < 0 or before.keys() != after.keys():
        raise ValueError(f"need a rank of at least 0 and the same layers before and after, got {rank}, {list(before)} and {list(after)}")
    weights = {path: submodule(model, path).get_parameter("weight") for path in before}
    for path, weight in weights.items():
        if not weight.shape == before[path].shape == after[path].shape:
            shapes = f"{tuple(before[path].shape)}, {tuple(after[path].shape)} and in the model {tuple(weight.shape)}"
            raise ValueError(f"the shapes of '{path}' must agree, got {shapes}")
    for path, weight in weights.items():
        if rank >= min(weight.shape):
            weight.copy_(after[path])
        else:
            change = after[path] - before[path]
            weight.copy_(before[path] + (low_rank_approximation(change, rank) if rank else 0))
