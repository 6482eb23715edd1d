"""A layer whose factors start as a part of the weight, by itself; models, files and PEFT are tested elsewhere."""

import pytest
import torch
from torch import nn

from lorabook import DecomposedLoRALinear, LoRALinear


def make_layer(init, dtype=torch.float64):
    torch.manual_seed(0)
    return DecomposedLoRALinear(nn.Linear(7, 5, dtype=dtype), 2, 6.0, init=init)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_fresh_layer_changes_nothing_though_both_factors_are_there(init):
    layer, x = make_layer(init), torch.randn(3, 7, dtype=torch.float64)
    assert min(layer.lora_A.abs().max(), layer.lora_B.abs().max()) > 0.01
    torch.testing.assert_close(layer(x), layer.base(x), atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_it_computes_merges_and_differentiates_what_has_changed_since_the_start(init):
    layer, x = make_layer(init), torch.randn(3, 7, dtype=torch.float64)
    weight = layer.base.weight.detach().clone()
    with torch.no_grad():
        layer.lora_A.add_(torch.randn_like(layer.lora_A))
        layer.lora_B.add_(torch.randn_like(layer.lora_B))
    change = 3.0 * (layer.lora_B @ layer.lora_A - layer.start_B @ layer.start_A)
    expected = x @ (weight + change).T + layer.base.bias
    torch.testing.assert_close(layer.delta_weight(), change)
    torch.testing.assert_close(layer(x), expected)
    assert torch.autograd.gradcheck(
        lambda A, B: torch.func.functional_call(layer, {"lora_A": A, "lora_B": B}, (x,)), (layer.lora_A, layer.lora_B)
    )
    layer.merge()
    torch.testing.assert_close(layer(x), expected)
    layer.unmerge()
    assert torch.equal(layer.base.weight, weight)


def test_each_class_refuses_the_others_starts_and_names_it():
    with pytest.raises(ValueError, match="got 'kaiming'; LoRALinear has the others"):
        DecomposedLoRALinear(nn.Linear(7, 5), 2, 6.0, init="kaiming")
    with pytest.raises(ValueError, match="got 'olora'; pissa and olora are for DecomposedLoRALinear"):
        LoRALinear(nn.Linear(7, 5), 2, 6.0, init="olora")


def test_a_weight_that_is_not_finite_is_refused_and_stays_trainable():
    base = nn.Linear(7, 5)
    base.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="needs a finite weight"):
        DecomposedLoRALinear(base, 2, 6.0)
    assert base.weight.requires_grad
