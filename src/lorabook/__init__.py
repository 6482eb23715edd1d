"""LoRA from First Principles: the tested code behind the book.

Example:
    >>> from torch import nn
    >>> from lorabook import LoRAConfig, add_lora
    >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5))
    >>> add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("0", "2")))
    ('0', '2')
"""

from lorabook.adapters.bases import AdapterError
from lorabook.adapters.decomposed import DecomposedLoRALinear
from lorabook.adapters.dora import DoRALinear
from lorabook.adapters.embedding import LoRAEmbedding
from lorabook.adapters.inject import LoRAConfig, adapter_disabled, add_lora, lora_parameters
from lorabook.adapters.linear import LoRALinear
from lorabook.adapters.merge import merge_lora, remove_lora, unmerge_lora
from lorabook.adapters.mixed_batch import mixed_batch
from lorabook.adapters.multi import combine_adapters, delete_adapter, rename_adapter, use_adapter
from lorabook.adapters.nf4 import NF4Linear, dequantize_nf4, nf4_levels, quantize_nf4
from lorabook.adapters.peft_format import load_adapter, save_adapter
from lorabook.adapters.quantize import dequantize_base, quantize_base
from lorabook.adapters.site import active_adapter, adapter_names
from lorabook.measure.counting import ParameterCount, count_parameters
from lorabook.training.runtime import best_device, seed_everything

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "DecomposedLoRALinear",
    "DoRALinear",
    "LoRAConfig",
    "LoRAEmbedding",
    "LoRALinear",
    "NF4Linear",
    "ParameterCount",
    "active_adapter",
    "adapter_disabled",
    "adapter_names",
    "add_lora",
    "best_device",
    "combine_adapters",
    "count_parameters",
    "delete_adapter",
    "dequantize_base",
    "dequantize_nf4",
    "load_adapter",
    "lora_parameters",
    "merge_lora",
    "mixed_batch",
    "nf4_levels",
    "quantize_base",
    "quantize_nf4",
    "remove_lora",
    "rename_adapter",
    "save_adapter",
    "seed_everything",
    "unmerge_lora",
    "use_adapter",
]
