"""``mixed_batch``: each row of a batch through its own adapter, without a loop over adapters. It knows no model but its sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lorabook.adapters.bases import AdapterError, embedding_scale
from lorabook.adapters.factors import factors_of, is_plain
from lorabook.adapters.linear import LoRALinear
from lorabook.adapters.merge import NO_LORA
from lorabook.adapters.site import MIXED, Site, adapter_names, check_settled, layers_named, layers_of, places


class MixedRows:
    r"""What one place of a model computes for the length of a mixed batch: row i gets the update of its own adapter.

    .. math:: y_i = f(x_i) + s_{a(i)}\, B_{a(i)} A_{a(i)}\, x_i

    The factors of the adapters are stacked, padded with zeros to the largest rank, and each row picks its own.

    Args:
        place: what stands there.
        names: each row's adapter; None, or one that has no layer here, means the base alone.
        path: of the place, for messages.

    Example:
        >>> rows = MixedRows(LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0), ["default", None])
        >>> rows(torch.randn(2, 3, 6)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, place: LoRALinear | Site, names: Sequence[str | None], path: str = "") -> None:
        self.base = place.base
        self.path = path
        here = layers_of(place)
        self.adapted = any(isinstance(layer, LoRALinear) for layer in here.values())
        used = [name for name in dict.fromkeys(names) if name in here]
        self.layers = [layer for name in used if isinstance(layer := here[str(name)], LoRALinear)]
        self.rows = [used.index(name) if name in used else len(used) for name in names]

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Apply to (rows, ...) inputs: numbers (rows, ..., in_features), or ids (rows, ...) where the base is an embedding."""
        if not self.adapted:  # a module that some other adapter trains in full or in its bias, whose inputs need not be rows
            return self.base(*inputs, **named)
        (x,) = inputs
        vector = 0 if isinstance(self.base, nn.Embedding) else 1  # dimensions of a single input
        if x.ndim <= vector or len(x) != len(self.rows):
            given = len(x) if x.ndim > vector else "no"
            rule = f"one name a row, which come first in the input of every adapted layer, here '{self.path}'"
            raise AdapterError(f"mixed_batch was given {len(self.rows)} names, and the batch has {given} rows: {rule}")
        y: Tensor = self.base(x)
        return self._adapted(x, y) if self.layers else y

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AdapterError("a mixed_batch block is running, and a copy made now would never leave it: leave the block first")

    def _adapted(self, x: Tensor, y: Tensor) -> Tensor:
        index = torch.tensor(self.rows, device=x.device)
        A, B, scaling = self._stacked()
        if isinstance(self.base, nn.Embedding):
            h = self._looked_up(self.base, x, A, index)
        else:
            h = torch.bmm(self._dropped(x, index).reshape(len(x), -1, x.shape[-1]).to(A.dtype), A[index].transpose(1, 2))
        h = scaling[index][:, None, None] * embedding_scale(self.base) * h  # (rows, T, r)
        return y + torch.bmm(h, B[index].transpose(1, 2)).view(y.shape).to(y.dtype)  # (rows, T, r) -> (rows, T, out)

    def _looked_up(self, base: nn.Embedding, ids: Tensor, A: Tensor, index: Tensor) -> Tensor:
        """(rows, T, r): the columns of A, from one long table of all adapters, since (rows, r, vocabulary) would be large."""
        rows = (ids + (index * base.num_embeddings).view(-1, *[1] * (ids.ndim - 1))).reshape(len(ids), -1)
        h = F.embedding(rows, A.transpose(1, 2).flatten(0, 1), scale_grad_by_freq=base.scale_grad_by_freq)
        if base.padding_idx is None:
            return h
        return torch.where((ids == base.padding_idx).reshape(rows.shape)[..., None], h.detach(), h)  # padding learns nothing

    def _stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """A (n + 1, r, in), B (n + 1, out, r) and scaling (n + 1,) of the n adapters; the last of each is zero, for no adapter."""
        factors = [factors_of(layer) for layer in self.layers]
        some_A, some_B = factors[0]
        A = pad_sequence([*(A for A, _ in factors), some_A.new_zeros(1, some_A.shape[1])], batch_first=True)
        B = pad_sequence([*(B.T for _, B in factors), some_B.new_zeros(1, some_B.shape[0])], batch_first=True).transpose(1, 2)
        return A, B, some_A.new_tensor([*(layer.scaling for layer in self.layers), 0.0])

    def _dropped(self, x: Tensor, index: Tensor) -> Tensor:
        """Each row with the dropout of its own adapter."""
        rates = [*(layer.dropout.p if layer.training else 0.0 for layer in self.layers), 0.0]
        if not any(rates):
            return x
        keep = 1 - torch.tensor(rates, device=x.device)[index].view(-1, *[1] * (x.ndim - 1))
        return x * ((torch.rand(x.shape, device=x.device) < keep) / keep).to(x.dtype)


@contextmanager
def mixed_batch(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """Inside the block row i of each batch goes through the adapter ``names[i]``; afterwards all is as before.

    Gradients reach every adapter whose parameters require them; :func:`~lorabook.use_adapter` lets only the one in use learn, so to
    train several, set ``requires_grad`` on ``lora_parameters(model, name)`` of each. With gradient checkpointing the backward
    pass computes layers anew and so must also lie inside the block.

    Each adapted layer must see the rows in the first dimension of its input. One that sees something else, a table of positions, say,
    or the time steps of a model that has ``batch_first=False``, is refused where the sizes differ; where they happen to agree it
    cannot be told from rows.

    Args:
        model: a model with adapters, none merged.
        names: for each row an adapter's name, or None for the bare backbone.

    Raises:
        AdapterError: no names, an unknown one, a merged adapter, or one that is no plain LoRA update (DoRA, trained biases, modules
            trained in full), which rows cannot share; inside the block, a batch with another number of rows. The model is as it
            was.

    Source: Chen et al. 2024 (Punica) and Sheng et al. 2024 (S-LoRA), which do this with kernels of their own.
    Chapter: Many tasks, one backbone.

    Example:
        >>> from lorabook import LoRAConfig, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> for name in ("sql", "text"):
        ...     paths = add_lora(model, LoRAConfig(rank=2, targets=("0",)), name)
        >>> with mixed_batch(model, ["sql", "text", None]):
        ...     model(torch.randn(3, 6)).shape
        torch.Size([3, 4])
    """
    if isinstance(names, str) or not names:
        raise AdapterError(f"mixed_batch needs a name or None for each row, got {names!r}")
    for name in dict.fromkeys(names):
        for path, layer in layers_named(model, name).items() if name is not None else ():
            if not is_plain(layer):
                raise AdapterError(f"'{path}' of {name!r} is no plain LoRA update, so rows cannot share it: use_adapter instead")
    if not adapter_names(model):
        raise AdapterError(NO_LORA)
    check_settled(model, "mixing adapters")
    mixed = {place: MixedRows(place, names, path) for path, place in reversed(list(places(model)))}
    before = {place: place.__dict__["forward"] for place in mixed if "forward" in place.__dict__}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        # PyTorch's transformer layers, in evaluation, read weights instead of calling layers, and no one weight serves all rows.
        torch.backends.mha.set_fastpath_enabled(False)
        MIXED.update(mixed)
        for place, rows in mixed.items():
            place.__dict__["forward"] = rows  # hides the class's own; the model keeps its modules, names and hooks
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        MIXED.difference_update(mixed)
        for place in mixed:
            place.__dict__.pop("forward", None)
            place.__dict__.update({"forward": before[place]} if place in before else {})
