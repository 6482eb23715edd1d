"""Weighted sums of adapters: exact, or cut with the error told."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lorabook import AdapterError, LoRAConfig, active_adapter, adapter_names, add_lora, combine_adapters
from lorabook.adapters.site import layers_named

from .moving import move


@given(weights=st.tuples(st.floats(-2, 2), st.floats(-2, 2)), seed=st.integers(0, 1000))
def test_a_combination_is_the_exact_weighted_sum(weights, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(9, 6), nn.Linear(6, 7)).double()
    add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("0",)), "a")
    move(model, seed)
    add_lora(model, LoRAConfig(rank=4, alpha=3.0, targets=("0", "1"), rank_stabilized=True, init="pissa"), "b")
    move(model, seed + 1)
    errors = combine_adapters(model, dict(zip("ab", weights, strict=True)), "c")
    assert errors == {"0": 0.0, "1": 0.0}
    parts = {name: layers_named(model, name) for name in "abc"}
    expected = weights[0] * parts["a"]["0"].delta_weight() + weights[1] * parts["b"]["0"].delta_weight()
    torch.testing.assert_close(parts["c"]["0"].delta_weight(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(parts["c"]["1"].delta_weight(), weights[1] * parts["b"]["1"].delta_weight(), atol=1e-6, rtol=1e-6)
    assert active_adapter(model) == "c"


def test_a_cut_combination_is_the_nearest_of_its_rank_and_says_how_far_it_is():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(9, 6))
    for seed, name in enumerate("ab"):
        add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("0",)), name)
        move(model, seed)
    exact = sum(layers_named(model, name)["0"].delta_weight().detach().double() for name in "ab")
    errors = combine_adapters(model, {"a": 1.0, "b": 1.0}, "c", rank=3)
    layer = layers_named(model, "c")["0"]
    singular_values = torch.linalg.svdvals(exact)
    assert layer.rank == 3
    assert errors["0"] == pytest.approx((singular_values[3:].norm() / singular_values.norm()).item(), rel=1e-5)
    torch.testing.assert_close((layer.delta_weight() - exact).norm() / exact.norm(), torch.tensor(errors["0"]).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("rank", [None, 1])
def test_an_adapter_with_a_nan_is_not_summed(rank):
    model = nn.Sequential(nn.Linear(9, 6))
    add_lora(model, LoRAConfig(rank=2, targets=("0",)), "a")
    layers_named(model, "a")["0"].lora_A.data[0, 0] = float("nan")
    with pytest.raises(AdapterError, match="sum of '0' holds a NaN"):
        combine_adapters(model, {"a": 1.0}, "b", rank=rank)
    assert adapter_names(model) == ("a",)


@pytest.mark.parametrize("settings", [{"dora": True}, {"bias": "lora_only"}, {"train_modules": ("1",)}])
def test_what_is_no_low_rank_update_is_not_summed(settings):
    model = nn.Sequential(nn.Linear(9, 6), nn.Linear(6, 7))
    add_lora(model, LoRAConfig(rank=2, targets=("0",), **settings), "a")
    with pytest.raises(AdapterError, match="no plain LoRA update"):
        combine_adapters(model, {"a": 1.0}, "b")
    assert adapter_names(model) == ("a",)
