"""The ledger: predicted from shapes, against the bytes of a real step of training and the published arithmetic."""

import re
from dataclasses import astuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lorabook import AdapterError, LoRAConfig, add_lora, quantize_base
from lorabook.language.gpt import GPT, GPTConfig
from lorabook.language.likelihood import negative_log_likelihood
from lorabook.measure.counting import count_parameters
from lorabook.measure.memory import Ledger, gpt_activation_bytes, measured_ledger, memory_ledger, nf4_bytes, saved_bytes
from lorabook.measure.presets import PRESETS

SHAPES = (
    GPTConfig(vocab_size=50, context=24, n_layer=2, n_head=2, n_embd=12),
    GPTConfig(vocab_size=30, context=32, n_layer=3, n_head=4, n_embd=32),
)
TARGETS = (
    "all-linear",
    ("q_proj", "v_proj"),
    ("down_proj",),
    ("o_proj", "up_proj"),
    (re.compile(r"blocks\.1\..*k_proj"),),  # nothing trains in the first block
    ("blocks.0.up_proj",),  # only in the first
)


def step(model, batch):
    """The loss of a batch whose labels are another tensor than its tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens, labels = (torch.randint(model.config.vocab_size, batch, generator=generator) for _ in range(2))

    def loss():
        total, count = negative_log_likelihood(model(tokens), labels)
        return total / count

    return loss


@pytest.mark.parametrize("batch", [(3, 16), (2, 24)])
@pytest.mark.parametrize("config", SHAPES)
def test_full_fine_tuning_holds_what_is_predicted(config, batch):
    model = GPT(config)
    predicted = memory_ledger(model, "full", precision="float32", batch=batch)
    measured = measured_ledger(model, step(model, batch))
    assert astuple(measured)[:3] == astuple(predicted)[:3]
    assert measured.activations == pytest.approx(predicted.activations, rel=0.05)
    assert measured.activations - predicted.activations == 8  # the number of target tokens, by which the loss is divided


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("batch", [(3, 16), (2, 24)])
@pytest.mark.parametrize("config", SHAPES)
def test_lora_holds_what_is_predicted(config, batch, targets):
    model = GPT(config)
    predicted = memory_ledger(model, "lora", rank=3, targets=targets, precision="float32", batch=batch)
    add_lora(model, LoRAConfig(rank=3, alpha=8.0, targets=targets))
    measured = measured_ledger(model, step(model, batch))
    assert astuple(measured)[:3] == astuple(predicted)[:3]
    assert measured.activations == pytest.approx(predicted.activations, rel=0.05)
    assert measured.activations - predicted.activations == 8


@pytest.mark.parametrize("config", SHAPES)
def test_qlora_holds_what_is_predicted(config):
    model = GPT(config)
    predicted = memory_ledger(model, "qlora", rank=3, precision="float32", batch=(3, 16))
    quantize_base(model)
    add_lora(model, LoRAConfig(rank=3, alpha=8.0, targets="all-linear"))
    measured = measured_ledger(model, step(model, (3, 16)))
    assert astuple(measured)[:3] == astuple(predicted)[:3]
    assert measured.activations - predicted.activations == 8


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_over_a_base_in_half_precision_adapters_are_counted_in_float32(method):
    model = GPT(SHAPES[1])
    predicted = memory_ledger(model, method, rank=3)
    if method == "qlora":
        quantize_base(model)
    model.to(torch.bfloat16)
    add_lora(model, LoRAConfig(rank=3, alpha=8.0, targets="all-linear"))
    assert astuple(measured_ledger(model, step(model, (3, 16))))[:3] == astuple(predicted)[:3]


@given(st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=20)
def test_four_bit_bytes_are_those_of_the_layer(d, k):
    model = nn.Sequential(nn.Linear(k, d, bias=False))
    quantize_base(model)
    assert nf4_bytes(d * k) == sum(buffer.nbytes for buffer in model.buffers())


def test_measuring_leaves_the_model_as_it_was():
    model = GPT(SHAPES[0])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    measured_ledger(model, step(model, (3, 16)))
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


def test_one_stretch_of_memory_counts_once():
    x = torch.ones(6, 5, requires_grad=True)
    assert saved_bytes(lambda: (x * x.exp()).sum() + (x[:2] * x.exp()[:2]).sum(), besides=[x])[0] == 2 * 4 * 30
    assert saved_bytes(lambda: (x * x).sum())[0] == 4 * 30


def test_the_ledger_of_gpt3_s_shape_is_that_of_the_same_gpt():
    small = PRESETS["gpt3-175b"]
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257, context=2048, n_layer=96, n_head=96, n_embd=12288))
    for method in ("full", "lora"):
        assert memory_ledger(model, method, precision="float32", batch=(1, 2048)) == memory_ledger(
            small, method, precision="float32", batch=(1, 2048)
        )


def test_model_states_agree_with_published_arithmetic():
    llama = PRESETS["llama-2-7b"]
    assert memory_ledger(llama, "full").total == 16 * llama.total  # ZeRO: 2 + 2 + 12 bytes
    assert memory_ledger(llama, "full", precision="float32").total == 16 * llama.total
    assert memory_ledger(llama, "lora", rank=16).total == 2 * llama.total + 16 * 39_976_960
    in_matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    bits = 4 + 8 / 64 + 32 / (64 * 256)  # QLoRA, section 3
    quantized = in_matrices * bits / 8 + 2 * (llama.total - in_matrices) + 16 * 39_976_960
    assert memory_ledger(llama, "qlora", rank=16).total == pytest.approx(quantized, rel=1e-6)


def test_lora_never_needs_less_than_the_frozen_weights():
    for shape in PRESETS.values():
        assert memory_ledger(shape, "lora", rank=1, targets=(next(shape.linear_layers()).path,)).weights > 2 * shape.total


def test_what_cannot_be_predicted_is_refused():
    model = GPT(SHAPES[0])
    with pytest.raises(ValueError, match="method"):
        memory_ledger(model, "half")
    with pytest.raises(ValueError, match="precision"):
        memory_ledger(model, "full", precision="float16")
    with pytest.raises(ValueError, match="leave out batch"):
        memory_ledger(model, "full", batch=(1, 8))
    with pytest.raises(ValueError, match="in the blocks"):
        memory_ledger(model, "lora", targets=("token_embedding",), precision="float32", batch=(1, 8))
    with pytest.raises(AdapterError):
        memory_ledger(model, "lora", targets=("query",))
    for other in (nn.Sequential(nn.Linear(6, 4)), PRESETS["gpt2"]):
        with pytest.raises(TypeError):
            memory_ledger(other, "full", precision="float32", batch=(1, 8))


def test_a_ledger_adds_up():
    assert Ledger(1, 2, 3, 4).total == 10
    assert count_parameters(GPT(SHAPES[0])).total * 16 == memory_ledger(GPT(SHAPES[0]), "full").total


def test_activations_grow_with_the_tokens():
    model = GPT(SHAPES[0])
    one, two = (gpt_activation_bytes(model, (b, 16)) for b in (1, 2))
    assert two - one == one - 8 * 16 - 4  # all but the position numbers and the loss's total weight


def test_a_gradient_that_is_not_finite_does_not_reach_the_weights():
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    measured_ledger(layer, lambda: layer(torch.full((1, 3), 1e20)).square().sum())
    assert torch.equal(layer.weight, before)


def test_another_model_with_blocks_is_not_taken_for_the_books_gpt():
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))])})
    model.blocks, model.config = model["blocks"], GPTConfig(vocab_size=11, context=16, n_layer=1, n_head=2, n_embd=8)
    with pytest.raises(TypeError, match="leave out batch"):
        memory_ledger(model, "full", precision="float32", batch=(4, 16))
