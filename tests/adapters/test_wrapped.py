"""Models as they stand in real code: compiled or parallel, with patched layers, with code that reads what a layer was."""

import copy

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
    combine_adapters,
    delete_adapter,
    load_adapter,
    lora_parameters,
    merge_lora,
    mixed_batch,
    quantize_base,
    remove_lora,
    rename_adapter,
    save_adapter,
    unmerge_lora,
)
from lorabook.adapters.dora import DoRALinear
from lorabook.measure.counting import count_lora


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 7)))


def shake(model, name=None):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(model, name):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))


def whole(wrap):
    return wrap(net())


def inner(wrap):
    model = net()
    model[2] = wrap(model[2])
    return model


@pytest.mark.parametrize("where", [whole, inner])
@pytest.mark.parametrize("wrap", [lambda module: torch.compile(module, backend="eager"), nn.DataParallel], ids=["compiled", "parallel"])
@torch.no_grad()
def test_a_wrapper_is_no_part_of_a_path_and_files_are_those_of_the_plain_model(wrap, where, tmp_path):
    config = LoRAConfig(rank=2, alpha=8.0, targets=("0", "1"))
    plain, wrapped = net(), where(wrap)
    for model in (plain, wrapped):
        assert add_lora(model, config, generator=torch.Generator().manual_seed(3)) == ("0", "2.0", "2.1")
        shake(model)
        save_adapter(model, tmp_path / type(model).__name__)
    expected = plain(X)
    torch.testing.assert_close(wrapped(X), expected, atol=0, rtol=0)
    for first, second in ((net(), wrapped), (where(wrap), plain)):
        assert load_adapter(first, tmp_path / type(second).__name__) == ("0", "2.0", "2.1")
        torch.testing.assert_close(first(X), expected, atol=0, rtol=0)
    merge_lora(wrapped)
    torch.testing.assert_close(wrapped(X), expected)
    unmerge_lora(wrapped)
    rename_adapter(wrapped, "default", "sql")
    with adapter_disabled(wrapped):
        torch.testing.assert_close(wrapped(X), net()(X), atol=0, rtol=0)
    delete_adapter(wrapped, "sql")
    torch.testing.assert_close(wrapped(X), net()(X), atol=0, rtol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_rows_of_pytorchs_own_transformer_layer_are_mixed_in_evaluation_too(mode):
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    x = torch.randn(3, 5, 8)
    for name in ("a", "b"):
        add_lora(model, LoRAConfig(rank=2, targets=("linear1", "linear2")), name)
        shake(model, name)
        with torch.no_grad():
            for parameter in lora_parameters(model, name):
                parameter.mul_(2.0 if name == "b" else 1.0)
    with mixed_batch(model, ["a", "b", None]):
        expected = model(x)
        with mode():
            torch.testing.assert_close(model(x), expected)
    with mode():
        outside = model(x)
        assert (outside - expected).abs().max() > 0.1
        with mixed_batch(model, ["a"] * 7), pytest.raises(AdapterError, match="given 7 names, and the batch has 3 rows"):
            model(x)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_copy_made_in_a_mixed_batch_would_never_leave_it_and_is_refused():
    model = net()
    add_lora(model, LoRAConfig(rank=2, targets=("0",)))
    with mixed_batch(model, ["default", None]), pytest.raises(AdapterError, match="leave the block first"):
        copy.deepcopy(model)
    copy.deepcopy(model)


def test_a_layer_whose_forward_is_patched_is_saved_merged_and_gets_its_patch_back(tmp_path):
    model, seen = net(), []
    add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("0",)))
    shake(model)
    expected, ours = model(X), model[0].forward
    patched = lambda x: (seen.append(len(x)), ours(x))[1]  # noqa: E731
    model[0].forward = patched
    with mixed_batch(model, ["default", "default", None]):
        mixed = model(X)
    assert model[0].forward is patched
    torch.testing.assert_close(mixed[:2], expected[:2])
    save_adapter(model, tmp_path)
    merge_lora(model)
    unmerge_lora(model)
    torch.testing.assert_close(model(X), expected, atol=0, rtol=0)
    assert seen == [3]


@pytest.mark.parametrize("name", ["default", "sql"])
@pytest.mark.parametrize("targets", [("0",), ("0", "2.0")])
def test_an_adapted_layer_still_tells_what_the_layer_was(name, targets):
    model = net()
    add_lora(model, LoRAConfig(rank=2, targets=targets), name)
    assert (model[0].in_features, model[0].out_features) == (6, 5)
    with pytest.raises(AttributeError, match="absent"):
        model[0].absent  # noqa: B018


