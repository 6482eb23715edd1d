"""LoRA from First Principles: the tested code behind the book.

Example:
    >>> from torch import nn
    >>> from lorabook import LoRAConfig, add_lora
    >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5))
    >>> add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("0", "2")))
    ('0', '2')
"""

from lorabook.adapters.inject import LoRAConfig, adapter_disabled, add_lora, lora_parameters
from lorabook.adapters.linear import AdapterError, LoRALinear
from lorabook.adapters.merge import merge_lora, remove_lora, unmerge_lora
from lorabook.measure.counting import ParameterCount, count_parameters
from lorabook.training.runtime import best_device, seed_everything

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "LoRAConfig",
    "LoRALinear",
    "ParameterCount",
    "adapter_disabled",
    "add_lora",
    "best_device",
    "count_parameters",
    "lora_parameters",
    "merge_lora",
    "remove_lora",
    "seed_everything",
    "unmerge_lora",
]
