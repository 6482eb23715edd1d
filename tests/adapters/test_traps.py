"""The traps that well-known libraries fell into, one test each, in the order in which the project's notes number them."""

import copy
import pickle

import peft
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lorabook import (
    AdapterError,
    DoRALinear,
    LoRAConfig,
    LoRALinear,
    NF4Linear,
    adapter_names,
    add_lora,
    combine_adapters,
    load_adapter,
    lora_parameters,
    merge_lora,
    save_adapter,
    unmerge_lora,
    use_adapter,
)
from lorabook.adapters.site import layers_named


def make_layer(d=96, k=160, rank=8, alpha=24.0, dtype=torch.float32):
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(k, d).to(dtype), rank, alpha)
    layer.lora_B.data.normal_(0, 0.05)
    return layer


def adapt(model, name="default", **settings):
    add_lora(model, LoRAConfig(**{"rank": 2, "alpha": 6.0, "targets": ("q_proj", "proj"), **settings}), name)
    with torch.no_grad():
        for parameter in lora_parameters(model, name):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_trap_01_a_merged_weight_is_the_exact_sum_rounded_once_and_comes_back_bit_for_bit(dtype):
    layer = make_layer(dtype=dtype)
    before = layer.base.weight.clone()
    exact = before.double() + layer.scaling * layer.lora_B.double() @ layer.lora_A.double()
    layer.merge()
    once = exact.to(dtype)
    # Float32 is enough to form the sum for a half-precision base; but for near ties the rounding is then the same.
    error, least = ((weight.double() - exact).abs() for weight in (layer.base.weight, once))
    assert (error <= least + 1e-6 * exact.abs().max()).all()
    assert (layer.base.weight != once).float().mean() < 1e-3
    by_subtraction = (layer.base.weight - layer.delta_weight().to(dtype)) != before
    assert by_subtraction.float().mean() > 0.01  # what unmerging by subtraction would have changed
    layer.unmerge()
    assert torch.equal(layer.base.weight, before)


def test_trap_02_a_state_dict_never_holds_merged_weights_unnoticed(make_model, tmp_path):
    merge_lora(model := adapt(make_model()))
    for take in (lambda: model.state_dict(), lambda: torch.save(model.state_dict(), tmp_path / "x"), lambda: save_adapter(model, tmp_path)):
        with pytest.raises(AdapterError, match=r"merged.*unmerge_lora"):
            take()


def test_trap_03_train_and_eval_merge_nothing_and_return_the_model(make_model):
    adapt(model := make_model())
    before = model.blocks[0].proj.base.weight.clone()
    assert model.eval() is model
    assert model.train() is model
    assert model.blocks[0].proj.eval() is model.blocks[0].proj
    assert torch.equal(model.blocks[0].proj.base.weight, before)
    assert not model.blocks[0].proj.merged


def test_trap_04_editing_the_factors_while_merged_does_not_corrupt_the_base():
    layer = make_layer()
    before = layer.base.weight.clone()
    layer.merge()
    layer.lora_A.data.mul_(-3)
    layer.lora_B.data.add_(1)
    layer.unmerge()
    assert torch.equal(layer.base.weight, before)


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_trap_05_biases_train_are_saved_and_count_as_their_mode_says(bias, make_model, ids, tmp_path):
    adapt(model := make_model(), alpha=7.0, bias=bias)
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias") and parameter.requires_grad]
    assert len(biases) == {"none": 0, "lora_only": 4, "all": 6}[bias]
    save_adapter(model, tmp_path)
    load_adapter(other := make_model(), tmp_path)
    assert torch.equal(model(ids), other(ids))
    expected = model(ids)
    merge_lora(model)
    torch.testing.assert_close(model(ids), expected)


def test_trap_06_a_combination_has_no_cross_terms_and_heeds_each_scaling():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 6))
    for name, stabilized in (("a", False), ("b", True)):
        adapt(model, name, targets=("0",), rank=4, rank_stabilized=stabilized)
    combine_adapters(model, {"a": 0.5, "b": -1.5}, "c")
    a, b, c = (layers_named(model, name)["0"] for name in "abc")
    exact = 0.5 * a.scaling * a.lora_B @ a.lora_A - 1.5 * b.scaling * b.lora_B @ b.lora_A
    averaged = (0.5 * b.lora_B - 1.5 * a.lora_B) @ (0.5 * a.lora_A - 1.5 * b.lora_A)
    torch.testing.assert_close(c.delta_weight(), exact)
    assert not torch.allclose(averaged, exact, rtol=0.1)


def test_trap_07_dora_leaves_the_bias_alone_and_trains_its_magnitude():
    torch.manual_seed(0)
    layer = DoRALinear(nn.Linear(9, 6), 2, 7.0)
    layer.magnitude.data.mul_(2)
    torch.testing.assert_close(layer(torch.zeros(1, 9))[0], layer.base.bias)
    layer(torch.randn(3, 9)).square().sum().backward()
    assert layer.magnitude.grad.abs().min() > 0


