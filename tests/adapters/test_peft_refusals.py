"""What is not taken from an adapter's directory: whatever disagrees with itself, with the model, or with what is safe."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorabook import (
    AdapterError,
    adapter_names,
    load_adapter,
    lora_parameters,
    merge_lora,
    remove_lora,
    save_adapter,
)

from .moving import CONFIG, TENSORS, adapt


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq", {"a": 1}])
def test_factors_meant_for_a_changed_base_are_refused(init, make_model, tmp_path):
    edited(make_model, tmp_path, init_lora_weights=init)
    with pytest.raises(AdapterError, match="meant for a changed base: have PEFT convert them"):
        load_adapter(make_model(), tmp_path)


def edited(make_model, folder, **changes):
    """A sound adapter with some settings changed, or left out where the change is ``...``."""
    adapt(model := make_model())
    save_adapter(model, folder)
    config = {**json.loads((folder / CONFIG).read_text()), **changes}
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type LORA"),
        ({"lora_alpha": ...}, "lacks 'lora_alpha'"),
        ({"r": ...}, "lacks 'r'"),
        ({"r": 3}, "at rank 3, which its config says, 'blocks.0.q_proj' needs tensors of shapes"),
        ({"r": 10**6}, "rank 1000000 is absurd for 'blocks.0.q_proj', a 4x6 layer"),
        ({"r": True}, "r must be an integer from 1, got True"),
        ({"lora_alpha": "8"}, "lora_alpha must be a finite number above 0, got '8'"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a finite number above 0"),
        ({"rank_pattern": {"q_proj": 1}}, "at rank 1, which its config says, 'blocks.0.q_proj'"),
        ({"rank_pattern": {"(": 1}}, "is not a regular expression"),
        ({"target_modules": "(a+)+$"}, "could take too long: name the layers instead"),
        ({"target_modules": ["q_proj"]}, "has tensors for 'blocks.*proj', which its config does not target"),
        ({"target_modules": ["q_proj", "proj", "head"]}, "lacks the tensors for 'head', which its config targets"),
        ({"use_dora": True}, "needs tensors of shapes .*magnitude"),
        ({"bias": "all"}, r"must hold a tensor of shape \(4,\) for 'blocks.0.q_proj.bias', got none"),
        ({"modules_to_save": ["norm"]}, r"must hold a tensor of shape \(6,\) for 'blocks.0.norm.weight', got none"),
        ({"lora_bias": True}, "lora_bias=True is not implemented here"),
        ({"layers_to_transform": [1]}, r"layers_to_transform=\[1\] is not implemented here"),
        ({"from_the_future": 1}, "from_the_future=1 is not implemented here"),
    ],
)
def test_a_config_that_is_wrong_or_disagrees_with_its_tensors_is_refused(changes, message, make_model, tmp_path):
    edited(make_model, tmp_path, **changes)
    model = make_model()
    with pytest.raises(AdapterError, match=message):
        load_adapter(model, tmp_path)
    assert repr(model) == repr(make_model())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "changes", [{"target_modules": None}, {"from_the_future": None, "peft_version": "9.0"}, {"target_modules": r".*\.(q_proj|proj)"}]
)
def test_a_config_that_says_the_same_otherwise_is_read(changes, make_model, ids, tmp_path):
    edited(make_model, tmp_path, **changes)
    adapt(expected := make_model())
    load_adapter(model := make_model(), tmp_path)
    assert len(list(lora_parameters(model))) == len(list(lora_parameters(expected)))


def rewrite(folder, change):
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})


KEY = "base_model.model.blocks.0.proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), "'blocks.0.proj' needs tensors of shapes"),
        (lambda t: t.update({"base_model.model.head.bias": torch.ones(9)}), "unexpected tensor 'head.bias'"),
        (lambda t: t.update({"other": torch.ones(9)}), "unexpected tensor 'other'"),
        (lambda t: t.update({KEY.replace("blocks.0", "blocks.7"): t[KEY].clone()}), "which this model does not have"),
        (lambda t: t.update({KEY: t[KEY].T.contiguous()}), r"got .*'A': \(4, 2\)"),
        (lambda t: t.update({KEY: t[KEY].int()}), "is of type I32"),
        (lambda t: t.update({KEY: t[KEY] * float("nan")}), "holds a NaN"),
        (lambda t: t.update({KEY: t[KEY].double() * 1e300}), "too large for float32"),
    ],
)
def test_tensors_that_are_not_as_expected_are_refused(change, message, make_model, tmp_path):
    adapt(model := make_model())
    save_adapter(model, tmp_path)
    rewrite(tmp_path, change)
    other = make_model()
    with pytest.raises(AdapterError, match=message):
        load_adapter(other, tmp_path)
    assert repr(other) == repr(make_model())


def test_another_base_of_the_same_shapes_is_refused_unless_that_is_meant(make_model, ids, tmp_path):
    adapt(model := make_model())
    save_adapter(model, tmp_path)
    other = make_model(1)
    with pytest.raises(AdapterError, match="trained on another base"):
        load_adapter(other, tmp_path)
    assert adapter_names(other) == ()
    load_adapter(other, tmp_path, check_base=False)
    load_adapter(rounded := make_model().bfloat16(), tmp_path, check_base=False)
    assert torch.equal(rounded.blocks[0].proj.lora_A, model.blocks[0].proj.lora_A)


def test_what_is_merged_or_not_finite_or_unknown_is_not_saved(make_model, tmp_path):
    adapt(model := make_model())
    with pytest.raises(AdapterError, match="no adapter is called 'sql'; there are: default"):
        save_adapter(model, tmp_path / "x", "sql")
    merge_lora(model)
    for action in (save_adapter, lambda model, folder: load_adapter(model, folder, "other")):
        with pytest.raises(AdapterError, match="unmerge_lora"):
            action(model, tmp_path / "x")
    adapt(model := make_model())
    model.blocks[1].proj.lora_B.data[0, 0] = float("inf")
    with pytest.raises(AdapterError, match="holds a NaN or an infinity"):
        save_adapter(model, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_taken_name_is_refused(make_model, tmp_path):
    adapt(model := make_model())
    save_adapter(model, tmp_path)
    before = copy.deepcopy(model)
    with pytest.raises(AdapterError, match="take a name other than 'default'"):
        load_adapter(model, tmp_path)
    assert repr(model) == repr(before)


def test_a_model_that_is_one_layer_is_refused_before_it_changes(tmp_path):
    save_adapter(adapt(nn.Sequential(nn.Linear(6, 4)), targets=("0",)), tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    save_file({key.replace(".model.0", ".model."): value for key, value in tensors.items()}, tmp_path / TENSORS)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "target_modules": None}))
    model = nn.Linear(6, 4)
    with pytest.raises(AdapterError, match="the model is one layer"):
        load_adapter(model, tmp_path)
    assert model.weight.requires_grad


def test_a_model_without_numbers_does_not_swallow_an_adapter(make_model, tmp_path):
    save_adapter(adapt(make_model()), tmp_path)
    with torch.device("meta"):
        model = make_model.__globals__["TiedModel"]()
    with pytest.raises(AdapterError, match=r"has no numbers yet \(meta device\)"):
        load_adapter(model, tmp_path, check_base=False)
    assert adapter_names(model) == ()


def test_dora_tensors_that_cancel_a_row_of_the_weight_are_refused(tmp_path):
    model = adapt(nn.Sequential(nn.Linear(6, 4)), targets=("0",), rank=4, alpha=4.0, dora=True)
    with torch.no_grad():
        model[0].lora_A[0].copy_(model[0].base.weight[2])
        model[0].lora_B[2] = torch.tensor([-1.0, 0, 0, 0])
    save_adapter(model, tmp_path)
    remove_lora(model)
    with pytest.raises(AdapterError, match="'0': with these tensors a row of the weight is zero"):
        load_adapter(model, tmp_path)
    assert repr(model) == repr(nn.Sequential(nn.Linear(6, 4)))


def test_a_layer_in_two_places_needs_the_same_tensors_for_both(tmp_path):
    def network():
        torch.manual_seed(0)
        shared = nn.Linear(6, 6)
        return nn.Sequential(shared, nn.Tanh(), shared)

    model = adapt(network(), targets=("0", "2"))
    save_adapter(model, tmp_path)
    load_adapter(other := network(), tmp_path)
    x = torch.randn(3, 6)
    assert other[0] is other[2]
    assert torch.equal(model(x), other(x))
    rewrite(tmp_path, lambda t: t.update({"base_model.model.2.lora_A.weight": t["base_model.model.2.lora_A.weight"] + 1}))
    with pytest.raises(AdapterError, match="differs for '0' and '2', which are one layer in this model"):
        load_adapter(network(), tmp_path)
