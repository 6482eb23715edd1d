"""One adapted layer: what it computes, what trains, and what it refuses."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from lorabook import AdapterError, LoRALinear

HALF = [torch.float16, torch.bfloat16]
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9)).filter(lambda shape: shape[0] != shape[1])


def make_layer(d=5, k=7, rank=3, alpha=8.0, *, dtype=torch.float32, seed=0, fresh=False, bias=True, **settings):
    generator = torch.Generator().manual_seed(seed)
    base = nn.Linear(k, d, bias=bias)
    for parameter in base.parameters():
        parameter.data.normal_(generator=generator)
    layer = LoRALinear(base.to(dtype), rank, alpha, generator=generator, **settings)
    if not fresh:
        layer.lora_B.data.normal_(generator=generator)
    return layer


def batch(k=7, dtype=torch.float32):
    return torch.randn(4, 2, k, generator=torch.Generator().manual_seed(9)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_fresh_adapter_leaves_outputs_unchanged(dtype, init):
    layer, x = make_layer(dtype=dtype, init=init, dropout=0.3, fresh=True), batch(dtype=dtype)
    assert torch.equal(layer(x), layer.base(x))


@given(shapes, st.data(), st.sampled_from([0.5, 3.0, 32.0]), st.booleans(), st.booleans())
def test_forward_is_the_base_plus_the_scaled_product(shape, data, alpha, rank_stabilized, bias):
    d, k = shape
    rank = data.draw(st.integers(1, min(shape)))
    layer = make_layer(d, k, rank, alpha, dtype=torch.float64, rank_stabilized=rank_stabilized, bias=bias)
    x, A, B, W = (tensor.detach().numpy() for tensor in (batch(k, torch.float64), layer.lora_A, layer.lora_B, layer.base.weight))
    s = alpha / (math.sqrt(rank) if rank_stabilized else rank)
    expected = x @ (W + s * B @ A).T + (layer.base.bias.numpy() if bias else 0)
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(layer.delta_weight().detach(), s * B @ A, rtol=1e-10, atol=1e-12)
    assert np.linalg.matrix_rank(layer.delta_weight().detach().numpy()) <= rank


@pytest.mark.parametrize(("rank_stabilized", "expected"), [(False, 8.0 / 4), (True, 8.0 / 2)])
def test_scaling_divides_alpha_by_the_rank_or_its_root(rank_stabilized, expected):
    assert make_layer(d=5, k=7, rank=4, alpha=8.0, rank_stabilized=rank_stabilized).scaling == expected


def test_the_first_gradient_moves_only_b():
    layer = make_layer(fresh=True)
    layer(batch()).square().sum().backward()
    assert layer.lora_A.grad.eq(0).all()
    assert layer.lora_B.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in layer.base.parameters())


def test_gradients_equal_the_formulas():
    layer, x = make_layer(dtype=torch.float64), batch(dtype=torch.float64).flatten(0, 1)
    g = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    layer(x).backward(g)
    A, B, s = layer.lora_A.detach(), layer.lora_B.detach(), layer.scaling
    torch.testing.assert_close(layer.lora_B.grad, s * g.T @ (x @ A.T))
    torch.testing.assert_close(layer.lora_A.grad, s * (g @ B).T @ x)


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_gradients_of_input_a_and_b_pass_gradcheck(rank_stabilized):
    layer = make_layer(dtype=torch.float64, rank_stabilized=rank_stabilized)
    inputs = [tensor.detach().clone().requires_grad_(True) for tensor in (batch(dtype=torch.float64), layer.lora_A, layer.lora_B)]

    def forward(x, lora_A, lora_B):
        return functional_call(layer, {"lora_A": lora_A, "lora_B": lora_B}, (x,))

    assert torch.autograd.gradcheck(forward, inputs)


@pytest.mark.parametrize("dtype", HALF)
def test_over_a_half_precision_base_the_adapter_is_float32(dtype):
    layer = make_layer(dtype=dtype)
    y = layer(batch(dtype=dtype))
    y.float().square().sum().backward()
    assert y.dtype == layer.base.weight.dtype == dtype
    for parameter in (layer.lora_A, layer.lora_B):
        assert parameter.dtype == parameter.grad.dtype == torch.float32


def test_bf16_autocast_computes_in_bf16_and_trains_in_float32():
    layer, x = make_layer(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    # Each product and sum of the two paths carries a relative error of 2^-8 of the sizes that enter it.
    sizes = x.abs() @ (layer.base.weight.abs() + layer.scaling * layer.lora_B.abs() @ layer.lora_A.abs()).T + layer.base.bias.abs()
    assert ((y.float() - layer(x)).abs() <= 6 * 2**-8 * sizes).all()
    for parameter in (layer.lora_A, layer.lora_B):
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().max() > 0


def test_dropout_touches_the_update_only_and_only_in_training():
    layer = make_layer(dropout=0.5)
    x = batch().expand(500, 4, 2, 7)
    full = layer.eval()(x) - layer.base(x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = layer.train()(x) - layer.base(x)
    assert not torch.allclose(full, dropped)
    five_sigma = 5 * dropped.std(0) / math.sqrt(500)
    assert ((dropped.mean(0) - full[0]).abs() <= five_sigma).all()


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_merging_rounds_once(dtype):
    layer = make_layer(40, 30, 3, 8.0, dtype=dtype)
    A, B, W = (tensor.detach().double() for tensor in (layer.lora_A, layer.lora_B, layer.base.weight))
    exact = W + layer.scaling * B @ A
    layer.merge()
    half_ulp = torch.finfo(dtype).eps / 2 * 2.0 ** (torch.frexp(exact).exponent - 1)
    # The sum before the rounding is formed in a wider format, whose own error is this small.
    wide = torch.finfo(torch.float64 if dtype == torch.float32 else torch.float32).eps
    slack = (layer.rank + 2) * wide * (W.abs() + layer.scaling * B.abs() @ A.abs())
    assert ((layer.base.weight.double() - exact).abs() <= half_ulp + slack).all()


def test_merged_layer_computes_the_same():
    layer, x = make_layer(), batch()
    before = layer(x)
    layer.merge()
    assert layer.merged
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("edited", [False, True])
def test_unmerging_restores_the_weight_bit_for_bit(dtype, edited):
    layer = make_layer(40, 30, dtype=dtype)
    before = layer.base.weight.clone()
    layer.merge()
    assert not torch.equal(layer.base.weight, before)
    if edited:
        layer.lora_A.data.add_(1)
        layer.lora_B.data.fill_(float("nan"))
    layer.unmerge()
    assert not layer.merged
    assert torch.equal(layer.base.weight, before)


def test_merging_keeps_the_weight_in_place_and_frozen():
    layer = make_layer()
    weight, address = layer.base.weight, layer.base.weight.data_ptr()
    layer.merge()
    assert layer.base.weight is weight
    assert (weight.data_ptr(), weight.requires_grad) == (address, False)


def test_what_merging_cannot_do_is_refused():
    layer = make_layer()
    with pytest.raises(AdapterError, match="not merged: there is nothing to unmerge"):
        layer.unmerge()
    layer.merge()
    weight = layer.base.weight.clone()
    with pytest.raises(AdapterError, match="merged already: unmerge it first"):
        layer.merge()
    assert torch.equal(layer.base.weight, weight)


@pytest.mark.parametrize("name", ["lora_A", "lora_B"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_adapter_is_refused_before_anything_changes(name, value):
    layer = make_layer()
    before = layer.base.weight.clone()
    getattr(layer, name).data[1, 2] = value
    with pytest.raises(AdapterError, match="NaN or an infinity"):
        layer.merge()
    assert not layer.merged
    assert torch.equal(layer.base.weight, before)


def test_a_merged_layer_is_neither_saved_nor_loaded():
    layer = make_layer()
    state = {name: tensor + 1 for name, tensor in layer.state_dict().items()}
    layer.merge()
    before = [parameter.clone() for parameter in layer.parameters()]
    with pytest.raises(AdapterError, match=r"merged: unmerge_lora\(model\) before saving"):
        layer.state_dict()
    with pytest.raises(AdapterError, match=r"merged: unmerge_lora\(model\) before loading"):
        layer.load_state_dict(state)
    assert all(torch.equal(*pair) for pair in zip(before, layer.parameters(), strict=True))


def test_a_state_dict_carries_everything_that_a_layer_computes_with():
    layer, other = make_layer(), make_layer(seed=1)
    other.load_state_dict(layer.state_dict())
    assert set(layer.state_dict()) == {"base.weight", "base.bias", "lora_A", "lora_B"}
    assert torch.equal(other(batch()), layer(batch()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("merged", [False, True])
def test_a_copy_computes_the_same_and_shares_nothing(copied, merged):
    layer, x = make_layer(), batch()
    original = layer.base.weight.clone()
    if merged:
        layer.merge()
    other = copied(layer)
    assert torch.equal(other(x), layer(x))
    expected = layer(x)
    if merged:
        other.unmerge()
        assert torch.equal(other.base.weight, original)
    other.lora_B.data.add_(1)
    other.base.weight.data.add_(1)
    assert torch.equal(layer(x), expected)


def test_the_same_seed_draws_the_same_a():
    assert torch.equal(make_layer(seed=4).lora_A, make_layer(seed=4).lora_A)
    assert not torch.equal(make_layer(seed=4).lora_A, make_layer(seed=5).lora_A)


def test_a_layer_without_storage_gets_an_adapter_without_storage():
    layer = LoRALinear(nn.Linear(7, 5, device="meta"), 3, 8.0)
    assert layer.lora_A.is_meta
    assert layer(torch.empty(2, 7, device="meta")).shape == (2, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"rank must be 1\.\.5 for a 5x7 layer, got 0"),
        ({"rank": 6}, r"rank must be 1\.\.5 for a 5x7 layer, got 6"),
        ({"rank": 2.0}, r"rank must be 1\.\.5 for a 5x7 layer, got 2\.0"),
        ({"rank": True}, r"rank must be 1\.\.5 for a 5x7 layer, got True"),
        ({"alpha": 0.0}, r"alpha must be a finite number above 0, got 0\.0"),
        ({"alpha": float("nan")}, r"alpha must be a finite number above 0, got nan"),
        ({"alpha": 10**400}, r"alpha must be a finite number above 0, got 1000"),
        ({"alpha": "8"}, r"alpha must be a finite number above 0, got '8'"),
        ({"alpha": float("inf")}, r"alpha must be a finite number above 0, got inf"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0"),
        ({"dropout": float("nan")}, r"dropout must be at least 0 and below 1, got nan"),
        ({"init": "zeros"}, r"init must be one of kaiming, gaussian, orthogonal, got 'zeros'"),
        ({"init": "pissa"}, r"got 'pissa'; pissa and olora are for DecomposedLoRALinear"),
    ],
)
def test_a_setting_outside_its_range_is_refused_and_leaves_the_base_trainable(settings, message):
    base = nn.Linear(7, 5)
    with pytest.raises(ValueError, match=message):
        LoRALinear(base, **{"rank": 2, "alpha": 8.0, **settings})
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_only_a_linear_layer_is_adapted():
    with pytest.raises(TypeError, match=r"base must be an nn\.Linear, got Conv1d"):
        LoRALinear(nn.Conv1d(7, 5, 1), 2, 8.0)


def test_printing_a_layer_shows_its_settings():
    assert "rank=3, alpha=8.0, scaling=2.667, merged=False" in repr(make_layer())
