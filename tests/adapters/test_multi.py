"""Several adapters over one backbone: use, disable, rename, delete, combine, merge."""

import contextlib
import copy
import pickle

import pytest
import torch
from torch import nn

from lorabook import (
    AdapterError,
    LoRAConfig,
    active_adapter,
    adapter_disabled,
    adapter_names,
    add_lora,
    combine_adapters,
    delete_adapter,
    lora_parameters,
    merge_lora,
    remove_lora,
    rename_adapter,
    unmerge_lora,
    use_adapter,
)
from lorabook.adapters.site import layers_named

from .moving import move

CONFIGS = {
    "default": LoRAConfig(rank=2, alpha=8.0, targets=("q_proj",)),
    "sql": LoRAConfig(rank=3, alpha=5.0, targets=("q_proj", "proj"), rank_stabilized=True),
    "text": LoRAConfig(rank=1, alpha=4.0, targets=("blocks.1.proj", "embedding")),
}


def adapt(model, names=("default", "sql", "text"), **changes):
    for seed, name in enumerate(names):
        add_lora(model, CONFIGS[name], name)
        move(model, seed)
    return model


def alone(make_model, name, seed):
    model = make_model()
    add_lora(model, CONFIGS[name])
    move(model, seed)
    return model


def test_each_adapter_computes_what_it_computes_alone(make_model, ids):
    adapt(model := make_model())
    for seed, name in enumerate(CONFIGS):
        # The random factors differ between the two models, so carry them over by name.
        single = alone(make_model, name, seed)
        for path, layer in layers_named(single, "default").items():
            other = layers_named(model, name)[path]
            layer.lora_A.data, layer.lora_B.data = other.lora_A.data.clone(), other.lora_B.data.clone()
        use_adapter(model, name)
        assert active_adapter(model) == name
        assert torch.equal(model(ids), single(ids))


def test_only_the_adapter_in_use_trains(make_model):
    adapt(model := make_model())
    for name in CONFIGS:
        use_adapter(model, name)
        trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
        assert trained == set(lora_parameters(model, name)) == set(lora_parameters(model))


def test_the_base_is_held_once_and_each_adapter_under_its_name(make_model):
    adapt(model := make_model())
    keys = model.state_dict().keys()
    assert {"blocks.1.proj.base.weight", "blocks.1.proj.layers.sql.lora_A", "blocks.1.proj.layers.text.lora_B"} <= keys
    assert sum("blocks.1.proj" in key and "base" in key for key in keys) == 2
    plain = sum(parameter.numel() for parameter in make_model().parameters())
    own = sum(parameter.numel() for name in CONFIGS for parameter in lora_parameters(model, name))
    assert sum(parameter.numel() for parameter in model.parameters()) == plain + own


def test_a_state_dict_of_several_adapters_comes_back_whichever_is_in_use(make_model, ids):
    adapt(model := make_model())
    adapt(other := make_model(1))
    use_adapter(other, "sql")
    other.load_state_dict(model.state_dict())
    for name in CONFIGS:
        use_adapter(model, name)
        use_adapter(other, name)
        assert torch.equal(model(ids), other(ids))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_copy_switches_on_its_own(copied, make_model, ids):
    adapt(model := make_model())
    expected = model(ids)
    other = copied(model)
    assert torch.equal(other(ids), expected)
    use_adapter(other, "sql")
    move(other, 7)
    assert torch.equal(model(ids), expected)
    assert not torch.equal(other(ids), expected)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}


def test_disabling_gives_the_backbone_also_after_an_exception(make_model, ids):
    adapt(model := make_model())
    expected, bare = model(ids), make_model()(ids)
    with contextlib.suppress(KeyError), adapter_disabled(model):
        assert torch.equal(model(ids), bare)
        raise KeyError
    assert torch.equal(model(ids), expected)


def test_a_gradient_step_survives_a_look_at_the_backbone_in_between(make_model, ids):
    model = make_model()
    add_lora(model, LoRAConfig(rank=2, targets=("proj",), bias="all"))
    loss = model(ids).square().sum()
    with adapter_disabled(model), torch.no_grad():
        model(ids)
    loss.backward()
    assert all(parameter.grad is not None for parameter in lora_parameters(model))


def test_deleting_leaves_the_others_and_then_the_plain_model(make_model, ids):
    adapt(model := make_model())
    use_adapter(model, "sql")
    expected = model(ids)
    delete_adapter(model, "text")
    assert torch.equal(model(ids), expected)
    delete_adapter(model, "sql")
    assert active_adapter(model) is None
    assert torch.equal(model(ids), make_model()(ids))
    delete_adapter(model, "default")
    assert repr(model) == repr(make_model())


def test_deleting_a_bare_adapter_leaves_the_plain_model(make_model):
    adapt(model := make_model(), ["default"])
    delete_adapter(model, "default")
    assert repr(model) == repr(make_model())


