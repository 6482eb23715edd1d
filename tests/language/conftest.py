"""A small language model, with weights large enough that every part of it matters."""

import pytest
import torch

from lorabook.language.gpt import GPT, GPTConfig


@pytest.fixture
def make_gpt():
    def make(seed=0, *, vocab_size=11, context=9, n_layer=2, n_head=2, n_embd=6):
        model = GPT(GPTConfig(vocab_size, context, n_layer, n_head, n_embd)).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.5, generator=generator)
        return model.requires_grad_(False)

    return make
