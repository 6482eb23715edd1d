"""Adapters on a whole model: which layers get one, what trains, and that a refusal changes nothing."""

import copy
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from lorabook import AdapterError, LoRAConfig, LoRALinear, adapter_disabled, add_lora, lora_parameters, merge_lora

SETTINGS = {"rank": 2, "alpha": 8.0}
Q_PATHS = ("blocks.0.q_proj", "blocks.1.q_proj")
ALL_PATHS = ("blocks.0.q_proj", "blocks.0.proj", "blocks.1.q_proj", "blocks.1.proj")


def snapshot(model):
    """Everything that an error must leave alone."""
    modules = [(path, id(module), type(module), module.training) for path, module in model.named_modules(remove_duplicate=False)]
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return modules, flags, {name: tensor.tolist() for name, tensor in model.state_dict().items()}


def adapt(model, targets=("q_proj", "proj"), seed=0, fresh=False):
    generator = torch.Generator().manual_seed(seed)
    paths = add_lora(model, LoRAConfig(**SETTINGS, targets=targets), generator=generator)
    if not fresh:
        for parameter in lora_parameters(model):
            parameter.data.normal_(generator=generator)
    return paths


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("q_proj",), Q_PATHS),
        (("proj",), ("blocks.0.proj", "blocks.1.proj")),
        (("proj", "q_proj"), ALL_PATHS),
        (("blocks.1.q_proj",), ("blocks.1.q_proj",)),
        (("1.proj", "head"), ("blocks.1.proj", "head")),
        ("all-linear", ALL_PATHS),
    ],
)
def test_targets_match_whole_names_and_paths(model, targets, expected):
    assert adapt(model, targets) == expected
    assert tuple(path for path, module in model.named_modules() if isinstance(module, LoRALinear)) == expected


def test_fresh_adapters_leave_outputs_unchanged(model, ids):
    before = model(ids)
    adapt(model, fresh=True)
    assert torch.equal(model(ids), before)