@pytest.mark.parametrize("names", [("default",), ("default", "sql")])
def test_renaming_changes_the_name_alone(names, make_model, ids):
    adapt(model := make_model(), names)
    use_adapter(model, "default")
    expected = model(ids)
    rename_adapter(model, "default", "first")
    assert adapter_names(model) == ("first", *names[1:])
    assert active_adapter(model) == "first"
    assert torch.equal(model(ids), expected)


@pytest.mark.parametrize("name", ["", "a.b", "../x", "a/b", "keys", "training", "_modules", "é", "a\n", "x" * 101, 3, None])
def test_what_is_no_name_is_refused(name, make_model):
    model = make_model()
    with pytest.raises(AdapterError, match="a name is"):
        add_lora(model, CONFIGS["sql"], name)
    assert repr(model) == repr(make_model())


@pytest.mark.parametrize(
    "action",
    [
        lambda model: use_adapter(model, "none"),
        lambda model: delete_adapter(model, "none"),
        lambda model: rename_adapter(model, "none", "new"),
        lambda model: rename_adapter(model, "sql", "text"),
        lambda model: add_lora(model, CONFIGS["sql"], "sql"),
        lambda model: combine_adapters(model, {"sql": 1.0, "none": 1.0}, "new"),
        lambda model: combine_adapters(model, {"sql": 1.0}, "text"),
        lambda model: combine_adapters(model, {"sql": float("nan")}, "new"),
        lambda model: combine_adapters(model, {}, "new"),
        lambda model: combine_adapters(model, {"sql": 1.0}, "new", rank=0),
        lambda model: combine_adapters(model, {"sql": 1.0}, "new", rank=1.5),
        lambda model: combine_adapters(model, {"sql": "1"}, "new"),
        lambda model: combine_adapters(model, {"sql": 1e39}, "new"),
    ],
)
def test_what_cannot_be_done_leaves_the_model_as_it_was(action, make_model, ids):
    adapt(model := make_model())
    before, expected = repr(model), model(ids)
    trains = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(AdapterError):
        action(model)
    assert repr(model) == before
    assert torch.equal(model(ids), expected)
    assert trains == [parameter.requires_grad for parameter in model.parameters()]


@pytest.mark.parametrize(
    "action",
    [
        lambda model: use_adapter(model, "sql"),
        lambda model: delete_adapter(model, "sql"),
        lambda model: rename_adapter(model, "sql", "new"),
        lambda model: add_lora(model, CONFIGS["sql"], "new"),
        lambda model: combine_adapters(model, {"sql": 1.0}, "new"),
        lambda model: model.state_dict(),
        lambda model: model.load_state_dict({}),
        merge_lora,
    ],
)
def test_a_merged_model_refuses_what_would_go_wrong(action, make_model, ids):
    adapt(model := make_model())
    use_adapter(model, "sql")
    merge_lora(model)
    expected = model(ids)
    with pytest.raises(AdapterError, match="unmerge_lora"):
        action(model)
    assert torch.equal(model(ids), expected)
    unmerge_lora(model)
    use_adapter(model, "text")


def test_merging_merges_the_adapter_in_use_and_unmerging_restores_every_bit(make_model, ids):
    adapt(model := make_model())
    use_adapter(model, "sql")
    expected = model(ids)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merge_lora(model)
    torch.testing.assert_close(model(ids), expected)
    unmerge_lora(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases_and_modules_belong_to_their_adapter(bias, make_model, ids):
    model = make_model()
    add_lora(model, LoRAConfig(rank=2, targets=("q_proj",), bias=bias, train_modules=("blocks.0.norm",)), "sql")
    move(model)
    changed = model(ids)
    with adapter_disabled(model):
        assert torch.equal(model(ids), make_model()(ids))
    add_lora(model, CONFIGS["text"], "text")
    assert torch.equal(model(ids), make_model()(ids))
    use_adapter(model, "sql")
    assert torch.equal(model(ids), changed)
    kept = copy.deepcopy(model)
    remove_lora(model)
    assert repr(model) == repr(make_model())
    assert torch.equal(model(ids), make_model()(ids))
    remove_lora(kept, merge=True)
    assert repr(kept) == repr(make_model())
    torch.testing.assert_close(kept(ids), changed)


def test_a_layer_in_two_places_is_adapted_once_and_stays_shared(ids):
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    for name in ("default", "sql"):
        assert add_lora(model, LoRAConfig(rank=2, targets=("0", "2")), name) == ("0", "2")
        assert model[0] is model[2]
    delete_adapter(model, "default")
    assert len(list(lora_parameters(model, "sql"))) == 2
    delete_adapter(model, "sql")
    assert model[0] is model[2] is shared