def test_an_adapted_table_and_a_module_trained_in_full_tell_it_too():
    model = nn.ModuleDict({"table": nn.Embedding(9, 6, padding_idx=3), "rnn": nn.LSTM(6, 5), "out": nn.Linear(5, 4)})
    add_lora(model, LoRAConfig(rank=2, targets=("table",), train_modules=("rnn",)))
    table, rnn = model["table"], model["rnn"]
    assert (table.num_embeddings, table.embedding_dim, table.padding_idx, rnn.hidden_size) == (9, 6, 3, 5)
    with torch.no_grad():
        next(lora_parameters(model)).add_(1.0)
        rnn.current.module.weight_ih_l0.add_(1.0)
    assert rnn.weight_ih_l0 is rnn.current.module.weight_ih_l0  # the copy's, not the base's


def test_pytorchs_transformer_layer_runs_in_evaluation_with_a_norm_and_its_attention_trained_in_full():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    add_lora(layer, LoRAConfig(rank=2, targets=("linear1",), train_modules=("norm1", "self_attn")))
    with torch.no_grad():
        for parameter in lora_parameters(layer):
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 3, 8)
    expected = layer(x)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


def bare():
    layer = LoRALinear(nn.Linear(6, 4), 2, 8.0)
    with torch.no_grad():
        layer.lora_B.add_(1.0)
    return layer


@pytest.mark.parametrize(
    "action",
    [
        lambda layer, _: rename_adapter(layer, "default", "sql"),
        lambda layer, _: delete_adapter(layer, "default"),
        lambda layer, _: combine_adapters(layer, {"default": 0.5}, "sql"),
        lambda layer, folder: save_adapter(layer, folder),
        lambda layer, folder: load_adapter(layer, folder, "sql"),
        lambda layer, _: remove_lora(layer),
    ],
    ids=["rename", "delete", "combine", "save", "load", "remove"],
)
def test_an_adapted_layer_that_nothing_holds_is_left_as_it_was(action, tmp_path):
    layer = bare()
    expected, keys = layer(X), list(layer.state_dict())
    with pytest.raises(AdapterError, match=r"put it into an nn\.Sequential"):
        action(layer, tmp_path / "adapter")
    assert list(layer.state_dict()) == keys
    assert not (tmp_path / "adapter").exists()
    assert torch.equal(layer(X), expected)


def test_layers_put_in_place_by_hand_with_different_scalings_come_back_as_they_were(tmp_path):
    model = net()
    model[0] = LoRALinear(model[0], 2, 8.0)
    model[2][0] = LoRALinear(model[2][0], 3, 8.0, rank_stabilized=True)
    shake(model)
    expected = model(X)
    save_adapter(model, tmp_path)
    other = net()
    load_adapter(other, tmp_path)
    torch.testing.assert_close(other(X), expected)
    peft = pytest.importorskip("peft")
    torch.testing.assert_close(peft.PeftModel.from_pretrained(net(), str(tmp_path))(X), expected)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda base: DoRALinear(base, 2, 8.0), "'0' and '2.0' differ in DoRA"),
        (lambda base: LoRALinear(base, 2, 8.0, dropout=0.25), "'0' and '2.0' differ in dropout \\(0.0 and 0.25\\)"),
    ],
)
def test_what_the_files_cannot_say_is_not_saved(layer, message, tmp_path):
    model = net()
    model[0] = LoRALinear(model[0], 2, 8.0)
    model[2][0] = layer(model[2][0])
    with pytest.raises(AdapterError, match=message):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


class Headed(nn.Module):
    """A model that names its output layer, untied."""

    def __init__(self):
        super().__init__()
        self.body, self.lm_head = nn.Linear(6, 5), nn.Linear(5, 9)

    def get_output_embeddings(self):
        return self.lm_head


@pytest.mark.parametrize("first", [{"targets": ("lm_head",)}, {"targets": ("body",), "train_modules": ("lm_head",)}])
def test_a_head_that_another_adapter_changes_is_still_the_head(first):
    model = Headed()
    add_lora(model, LoRAConfig(rank=2, **first), "first")
    assert set(count_lora(model, "all-linear", 2).layers) == {"body"}
    assert add_lora(model, LoRAConfig(rank=2, targets="all-linear"), "second") == ("body",)


class Graph(nn.Linear):
    def forward(self, x, neighbours):
        return super().forward(neighbours @ x)


class Positions(nn.Embedding):
    def forward(self, mask, offset=0):
        return super().forward(mask.cumsum(-1) - 1 + offset)


