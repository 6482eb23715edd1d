"""``TrainedCopy``: a copy of a module that trains in full while the module itself stays as it is. It knows no adapter."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class TrainedCopy(nn.Module):
    """A copy of a module, trained in full; in float32 where the module is in half precision.

    Args:
        module: what to copy. It is frozen.

    Example:
        >>> layer = nn.Linear(6, 4)
        >>> trained = TrainedCopy(layer)
        >>> trained.module.weight.requires_grad, layer.weight.requires_grad
        (True, False)
    """

    outer: Tensor
    inner: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        outer = next((parameter.dtype for parameter in module.parameters()), torch.float32)
        inner = torch.promote_types(outer, torch.float32)
        # Empty tensors rather than attributes, so that model.double() and the like change these dtypes too.
        self.register_buffer("outer", torch.empty(0, dtype=outer), persistent=False)
        self.register_buffer("inner", torch.empty(0, dtype=inner), persistent=False)
        self.module = copy.deepcopy(module).to(inner).requires_grad_(True)
        module.requires_grad_(False)

    @property
    def weight(self) -> Tensor:
        """The copy's weight, in the dtype that the module itself would have."""
        return self.module.get_parameter("weight").to(self.outer.dtype)

    @property
    def bias(self) -> Tensor | None:
        """Its bias, likewise."""
        return None if self.module.bias is None else self.module.get_parameter("bias").to(self.outer.dtype)

    def __getattr__(self, name: str) -> Any:
        """What the wrapper lacks, the copy has: its sizes and settings, for code that reads them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = self.__dict__.get("_modules", {}).get("module")
            if hasattr(module, name) and not name.startswith("__"):
                return getattr(module, name)
            raise

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the copy makes of the inputs, in the dtype that the module itself would give."""
        if self.inner.dtype == self.outer.dtype:
            return self.module(*inputs, **named)
        inputs, named = (tree_map(partial(_recast, self.outer.dtype, self.inner.dtype), given) for given in (inputs, named))
        return tree_map(partial(_recast, self.inner.dtype, self.outer.dtype), self.module(*inputs, **named))


def _recast(old: torch.dtype, new: torch.dtype, value: Any) -> Any:
    return value.to(new) if isinstance(value, Tensor) and value.dtype == old else value
