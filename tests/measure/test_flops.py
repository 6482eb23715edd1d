"""Operations predicted from shapes, against PyTorch's own counter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lorabook import AdapterError, LoRAConfig, add_lora
from lorabook.language.gpt import GPT, GPTConfig
from lorabook.measure.flops import Flops, counted_flops, training_flops
from lorabook.measure.presets import PRESETS

SHAPES = (
    GPTConfig(vocab_size=50, context=24, n_layer=2, n_head=2, n_embd=12),
    GPTConfig(vocab_size=30, context=32, n_layer=3, n_head=4, n_embd=32),
)


def loss_of(model, batch):
    tokens = torch.randint(model.config.vocab_size, batch, generator=torch.Generator().manual_seed(0))
    return lambda: model(tokens).square().mean()


@pytest.mark.parametrize("config", SHAPES)
def test_full_fine_tuning_takes_what_is_predicted(config):
    model = GPT(config)
    assert counted_flops(model, loss_of(model, (3, 16))) == training_flops(model, "full", tokens=3 * 16)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
@pytest.mark.parametrize("config", SHAPES)
def test_lora_takes_what_is_predicted_less_the_input_gradients_of_the_bottom(config, targets):
    model, rank, tokens = GPT(config), 3, 3 * 16
    predicted = training_flops(model, "lora", rank=rank, targets=targets, tokens=tokens)
    add_lora(model, LoRAConfig(rank=rank, alpha=8.0, targets=targets))
    counted = counted_flops(model, loss_of(model, (3, 16)))
    adapted = 3 if targets == "all-linear" else 2  # of q, k and v in the first block, whose input needs no gradient
    bottom = 2 * tokens * (3 * config.n_embd**2 + adapted * rank * config.n_embd)
    assert counted == Flops(predicted.forward, predicted.backward - bottom)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 2), st.integers(1, 5))
def test_one_layer_follows_the_law(d, k, rank, tokens):
    model = nn.Sequential(nn.Linear(k, d))
    full = training_flops(model, "full", tokens=tokens)
    lora = training_flops(model, "lora", rank=rank, tokens=tokens)
    assert full.total == 6 * d * k * tokens
    assert lora.total / full.total == pytest.approx(2 / 3 + rank * (d + k) / (d * k))
    x = torch.ones(tokens, k, requires_grad=True)  # an input that wants its gradient, as inside a model
    assert counted_flops(model, lambda: model(x).sum()) == full
    add_lora(model, LoRAConfig(rank=rank, alpha=8.0, targets=("0",)))
    assert counted_flops(model, lambda: model(x).sum()) == lora


def test_presets_count_as_their_matrices():
    llama = PRESETS["llama-2-7b"]
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    assert training_flops(llama, "full") == Flops(2 * matrices, 4 * matrices)
    assert training_flops(llama, "lora", rank=16).total == 4 * matrices + 6 * 39_976_960


def test_other_methods_and_missing_layers_are_refused():
    with pytest.raises(ValueError, match="full or lora"):
        training_flops(PRESETS["gpt2"], "qlora")
    with pytest.raises(AdapterError):
        training_flops(PRESETS["gpt2"], "lora", targets=("q_proj",))


def test_ranks_are_those_that_an_adapter_can_have():
    for rank in (-3, 0, 5):
        with pytest.raises(ValueError, match="rank must be"):
            training_flops(nn.Sequential(nn.Linear(6, 4)), "lora", rank=rank)