def test_trap_08_merging_into_a_head_that_the_embedding_shares_is_refused(make_model):
    adapt(model := make_model(), targets=("head",))
    before = model.embedding.weight.clone()
    with pytest.raises(AdapterError, match=r"embedding and head\.base share one weight"):
        merge_lora(model)
    assert torch.equal(model.embedding.weight, before)
    model.head.base.weight = nn.Parameter(model.head.base.weight.clone())  # what the message says to do
    merge_lora(model)
    assert torch.equal(model.embedding.weight, before)
    unmerge_lora(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_trap_09_adapters_over_a_half_precision_base_are_float32(dtype):
    model = nn.ModuleDict({"embedding": nn.Embedding(9, 6), "proj": nn.Linear(6, 4), "c_attn": Conv1D(5, 4)}).to(dtype)
    for settings in ({}, {"dora": True, "targets": ("proj", "c_attn")}):
        adapt(other := copy.deepcopy(model), **{"targets": ("embedding", "proj", "c_attn"), "bias": "lora_only", **settings})
        assert {parameter.dtype for parameter in lora_parameters(other)} == {torch.float32}


def test_trap_10_checkpointing_over_a_frozen_embedding_still_trains_the_adapter(make_model, ids):
    adapt(model := make_model())
    x = model.embedding(ids)
    assert not x.requires_grad
    checkpoint(model.blocks, x, use_reentrant=False).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in lora_parameters(model))
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
        lost = checkpoint(model.blocks, x, use_reentrant=True)  # the kind that add_lora's docstring warns of
    assert not lost.requires_grad


def test_trap_11_no_adapter_that_is_not_in_use_waits_for_a_gradient(make_model, ids):
    model = make_model()
    for name, targets in (("a", ("q_proj",)), ("b", ("proj",))):
        adapt(model, name, targets=targets)
    use_adapter(model, "a")
    model(ids).sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)


def test_trap_12_an_adapter_of_another_base_of_the_same_shapes_is_refused(make_model, tmp_path):
    save_adapter(adapt(make_model()), tmp_path)
    (tmp_path / "readme.txt").write_text("other files in the directory do not matter")
    other = make_model(seed=1)
    with pytest.raises(AdapterError, match="another base"):
        load_adapter(other, tmp_path)
    with pytest.raises(AdapterError, match="no linear layer matches 'q_prj'"):
        add_lora(other, LoRAConfig(rank=2, targets=("q_prj", "proj")))
    assert adapter_names(other) == ()


def test_trap_13_an_adapter_over_four_bits_is_not_merged_into_the_original_weight():
    torch.manual_seed(0)
    original = nn.Linear(96, 40)
    layer = LoRALinear(NF4Linear(original), 2, 7.0)
    assert not torch.equal(layer.base.dequantize(), original.weight)
    with pytest.raises(AdapterError, match="dequantize_base"):
        layer.merge()
    layer.lora_B.data.normal_()
    x = torch.randn(3, 96)
    expected, layer.base = layer(x), layer.base.to_linear()
    layer.merge()
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.slow
def test_trap_14_switching_compiles_nothing_anew_and_models_can_be_copied_and_pickled(make_model, ids):
    torch._dynamo.reset()
    compilations, model = [], make_model()
    for name in ("a", "b", "c"):
        adapt(model, name)
    compiled = torch.compile(model, backend=lambda graph, inputs: compilations.append(graph) or graph.forward)
    for name in ("a", "b", "c"):
        use_adapter(model, name)
        torch.testing.assert_close(compiled(ids), model(ids))
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(ids), model(ids))
    assert len(compilations) == 1
    torch._dynamo.reset()


def test_trap_15_kaiming_reads_its_fan_from_the_inputs():
    generator = torch.Generator().manual_seed(0)
    A = LoRALinear(nn.Linear(400, 300), 4, 7.0, generator=generator).lora_A
    assert A.shape == (4, 400)
    assert A.abs().max() <= 1 / 20
    assert A.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.05)


def test_trap_16_weight_decay_moves_an_adapter_without_gradients_toward_the_backbone():
    layer = make_layer()
    optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=0.1, weight_decay=0.5)
    before = layer.delta_weight().norm()
    layer.lora_A.grad, layer.lora_B.grad = torch.zeros_like(layer.lora_A), torch.zeros_like(layer.lora_B)
    optimizer.step()
    # Both factors shrink by 1 - lr * decay, and so the update by the square of that.
    torch.testing.assert_close(layer.delta_weight().norm(), before * 0.95**2)


def test_trap_17_a_step_over_everything_that_trains_leaves_the_exported_adapter_right(make_model, ids, tmp_path):
    model = make_model()
    assert all(parameter.requires_grad for parameter in model.parameters())
    adapt(model)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(ids).square().mean().backward()
        optimizer.step()
    save_adapter(model, tmp_path)
    load_adapter(fresh := make_model(), tmp_path)
    assert torch.equal(fresh(ids), model(ids))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers in its old words
@pytest.mark.parametrize("target", ["c_proj", "c_attn"])
def test_trap_18_conv1d_is_not_read_as_linear_even_where_it_is_square(target, tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=13, n_positions=8, n_embd=12, n_layer=1, n_head=2)).eval()
    plain, ids = copy.deepcopy(model), torch.arange(8)[None]
    adapt(model, targets=(f"attn.{target}",))
    layer = model.get_submodule(f"transformer.h.0.attn.{target}")
    weight = layer.base.weight.clone()
    assert layer.lora_A.shape == (2, weight.shape[0])
    expected = model(ids).logits
    merge_lora(model)
    torch.testing.assert_close(layer.base.weight - weight, layer.delta_weight().T, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model(ids).logits, expected)
    unmerge_lora(model)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path)
    torch.testing.assert_close(theirs(ids).logits, expected)
