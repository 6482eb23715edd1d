"""Counting, against sums over distinct tensors by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lorabook import LoRAConfig, add_lora, count_parameters
from lorabook.measure.counting import ParameterCount

widths = st.integers(1, 9)


@given(widths, widths, st.booleans(), st.booleans())
def test_a_linear_layer_has_its_matrix_and_its_bias(d, k, bias, trainable):
    total = d * k + d * bias
    counted = count_parameters(nn.Linear(k, d, bias=bias).requires_grad_(trainable))
    assert counted == ParameterCount(total * trainable, total)
    assert counted.share == trainable


@given(st.integers(2, 9), widths.filter(lambda width: width > 1))
def test_a_shared_weight_counts_once(d, k):
    model = nn.ModuleDict({"embedding": nn.Embedding(d, k), "head": nn.Linear(k, d, bias=False)})
    assert count_parameters(model).total == 2 * d * k
    model["head"].weight = model["embedding"].weight
    assert count_parameters(model) == ParameterCount(d * k, d * k)


def test_a_shared_module_counts_once():
    layer = nn.Linear(3, 5)
    assert count_parameters(nn.ModuleList([layer, nn.Tanh(), layer])).total == 3 * 5 + 5


@given(st.integers(4, 9), st.integers(4, 9), st.integers(1, 4))
def test_an_adapter_adds_r_times_the_sum_of_the_sides(d, k, rank):
    model = nn.Sequential(nn.Linear(k, d), nn.Linear(d, k + 1))
    before = count_parameters(model).total
    add_lora(model, LoRAConfig(rank=rank, alpha=8.0, targets=("0",)))
    assert count_parameters(model) == ParameterCount(rank * (d + k), before + rank * (d + k))


def test_a_model_without_parameters_has_no_share():
    assert count_parameters(nn.Tanh()) == ParameterCount(0, 0)
    assert count_parameters(nn.Tanh()).share == 0


def test_a_count_reads_as_a_sentence():
    model = nn.Sequential(nn.Linear(100, 20, bias=False), nn.Linear(20, 25, bias=False))
    model[0].requires_grad_(False)
    assert str(count_parameters(model)) == "500 of 2,500 parameters train (20.00%)"
    assert count_parameters(model).total == sum(torch.numel(p) for p in model.parameters())
