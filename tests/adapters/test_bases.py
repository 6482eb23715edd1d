"""LoRA over Conv1D, embeddings and DoRA, against PEFT, loralib, dense matrices and float64."""

import copy

import loralib
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lorabook import (
    AdapterError,
    DoRALinear,
    LoRAConfig,
    LoRAEmbedding,
    LoRALinear,
    add_lora,
    lora_parameters,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from lorabook.adapters.bases import weight_of

BASES = {"linear": lambda k, d: nn.Linear(k, d), "conv1d": lambda k, d: Conv1D(d, k), "unbiased": lambda k, d: nn.Linear(k, d, bias=False)}


def shake(layer, scale=0.3):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(scale * torch.randn_like(parameter) * parameter.requires_grad)
    return layer


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("layer_class", [LoRALinear, DoRALinear])
def test_a_fresh_layer_computes_exactly_what_its_base_computes(kind, layer_class):
    torch.manual_seed(0)
    base = shake(BASES[kind](7, 5))
    x = torch.randn(3, 2, 7)
    assert torch.equal(layer_class(base, 2, 8.0)(x), base(x))


@given(
    kind=st.sampled_from(sorted(BASES)),
    d=st.integers(2, 12),
    k=st.integers(2, 12),
    alpha=st.floats(0.1, 64),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_the_update_is_the_dense_matrix_whatever_the_base_stores(kind, d, k, alpha, seed, data):
    torch.manual_seed(seed)
    rank = data.draw(st.integers(1, min(d, k)))
    layer = shake(LoRALinear(shake(BASES[kind](k, d)), rank, alpha)).double()
    x = torch.randn(4, k, dtype=torch.float64)
    dense = weight_of(layer.base) + alpha / rank * layer.lora_B @ layer.lora_A
    assert dense.shape == (d, k)
    torch.testing.assert_close(layer(x), F.linear(x, dense, getattr(layer.base, "bias", None)))
    layer.merge()
    torch.testing.assert_close(weight_of(layer.base), dense.detach())


@given(
    kind=st.sampled_from(sorted(BASES)),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    layer_class=st.sampled_from([LoRALinear, DoRALinear]),
    sizes=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    alpha=st.floats(0.1, 64),
    data=st.data(),
)
def test_unmerging_restores_every_bit(kind, dtype, layer_class, sizes, alpha, data):
    torch.manual_seed(1)
    rank = data.draw(st.integers(1, min(sizes)))
    layer = shake(layer_class(shake(BASES[kind](*sizes)).to(dtype), rank, alpha))
    before = layer.base.weight.clone()
    layer.merge()
    assert not torch.equal(layer.base.weight, before)
    layer.unmerge()
    assert torch.equal(layer.base.weight.view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("layer_class", [LoRALinear, DoRALinear])
def test_a_half_precision_base_gets_float32_adapters_and_keeps_its_output_type(layer_class):
    layer = layer_class(nn.Linear(7, 5).half(), 2, 8.0)
    assert {parameter.dtype for parameter in layer.parameters() if parameter.requires_grad} == {torch.float32}
    assert layer(torch.randn(3, 7).half()).dtype == torch.float16


def test_a_sum_too_large_for_the_base_is_refused_before_anything_changes():
    layer = LoRALinear(nn.Linear(7, 5).half(), 2, 8.0)
    layer.lora_B.data.fill_(1e6)
    before = layer.base.weight.clone()
    with pytest.raises(AdapterError, match=r"does not fit torch\.float16"):
        layer.merge()
    assert torch.equal(layer.base.weight, before)
    assert not layer.merged


@pytest.mark.parametrize("kind", BASES)
def test_gradcheck_of_the_linear_layer(kind):
    torch.manual_seed(2)
    layer = shake(LoRALinear(BASES[kind](4, 3), 2, 3.0)).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, layer.lora_A, layer.lora_B))


def test_gradcheck_of_the_embedding():
    torch.manual_seed(3)
    layer = shake(LoRAEmbedding(nn.Embedding(6, 3), 2, 3.0)).double()
    ids = torch.tensor([[0, 5, 5]])
    assert torch.autograd.gradcheck(lambda *_: layer(ids), (layer.lora_A, layer.lora_B))


def test_gradcheck_of_dora_in_its_input_and_magnitude():
    torch.manual_seed(4)  # in A and B the norm counts as constant, so only PEFT can be asked
    layer = shake(DoRALinear(nn.Linear(4, 3), 2, 3.0)).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, layer.magnitude))


def test_an_embedding_agrees_with_loralib():
    torch.manual_seed(5)
    theirs = loralib.Embedding(11, 6, r=3, lora_alpha=8)
    layer = LoRAEmbedding(nn.Embedding(11, 6), 3, 8.0)
    layer.base.weight.data.copy_(theirs.weight)
    for ours, other in ((layer.lora_A, theirs.lora_A), (layer.lora_B, theirs.lora_B)):
        ours.data.normal_()
        other.data.copy_(ours)
    ids = torch.randint(0, 11, (3, 4))
    torch.testing.assert_close(layer(ids), theirs(ids))