@pytest.mark.parametrize(
    ("module", "error", "reason"),
    [
        (Graph(6, 5), AdapterError, "a Graph takes more than one input"),
        (nn.Conv2d(3, 6, 1), AdapterError, "a Conv2d is neither a linear layer nor an embedding"),
        (nn.LazyLinear(5), AdapterError, "run the model once first"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), AdapterError, "remove_parametrizations first"),
        (Positions(9, 6), ValueError, "Positions takes more than ids"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_that_cannot_be_adapted_is_named_with_the_reason_before_anything_changes(module, error, reason):
    model = nn.ModuleDict({"odd": module, "even": nn.Linear(6, 5)})
    with pytest.raises(error, match=reason):
        add_lora(model, LoRAConfig(rank=2, targets=("odd", "even")))
    assert type(model["even"]) is nn.Linear
    if not isinstance(module, nn.Embedding | nn.LazyLinear):  # PyTorch freezes no model that has lazy layers
        assert add_lora(model, LoRAConfig(rank=2, targets="all-linear")) == ("even",)


def test_numpys_whole_numbers_are_ranks(tmp_path):
    model = net()
    add_lora(model, LoRAConfig(rank=np.int64(2), alpha=np.float32(8.0), targets=("0",)))
    shake(model)
    save_adapter(model, tmp_path)
    other = net()
    load_adapter(other, tmp_path)
    torch.testing.assert_close(other(X), model(X), atol=0, rtol=0)
    assert count_lora(net(), ("2.1",), np.int64(3)).trainable == 3 * (4 + 7)
    with pytest.raises(ValueError, match=r"got 2\.5"):
        add_lora(net(), LoRAConfig(rank=2.5, targets=("0",)))


def test_counting_refuses_the_ranks_that_adding_refuses():
    with pytest.raises(ValueError, match=r"rank must be 1\.\.4 for '2\.0', a 4x5 layer, got 5"):
        count_lora(net(), ("2.0",), 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": (0,)}, "got 0: write '0'"),
        ({"targets": None}, "targets is a tuple of names"),
        ({"rank_pattern": [1]}, "must be dictionaries"),
        ({"alpha_pattern": {1: 2.0}}, "got 1: write '1'"),
        ({"train_modules": ["x"]}, r"got \['x'\]"),
    ],
)
def test_names_that_are_none_are_refused_by_the_config(settings, message):
    with pytest.raises(TypeError, match=message):
        LoRAConfig(rank=2, **settings)


def test_other_wrong_types_are_named():
    with pytest.raises(TypeError, match="must be a LoRAConfig, got dict"):
        add_lora(net(), {"rank": 2})
    with pytest.raises(TypeError, match=r"write targets=\('02',\)"):
        quantize_base(net(), "02")
    model = net()
    add_lora(model, LoRAConfig(rank=2, targets=("0",)), "a")
    with pytest.raises(AdapterError, match="weights must name adapters"):
        combine_adapters(model, ["a"], "b")


def test_a_folder_of_named_adapters_says_which_it_holds(tmp_path):
    model = net()
    for name in ("sql", "text"):
        add_lora(model, LoRAConfig(rank=2, targets=("0",)), name)
        save_adapter(model, tmp_path, name)
    with pytest.raises(AdapterError, match="no adapter 'default'; it holds sql, text"):
        load_adapter(net(), tmp_path)
    with pytest.raises(AdapterError, match="no adapter 'code'; it holds sql, text"):
        load_adapter(net(), tmp_path, "code")


def test_a_neighbour_that_holds_no_adapter_is_in_nobodys_way(tmp_path):
    (tmp_path / "MODEL").touch()
    (tmp_path / "Model").mkdir()
    model = net()
    add_lora(model, LoRAConfig(rank=2, targets=("0",)))
    assert save_adapter(model, tmp_path / "model").is_dir()


def test_a_module_that_the_user_calls_base_layer_keeps_its_name(tmp_path):
    def model():
        torch.manual_seed(0)
        return nn.ModuleDict({"base_layer": nn.ModuleDict({"fc": nn.Linear(6, 4)})})

    first, second = model(), model()
    add_lora(first, LoRAConfig(rank=2, targets=("fc",), bias="all"))
    shake(first)
    save_adapter(first, tmp_path)
    load_adapter(second, tmp_path)
    torch.testing.assert_close(second["base_layer"]["fc"](X), first["base_layer"]["fc"](X), atol=0, rtol=0)


def test_a_sum_of_many_adapters_has_no_more_directions_than_the_layer_and_can_be_read_back(tmp_path):
    model = net()
    names = [f"a{i}" for i in range(13)]
    for name in names:
        add_lora(model, LoRAConfig(rank=2, alpha=4.0, targets=("2.1",)), name)
        shake(model, name)
    total = sum(0.5 * model[2][1].layers[name].delta_weight() for name in names)
    assert combine_adapters(model, dict.fromkeys(names, 0.5), "all") == {"2.1": 0.0}
    assert model[2][1].layers["all"].rank == 4
    torch.testing.assert_close(model[2][1].layers["all"].delta_weight(), total)
    save_adapter(model, tmp_path, "all")
    other = net()
    load_adapter(other, tmp_path, "all")
    torch.testing.assert_close(other(X), model(X))


def test_running_means_move_while_an_adapter_trains_unless_their_module_is_in_evaluation():
    """What add_lora and save_adapter say of BatchNorm."""
    for training in (True, False):
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5).train(training))
        add_lora(model, LoRAConfig(rank=2, targets=("0",)))
        before = model[1].running_mean.clone()
        model(X)
        assert torch.equal(before, model[1].running_mean) != training
