"""Names of tensors in PEFT's adapter files: from a layer's tensors to their names, and back. It knows no config."""

from __future__ import annotations

import re

from torch import Tensor, nn

from lorabook.adapters.bases import AdapterError, OwnBias
from lorabook.adapters.dora import DoRALinear
from lorabook.adapters.embedding import LoRAEmbedding
from lorabook.adapters.factors import factors_of
from lorabook.adapters.linear import LoRALinear
from lorabook.adapters.trained_copy import TrainedCopy

PREFIX = "base_model.model."
PARTS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


def tensors_of(path: str, layer: nn.Module) -> dict[str, Tensor]:
    """A layer's own tensors under PEFT's names; those of PiSSA and OLoRA as the change since the start, at twice the rank.

    Example:
        >>> list(tensors_of("q_proj", LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0)))
        ['base_model.model.q_proj.lora_A.weight', 'base_model.model.q_proj.lora_B.weight']
    """
    key = PREFIX + path
    if isinstance(layer, TrainedCopy):
        return {f"{key}.{name}": tensor for name, tensor in layer.module.state_dict().items()}
    if isinstance(layer, OwnBias):
        return {f"{key}.bias": layer.bias}
    if not isinstance(layer, LoRALinear):
        raise TypeError(f"'{path}' is no adapter layer: {type(layer).__name__}")
    A, B = factors_of(layer)
    if isinstance(layer, LoRAEmbedding):
        return {f"{key}.lora_embedding_A": A, f"{key}.lora_embedding_B": B}
    tensors = {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}
    if isinstance(layer, DoRALinear):
        tensors[f"{key}.lora_magnitude_vector"] = layer.magnitude
    if isinstance(layer.base, OwnBias):
        tensors[f"{key}.base_layer.bias"] = layer.base.bias
    return tensors


def sort_tensors(tensors: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The factors by layer and part, and the rest by its name in the model.

    Raises:
        AdapterError: a name that does not begin as PEFT's do, or two names for one tensor.

    Example:
        >>> layers, rest = sort_tensors(tensors_of("q_proj", LoRALinear(nn.Linear(6, 4), rank=2, alpha=8.0)))
        >>> list(layers["q_proj"]), rest
        (['A', 'B'], {})
    """
    layers: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not key.startswith(PREFIX):
            raise AdapterError(f"unexpected tensor {key!r}: names begin with {PREFIX}")
        name = re.sub(r"\.base_layer\.(?=[^.]+$)", ".", key.removeprefix(PREFIX))  # PEFT's own, not a module called so in the model
        suffix = next((suffix for suffix in PARTS if name.endswith(suffix)), None)
        group, part = (layers.setdefault(name.removesuffix(suffix), {}), PARTS[suffix]) if suffix else (rest, name)
        if part in group:
            raise AdapterError(f"the tensor {key!r} occurs under two names")
        group[part] = tensor
    return layers, rest