def test_a_fresh_embedding_has_a_zero_a_and_a_normal_b():
    layer = LoRAEmbedding(nn.Embedding(500, 300), 64, 8.0, generator=torch.Generator().manual_seed(0))
    assert not layer.lora_A.any()
    assert layer.lora_B.std().item() == pytest.approx(1, abs=0.02)
    ids = torch.randint(0, 500, (9,))
    assert torch.equal(layer(ids), layer.base(ids))


def test_only_tokens_that_occur_and_are_no_padding_are_adapted():
    layer = LoRAEmbedding(nn.Embedding(9, 6, padding_idx=0), 2, 8.0)
    layer(torch.tensor([[0, 3, 7]])).sum().backward()
    assert layer.lora_A.grad.abs().sum(0).nonzero().flatten().tolist() == [3, 7]


@pytest.mark.parametrize(("base", "error"), [(nn.Embedding(9, 6, max_norm=1.0), ValueError), (nn.Linear(6, 9), TypeError)])
def test_an_embedding_that_rewrites_itself_or_is_none_is_refused(base, error):
    with pytest.raises(error):
        LoRAEmbedding(base, 2, 8.0)
    assert base.weight.requires_grad


def test_a_linear_layer_over_an_embedding_is_refused():
    with pytest.raises(TypeError, match="use LoRAEmbedding"):
        LoRALinear(nn.Embedding(9, 6), 2, 8.0)


@pytest.mark.parametrize("bias", [True, False])
def test_dora_merged_computes_what_it_computes_unmerged(bias):
    torch.manual_seed(6)
    layer = shake(DoRALinear(nn.Linear(9, 5, bias=bias), 2, 8.0))
    x = torch.randn(4, 9)
    expected = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.base.weight.norm(dim=1), layer.magnitude.detach().abs())


def test_dora_does_not_scale_the_bias():
    layer = DoRALinear(nn.Linear(9, 5), 2, 8.0)
    layer.magnitude.data.mul_(3)
    zero = torch.zeros(1, 9)
    torch.testing.assert_close(layer(zero)[0], layer.base.bias)


@pytest.mark.parametrize("number", [0.0, float("inf"), float("nan")])
def test_dora_refuses_a_row_without_direction(number):
    base = nn.Linear(6, 4)
    base.weight.data[2] = number
    with pytest.raises(ValueError, match="a row of the base's weight is zero or not finite"):
        DoRALinear(base, 2, 8.0)
    model = nn.Sequential(base)
    with pytest.raises(ValueError, match="'0': a row of the base's weight is zero"):
        add_lora(model, LoRAConfig(rank=2, targets=("0",), dora=True))
    assert model[0] is base
    assert base.weight.requires_grad


@pytest.mark.parametrize(
    "settings", [{}, {"dora": True}, *({"init": init} for init in ("pissa", "olora", "orthogonal")), {"bias": "lora_only"}]
)
def test_after_three_steps_every_adapter_tensor_has_moved_and_nothing_else_has(settings):
    torch.manual_seed(7)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=13, n_positions=8, n_embd=12, n_layer=2, n_head=2)).eval()
    add_lora(model, LoRAConfig(rank=3, alpha=8.0, targets=("c_attn", "c_fc"), **settings))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) >= 8
    optimizer = torch.optim.SGD(lora_parameters(model), lr=0.1)
    ids = torch.randint(0, 13, (2, 8))
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trained


def test_gpt2_with_adapters_on_conv1d_and_embedding_merges_and_comes_back():
    torch.manual_seed(8)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=13, n_positions=8, n_embd=12, n_layer=2, n_head=2)).eval()
    plain = copy.deepcopy(model)
    add_lora(model, LoRAConfig(rank=3, alpha=8.0, targets=("c_attn", "c_proj", "wpe")))
    shake(model)
    ids = torch.randint(0, 13, (2, 8))
    expected = model(ids).logits
    merge_lora(model)
    torch.testing.assert_close(model(ids).logits, expected)
    unmerge_lora(model)
    assert torch.equal(model(ids).logits, expected)
    remove_lora(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_a_decomposed_start_trains_as_pefts_does(init, rank_stabilized):
    torch.manual_seed(9)
    network = nn.Sequential(nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 8))
    ours = copy.deepcopy(network)
    add_lora(ours, LoRAConfig(rank=3, alpha=8.0, targets=("0", "2"), init=init, rank_stabilized=rank_stabilized))
    config = peft.LoraConfig(r=3, lora_alpha=8, target_modules=["0", "2"], init_lora_weights=init, use_rslora=rank_stabilized)
    theirs = peft.get_peft_model(copy.deepcopy(network), config)
    x = torch.randn(5, 9)
    torch.testing.assert_close(ours(x), network(x), atol=1e-6, rtol=1e-6)
    for model in (ours, theirs):
        optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert not torch.allclose(ours(x), network(x), atol=1e-3)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(ours[0].base.weight, network[0].weight)


def test_orthogonal_rows_are_orthonormal():
    A = LoRALinear(nn.Linear(30, 20), 7, 8.0, init="orthogonal").lora_A
    torch.testing.assert_close(A @ A.T, torch.eye(7))
