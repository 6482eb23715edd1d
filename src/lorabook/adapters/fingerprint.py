"""A fingerprint of a backbone, by which an adapter knows the weights that it was trained on. It knows no file."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from lorabook.adapters.bases import AdapterError
from lorabook.adapters.nf4 import NF4Linear
from lorabook.adapters.site import backbone

SAMPLE = 4096
"""At least this many numbers of each tensor are looked at, evenly spread; all of a smaller one."""


@torch.no_grad()
def base_fingerprint(model: nn.Module) -> str:
    """A hash of the names, shapes and numbers of everything that the model held before it was adapted.

    The same weights give the same fingerprint on every device; rounded to another dtype they give another one. Of a model whose weights
    are sharded over several processes, all of them must ask at the same time.

    Args:
        model: with or without adapters, none merged.

    Returns:
        64 hexadecimal digits.

    Raises:
        AdapterError: a tensor is on the meta device and has no numbers yet.

    Example:
        >>> from lorabook import LoRAConfig, add_lora
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> before = base_fingerprint(model)
        >>> paths = add_lora(model, LoRAConfig(rank=2, targets=("0",)))
        >>> base_fingerprint(model) == before
        True
    """
    digest = hashlib.sha256()
    for path, module in sorted(backbone(model), key=lambda item: item[0]):
        own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
        if isinstance(module, NF4Linear):  # other buffers, such as running means, change while an adapter is trained
            own.update(module.named_buffers(recurse=False))
        for name in sorted(own):
            tensor = own[name].detach()
            if tensor.is_meta:
                raise AdapterError(f"'{path}.{name}' has no numbers yet (meta device): load the base's weights first")
            if hasattr(tensor, "full_tensor"):  # a sharded weight
                tensor = tensor.full_tensor()
            digest.update(f"{path}.{name}{tuple(tensor.shape)}".encode())
            flat = tensor.reshape(-1)
            sample = flat[:: max(1, len(flat) // SAMPLE)].cpu()
            digest.update((sample.float() if sample.is_floating_point() else sample).numpy().tobytes())
    return digest.hexdigest()
