"""An adapter that is no longer as it started, which most tests need."""

import torch

from lorabook import LoRAConfig, add_lora

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def move(model, seed=0):
    """Change everything that trains, so that no factor is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def adapt(model, name="default", **settings):
    """Add an adapter and move it."""
    add_lora(model, LoRAConfig(**{"rank": 2, "alpha": 6.0, "targets": ("q_proj", "proj"), **settings}), name)
    return move(model)
