"""Merging a whole model: all layers or none, exactly undone, and never into a weight that others use."""

import numpy as np
import pytest
import torch
from torch import nn

from lorabook import (
    AdapterError,
    LoRAConfig,
    LoRALinear,
    adapter_disabled,
    add_lora,
    lora_parameters,
    merge_lora,
    remove_lora,
    unmerge_lora,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def adapt(model, targets=("q_proj", "proj")):
    generator = torch.Generator().manual_seed(3)
    paths = add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=targets), generator=generator)
    for parameter in lora_parameters(model):
        parameter.data.normal_(generator=generator)
    return paths


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def layers(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, LoRALinear)}


def test_a_merged_model_computes_the_same(model, ids):
    adapt(model)
    before = model(ids)
    merge_lora(model)
    assert all(layer.merged for layer in layers(model).values())
    torch.testing.assert_close(model(ids), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edited", [False, True])
def test_unmerging_restores_every_weight_bit_for_bit(model, dtype, edited):
    adapt(model.to(dtype))
    before = weights(model)
    merge_lora(model)
    assert not same(weights(model), before)
    if edited:
        for parameter in lora_parameters(model):
            parameter.data.mul_(-2)
    unmerge_lora(model)
    after = weights(model)
    assert all(torch.equal(after[name], before[name]) for name in before if "lora_" not in name)
    assert not any(layer.merged for layer in layers(model).values())


def test_merging_twice_and_unmerging_twice_are_refused(model):
    adapt(model)
    with pytest.raises(AdapterError, match=r"'blocks\.0\.q_proj' is not merged: there is nothing to unmerge"):
        unmerge_lora(model)
    merge_lora(model)
    before = weights(model)
    with pytest.raises(AdapterError, match=r"'blocks\.0\.q_proj' is merged already: unmerge_lora\(model\) first"):
        merge_lora(model)
    assert same(weights(model), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_number_in_the_last_layer_keeps_the_first_from_merging(model, value):
    paths = adapt(model)
    layers(model)[paths[-1]].lora_B.data[0, 0] = value
    before = weights(model)
    with pytest.raises(AdapterError, match=r"'blocks\.1\.proj' holds a NaN or an infinity"):
        merge_lora(model)
    assert not any(layer.merged for layer in layers(model).values())
    assert all(torch.equal(weights(model)[name], before[name]) for name in before if "lora_" not in name)


def test_a_mix_of_merged_and_unmerged_layers_is_neither_merged_nor_unmerged(model):
    paths = adapt(model)
    layers(model)[paths[1]].merge()
    before = weights(model)
    with pytest.raises(AdapterError, match=r"'blocks\.0\.proj' is merged already"):
        merge_lora(model)
    with pytest.raises(AdapterError, match=r"'blocks\.0\.q_proj' is not merged"):
        unmerge_lora(model)
    with pytest.raises(AdapterError, match=r"'blocks\.0\.proj' is merged already"):
        remove_lora(model, merge=True)
    assert same(weights(model), before)


@pytest.mark.parametrize("operation", [merge_lora, lambda model: remove_lora(model, merge=True)])
def test_a_weight_that_the_embedding_shares_is_not_merged(model, operation):
    adapt(model, ("head", "proj"))
    before = weights(model)
    with pytest.raises(AdapterError, match=r"embedding and head\.base share one weight.*untie them first"):
        operation(model)
    assert same(weights(model), before)
    assert isinstance(model.head, LoRALinear)


def test_a_layer_in_two_places_is_merged_and_unmerged_once():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    adapt(model, ("0", "2"))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    before, weight = model(x), shared.weight.clone()
    expected = weight.double().numpy() + model[0].delta_weight().detach().double().numpy()
    merge_lora(model)
    np.testing.assert_allclose(shared.weight, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    unmerge_lora(model)
    assert torch.equal(shared.weight, weight)
    remove_lora(model)
    assert model[0] is model[2] is shared


@pytest.mark.parametrize("merged_before", [False, True])
def test_removing_without_merging_gives_the_backbone_back(make_model, model, ids, merged_before):
    adapt(model)
    if merged_before:
        merge_lora(model)
    remove_lora(model)
    original = make_model()
    assert str(model) == str(original)
    assert same(weights(model), weights(original))
    assert torch.equal(model(ids), original(ids))


@pytest.mark.parametrize("merged_before", [False, True])
def test_removing_with_merging_keeps_the_update_for_good(make_model, model, ids, merged_before):
    adapt(model)
    before = model(ids)
    if merged_before:
        merge_lora(model)
    remove_lora(model, merge=True)
    assert str(model) == str(make_model())
    torch.testing.assert_close(model(ids), before, rtol=1e-5, atol=1e-5)
    assert set(model.state_dict()) == set(make_model().state_dict())


def test_a_removed_adapter_leaves_the_model_frozen_and_ready_for_another(model):
    adapt(model)
    remove_lora(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert adapt(model, ("q_proj",)) == ("blocks.0.q_proj", "blocks.1.q_proj")


def test_one_merged_layer_keeps_the_model_from_being_saved(model):
    paths = adapt(model)
    layers(model)[paths[-1]].merge()
    with pytest.raises(AdapterError, match=r"'blocks\.1\.proj' is merged: unmerge_lora\(model\) before saving, or remove_lora"):
        model.state_dict()


def test_a_merged_model_is_not_loaded(model):
    adapt(model)
    state = model.state_dict()
    merge_lora(model)
    with pytest.raises(AdapterError, match=r"'blocks\.0\.q_proj' is merged: unmerge_lora\(model\) before loading"):
        model.load_state_dict(state)


@pytest.mark.parametrize("operation", [merge_lora, unmerge_lora, remove_lora])
def test_a_model_without_an_adapter_is_refused_with_the_remedy(model, operation):
    with pytest.raises(AdapterError, match=r"no LoRA: add_lora\(model, LoRAConfig\(\.\.\.\)\) first"):
        operation(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_around_a_merge_changes_nothing(dtype):
    plain = LoRALinear(nn.Linear(7, 5).to(dtype), rank=3, alpha=4.0)
    nn.init.normal_(plain.lora_B)
    inside = LoRALinear(nn.Linear(7, 5).to(dtype), rank=3, alpha=4.0)
    inside.load_state_dict(plain.state_dict())
    plain.merge()
    with torch.autocast("cpu", torch.bfloat16):
        inside.merge()
    assert torch.equal(plain.base.weight, inside.base.weight)


def test_an_overflow_is_refused_and_takes_back_the_layers_already_merged():
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)).half()
    adapt(model, targets=("0", "1"))
    nn.init.constant_(model[1].lora_A, 1.0)
    nn.init.constant_(model[1].lora_B, 1e6)
    before = weights(model)
    with pytest.raises(AdapterError, match="does not fit"):
        merge_lora(model)
    assert same(before, weights(model))
    assert not model[0].merged


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_whatever_stops_a_merge_halfway_leaves_no_layer_merged(error, monkeypatch):
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    adapt(model, targets=("0", "1"))
    before = weights(model)

    def stop():
        raise error("stopped")

    monkeypatch.setattr(model[1], "merge", stop)
    with pytest.raises(error):
        merge_lora(model)
    assert not model[0].merged
    assert same(before, weights(model))


@pytest.mark.parametrize("number", [float("nan"), 1e6])
@pytest.mark.parametrize("settings", [{"bias": "lora_only"}, {"train_modules": ("1",)}])
def test_a_trained_bias_or_module_that_is_not_finite_in_the_models_type_is_not_kept(number, settings):
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)).half()
    add_lora(model, LoRAConfig(rank=2, targets=("0",), **settings))
    list(lora_parameters(model))[-1].data.fill_(number)
    before = weights(model)
    with pytest.raises(AdapterError, match=r"a NaN, an infinity or a number too large for torch\.float16: it is not kept"):
        remove_lora(model, merge=True)
    assert before.keys() == weights(model).keys()
    assert not any(layer.merged for layer in layers(model).values())
    remove_lora(model)


def test_a_disabled_adapter_is_not_merged():
    model = nn.Sequential(nn.Linear(7, 5))
    adapt(model, targets=("0",))
    with adapter_disabled(model), pytest.raises(AdapterError, match="disabled"):
        merge_lora(model)
    assert not model[0].merged


def test_a_model_that_is_itself_adapted_cannot_be_removed():
    with pytest.raises(AdapterError, match=r"model\.base"):
        remove_lora(LoRALinear(nn.Linear(7, 5), rank=3, alpha=4.0))


def test_a_shared_bias_does_not_hinder_a_merge():
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 5))
    model[1].bias = model[0].bias
    adapt(model, targets=("0",))
    merge_lora(model)
    assert model[0].merged
