"""One weight in several hands: adapting one never changes another."""

import copy
import re

import pytest
import torch
from torch import nn

from lorabook import AdapterError, LoRAConfig, add_lora, merge_lora, quantize_base, remove_lora, unmerge_lora

from .moving import adapt


def twice():
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer)


@pytest.mark.parametrize("name", ["default", "sql"])
def test_a_layer_in_two_places_adapted_in_one_is_not_merged(name):
    adapt(model := twice(), name, targets=(re.compile("0"),))
    x = torch.randn(3, 6)
    before = model(x)
    with pytest.raises(AdapterError, match=r"0\.base and 2 share one weight.*copy\.deepcopy"):
        merge_lora(model)
    assert torch.equal(model(x), before)
    model[2] = copy.deepcopy(model[2])  # what the message says to do
    merge_lora(model)
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("name", ["default", "sql"])
def test_a_layer_in_two_places_adapted_in_both_is_merged_once(name):
    adapt(model := twice(), name, targets=("0", "2"))
    x = torch.randn(3, 6)
    before = model(x)
    merge_lora(model)
    torch.testing.assert_close(model(x), before)
    unmerge_lora(model)
    assert torch.equal(model(x), before)


def parts_of_one(first, second):
    """Two layers whose weights are rows of one matrix."""
    whole = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    model = nn.ModuleDict({"a": nn.Linear(6, first.stop - first.start), "b": nn.Linear(6, second.stop - second.start)})
    model["a"].weight, model["b"].weight = nn.Parameter(whole[first]), nn.Parameter(whole[second])
    return model


@pytest.mark.parametrize(("first", "second"), [(slice(0, 12), slice(4, 8)), (slice(0, 5), slice(4, 12))])
@pytest.mark.parametrize("target", ["a", "b"])
def test_weights_that_overlap_in_memory_are_not_merged(first, second, target):
    adapt(model := parts_of_one(first, second), targets=(target,))
    with pytest.raises(AdapterError, match="share one weight"):
        merge_lora(model)
    with pytest.raises(AdapterError, match="no linear layer with a weight of its own"):
        add_lora(parts_of_one(first, second), LoRAConfig(rank=2, targets="all-linear"))


def test_weights_that_lie_side_by_side_are_merged():
    adapt(model := parts_of_one(slice(0, 5), slice(5, 12)), targets=("a",))
    before = model["b"].weight.clone()
    merge_lora(model)
    assert torch.equal(model["b"].weight, before)
    assert add_lora(parts_of_one(slice(0, 5), slice(5, 12)), LoRAConfig(rank=2, targets="all-linear")) == ("a", "b")


def test_a_bias_that_is_kept_does_not_reach_the_layer_that_shares_the_old_one():
    model = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(5, 4)})
    model["b"].bias = model["a"].bias
    before = model["b"].bias.clone()
    adapt(model, targets=("a",), bias="lora_only")
    x = torch.randn(3, 6)
    expected = model["a"](x)
    remove_lora(model, merge=True)
    torch.testing.assert_close(model["a"](x), expected)
    assert torch.equal(model["b"].bias, before)


def test_a_layer_in_two_places_is_quantized_once():
    model = twice()
    assert quantize_base(model) == ("0", "2")
    assert model[0] is model[2]