def test_only_a_and_b_train(model):
    adapt(model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{path}.lora_{letter}" for path in ALL_PATHS for letter in "AB"}
    assert {id(parameter) for parameter in lora_parameters(model)} == {id(p) for p in model.parameters() if p.requires_grad}


def test_three_steps_of_sgd_move_every_a_and_b_and_nothing_else(model, ids):
    adapt(model, fresh=True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
        if step == 0:
            assert all(torch.equal(parameter, before[name]) == name.endswith("lora_A") for name, parameter in trained(model))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not name.endswith(("lora_A", "lora_B"))), name


def trained(model):
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_the_config_reaches_every_layer(model):
    add_lora(model, LoRAConfig(rank=4, alpha=6.0, targets=("q_proj",), dropout=0.25, rank_stabilized=True))
    for path in Q_PATHS:
        layer = model.get_submodule(path)
        assert (layer.rank, layer.alpha, layer.scaling, layer.dropout.p) == (4, 6.0, 3.0, 0.25)


def test_the_generator_and_the_init_decide_a(make_model):
    def drawn(seed, init):
        model = make_model()
        add_lora(model, LoRAConfig(**SETTINGS, targets=("q_proj",), init=init), generator=torch.Generator().manual_seed(seed))
        return [model.get_submodule(path).lora_A for path in Q_PATHS]

    first = drawn(0, "kaiming")
    assert all(torch.equal(*pair) for pair in zip(first, drawn(0, "kaiming"), strict=True))
    assert not torch.equal(first[0], first[1])
    for other in (drawn(1, "kaiming"), drawn(0, "gaussian")):
        assert not any(torch.equal(*pair) for pair in zip(first, other, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_a_wrapped_layer_keeps_the_training_mode(model, training):
    adapt(model.train(training))
    assert {module.training for module in model.modules()} == {training}


def test_a_module_in_two_places_is_wrapped_once(ids):
    shared = nn.Linear(6, 6)
    model = nn.ModuleDict({"first": shared, "second": shared, "out": nn.Linear(6, 4)})
    assert add_lora(model, LoRAConfig(**SETTINGS, targets=("first", "second"))) == ("first", "second")
    assert model["first"] is model["second"]
    assert model["first"].base is shared
    assert len(list(lora_parameters(model))) == 2


REFUSED = {
    "typo": (("q_proj", "v_porj"), AdapterError, r"no linear layer matches 'v_porj'; linear layers end in q_proj, proj, head"),
    "part of a word": (("roj",), AdapterError, r"no linear layer matches 'roj'"),
    "part of a path": (("blocks.0",), AdapterError, r"no linear layer matches 'blocks\.0'"),
    "another layer": (("norm",), AdapterError, r"no linear layer matches 'norm'"),
}


@pytest.mark.parametrize(("targets", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_one_target_without_a_layer_leaves_the_model_untouched(model, targets, error, message):
    before = snapshot(model)
    with pytest.raises(error, match=message):
        add_lora(model, LoRAConfig(**SETTINGS, targets=targets))
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"'blocks\.0\.q_proj': rank must be 1\.\.4 for a 4x6 layer, got 0"),
        # The head would allow this rank: the first layer that does not is named.
        ({"rank": 5, "targets": ("head", "proj")}, r"'blocks\.0\.proj': rank must be 1\.\.4 for a 6x4 layer, got 5"),
        ({"alpha": -8.0}, r"alpha must be a finite number above 0, got -8\.0"),
        ({"dropout": 1.5}, r"dropout must be at least 0 and below 1, got 1\.5"),
        ({"init": "ones"}, r"init must be one of kaiming, gaussian, orthogonal, pissa, olora, got 'ones'"),
    ],
)
def test_a_setting_outside_its_range_leaves_the_model_untouched(model, settings, message):
    before, state = snapshot(model), torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        add_lora(model, LoRAConfig(**{**SETTINGS, "targets": ("q_proj",), **settings}))
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_second_adapter_is_refused(model):
    adapt(model, ("q_proj",))
    before = snapshot(model)
    with pytest.raises(AdapterError, match=r"has LoRA already: remove_lora\(model\) first"):
        adapt(model, ("proj",))
    assert snapshot(model) == before


def test_a_model_without_linear_layers_is_refused():
    for targets in ("all-linear", ("q_proj",)):
        with pytest.raises(AdapterError, match="no linear layer"):
            adapt(nn.Sequential(nn.LayerNorm(6)), targets)


def test_a_model_that_is_one_linear_layer_is_refused_with_the_remedy():
    layer = nn.Linear(6, 4)
    with pytest.raises(AdapterError, match=r"wrap it as LoRALinear\(model, rank, alpha\)"):
        adapt(layer)
    assert layer.weight.requires_grad


def test_a_config_is_frozen_and_refuses_targets_that_name_nothing():
    with pytest.raises(TypeError, match=r"write targets=\('q_proj',\)"):
        LoRAConfig(targets="q_proj")
    with pytest.raises(ValueError, match="targets is empty: name layers"):
        LoRAConfig(targets=())
    with pytest.raises(FrozenInstanceError):
        LoRAConfig().rank = 4


def test_disabling_restores_the_backbone_inside_the_block_only(make_model, model, ids):
    adapt(model)
    adapted, bare = model(ids), make_model()(ids)
    assert not torch.allclose(adapted, bare)
    with adapter_disabled(model):
        assert torch.equal(model(ids), bare)
        with adapter_disabled(model):
            assert torch.equal(model(ids), bare)
        assert torch.equal(model(ids), bare)
    assert torch.equal(model(ids), adapted)


def test_an_exception_in_the_block_enables_the_adapter_again(model, ids):
    adapt(model)
    adapted = model(ids)
    with pytest.raises(KeyError), adapter_disabled(model):
        raise KeyError
    assert torch.equal(model(ids), adapted)


def test_disabling_is_refused_without_an_adapter_or_while_merged(model, ids):
    with pytest.raises(AdapterError, match="no LoRA to disable"), adapter_disabled(model):
        pass
    adapt(model)
    merge_lora(model)
    before = model(ids)
    with pytest.raises(AdapterError, match=r"cannot be disabled: unmerge_lora\(model\) first"), adapter_disabled(model):
        pass
    assert torch.equal(model(ids), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_copied_model_computes_the_same_and_trains_alone(copied, model, ids):
    adapt(model)
    expected = model(ids)
    other = copied(model)
    assert torch.equal(other(ids), expected)
    for parameter in lora_parameters(other):
        parameter.data.add_(1)
    assert torch.equal(model(ids), expected)


def test_a_state_dict_moves_a_trained_adapter_to_another_model(make_model, model, ids):
    adapt(model)
    other = make_model(seed=1)
    adapt(other, seed=1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids), model(ids))


def test_attention_that_never_calls_its_output_layer_is_left_alone():
    model = nn.Module()
    model.attention = nn.MultiheadAttention(6, 2)
    model.head = nn.Linear(6, 4)
    assert add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets="all-linear")) == ("head",)


def test_all_linear_skips_a_tied_layer_at_each_of_its_places():
    model = nn.Module()
    model.embedding, model.first, model.own = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False), nn.Linear(6, 4)
    model.first.weight = model.embedding.weight
    model.second = model.first
    assert add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets="all-linear")) == ("own",)
