"""Four bits: the levels against the published ones and SciPy-free quantiles, the packing, the layer, and adapters on top."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lorabook import (
    AdapterError,
    LoRAConfig,
    LoRALinear,
    NF4Linear,
    add_lora,
    dequantize_base,
    dequantize_nf4,
    load_adapter,
    lora_parameters,
    merge_lora,
    nf4_levels,
    quantize_base,
    quantize_nf4,
    save_adapter,
    use_adapter,
)

PUBLISHED = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def test_the_derived_levels_are_the_published_ones():
    torch.testing.assert_close(nf4_levels(), torch.tensor(PUBLISHED), atol=2e-6, rtol=0)


def test_the_levels_are_quantiles_of_the_normal_distribution():
    outermost = (1 - 1 / 30 + 1 - 1 / 32) / 2
    quantile = statistics.NormalDist().inv_cdf
    above = [quantile(0.5 + (outermost - 0.5) * step / 8) / quantile(outermost) for step in range(1, 9)]
    torch.testing.assert_close(nf4_levels()[8:].double(), torch.tensor(above, dtype=torch.float64), atol=1e-6, rtol=0)


@given(shape=st.tuples(st.integers(1, 40), st.integers(1, 40)), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_every_weight_goes_to_the_nearest_level_of_its_block(shape, scale, seed):
    weight = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    found = dequantize_nf4(quantize_nf4(weight), shape).double()
    flat = F.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64).double()
    scales = F.pad(found.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    for block, read in zip(flat, scales, strict=True):
        largest = read.abs().max()  # the block's scale as it was read back: its largest weight is at level 1 or -1
        choices = largest * torch.tensor(PUBLISHED, dtype=torch.float64)
        nearest = (block[:, None] - choices).abs().min(dim=1).values
        assert ((block - read).abs() <= nearest + 1e-5 * largest).all()


def test_weights_and_scales_take_4_127_bits():
    packed = quantize_nf4(torch.randn(512, 1024))
    assert sum(part.nbytes for part in packed) * 8 / (512 * 1024) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)


def test_the_second_level_of_scales_costs_little_accuracy():
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    flat = weight.view(-1, 64)
    scales = flat.abs().amax(1, keepdim=True)
    exact = (scales * nf4_levels()[(flat / scales)[..., None].sub(nf4_levels()).abs().argmin(-1)]).view_as(weight)
    once, twice = ((found - weight).norm().item() for found in (exact, dequantize_nf4(quantize_nf4(weight), (256, 512))))
    assert twice < 1.01 * once


@pytest.mark.parametrize("weight", [torch.zeros(3, 50), torch.full((3, 50), 2.0), torch.tensor([[0.0] * 64 + [5.0]])])
def test_blocks_of_one_value_are_exact(weight):
    torch.testing.assert_close(dequantize_nf4(quantize_nf4(weight), tuple(weight.shape)), weight)


@pytest.mark.parametrize("weight", [torch.empty(0, 4), torch.tensor([[float("nan")]]), torch.tensor([[float("inf")]])])
def test_what_is_not_finite_or_empty_is_not_quantized(weight):
    with pytest.raises(ValueError, match="finite"):
        quantize_nf4(weight)


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_computes_with_the_dequantized_weight_forward_and_backward(bias):
    torch.manual_seed(0)
    base = nn.Linear(70, 30, bias=bias)
    layer, x = NF4Linear(base), torch.randn(2, 5, 70, requires_grad=True)
    weight = layer.dequantize()
    expected = F.linear(x, weight, base.bias)
    torch.testing.assert_close(layer(x), expected)
    weights = torch.randn_like(expected)
    mine, theirs = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (layer(x), expected))
    torch.testing.assert_close(mine, theirs)
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_the_backward_pass_keeps_no_dequantized_weight():
    layer, kept = NF4Linear(nn.Linear(70, 30)), []
    x = torch.randn(4, 70, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        layer(x).sum()
    assert 70 * 30 not in kept


def test_a_layer_survives_its_state_dict_and_a_cast():
    torch.manual_seed(1)
    layer, other = NF4Linear(nn.Linear(70, 30)), NF4Linear(nn.Linear(70, 30))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 70)
    assert torch.equal(layer(x), other(x))
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_of_the_model_leaves_the_quantized_weight_as_it_was(dtype):
    torch.manual_seed(1)
    layer = NF4Linear(nn.Linear(70, 30))
    before = layer.dequantize()
    assert torch.equal(layer.to(dtype).dequantize(), before)
    assert layer.bias.dtype == dtype
    assert layer(torch.randn(3, 70).to(dtype)).dtype == dtype


def quantized():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(70, 30), nn.ReLU(), nn.Linear(30, 9))
    assert quantize_base(model) == ("0", "2")
    return model


def test_adapters_train_over_the_quantized_base_and_merge_into_the_dequantized_one():
    model = quantized()
    for name in ("sql", "text"):
        add_lora(model, LoRAConfig(rank=3, alpha=8.0, targets=("0", "2")), name)
    use_adapter(model, "sql")
    x = torch.randn(5, 70)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    expected, printed = model(x), repr(model)
    with pytest.raises(AdapterError, match=r"'0' has a quantized base: dequantize_base\(model\) first"):
        merge_lora(model)
    assert repr(model) == printed
    dequantize_base(model)
    torch.testing.assert_close(model(x), expected)
    merge_lora(model)
    torch.testing.assert_close(model(x), expected)


def test_dora_and_pissa_work_over_the_quantized_base():
    for settings in ({"dora": True}, {"init": "pissa"}):
        model = quantized()
        x = torch.randn(5, 70)
        expected = model(x)
        add_lora(model, LoRAConfig(rank=3, targets=("0",), **settings))
        torch.testing.assert_close(model(x), expected)


def test_an_adapter_of_a_quantized_base_is_saved_and_loaded(tmp_path):
    model, other = quantized(), quantized()
    add_lora(model, LoRAConfig(rank=3, targets=("0",)))
    model[0].lora_B.data.normal_()
    save_adapter(model, tmp_path)
    load_adapter(other, tmp_path)
    x = torch.randn(5, 70)
    assert torch.equal(model(x), other(x))


def test_a_model_with_adapters_is_not_quantized_under_them():
    model = nn.Sequential(nn.Linear(70, 30))
    add_lora(model, LoRAConfig(rank=3, targets=("0",)))
    with pytest.raises(AdapterError, match="quantize before add_lora"):
        quantize_base(model)
    with pytest.raises(AdapterError, match="no four-bit layer"):
        dequantize_base(model)
    assert isinstance(model[0], LoRALinear)


def test_a_four_bit_layer_by_itself_is_not_silently_left():
    with pytest.raises(AdapterError, match=r"model\.to_linear\(\)"):
        dequantize_base(NF4Linear(nn.Linear(70, 30)))


def test_what_cannot_be_quantized_leaves_the_model(make_model):
    model = make_model()
    for targets in (("embedding",), ("typo",)):
        with pytest.raises(AdapterError):
            quantize_base(model, targets)
    model.blocks[1].proj.weight.data.fill_(float("nan"))
    with pytest.raises(AdapterError, match="finite"):
        quantize_base(model)
    assert repr(model) == repr(make_model())


def test_gradcheck_of_the_quantized_layer_under_an_adapter():
    torch.manual_seed(3)
    layer = LoRALinear(NF4Linear(nn.Linear(6, 4)), 2, 3.0).double()
    layer.lora_B.data.normal_()
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, layer.lora_A, layer.lora_B))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # what dynamo itself does with a Function
@pytest.mark.slow
def test_a_quantized_model_with_adapters_compiles_whole():
    torch._dynamo.reset()
    model, x = quantized(), torch.randn(5, 70)
    add_lora(model, LoRAConfig(rank=3, targets=("0", "2")))
    gradients = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        run(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in lora_parameters(model)])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager)
    torch._dynamo.reset()
