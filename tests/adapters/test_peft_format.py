"""The directory format: PEFT reads ours, we read PEFT's, and nothing that disagrees gets in."""

import copy
import json
import re
import sys
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lorabook import (
    AdapterError,
    LoRAConfig,
    active_adapter,
    adapter_names,
    add_lora,
    load_adapter,
    lora_parameters,
    merge_lora,
    save_adapter,
    use_adapter,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import fuzz_adapters
import peft_agreement

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def move(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def adapt(model, name="default", **settings):
    add_lora(model, LoRAConfig(**{"rank": 2, "alpha": 6.0, "targets": ("q_proj", "proj"), **settings}), name)
    return move(model)


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=13, n_positions=8, n_embd=12, n_layer=2, n_head=2)).eval()


def test_a_slice_of_the_thousand_random_configurations_agrees_with_peft_to_1e_5():
    assert max(peft_agreement.compare(seed) for seed in range(2000, 2060)) < 1e-5


def test_2000_mutated_directories_load_right_or_are_refused_with_the_model_untouched():
    outcomes = fuzz_adapters.fuzz(2000, 1_000_000)
    assert outcomes["loaded"] + outcomes["refused"] == 2000
    assert outcomes["loaded"] >= 50
    assert outcomes["refused"] >= 1000


@pytest.mark.parametrize("targets", [("c_attn", "c_proj"), ("c_fc", "wte"), ("transformer.h.1.attn.c_attn",)])
@pytest.mark.parametrize("init", ["kaiming", "pissa", "olora"])
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_peft_gets_gpt2_right_on_the_original_base(targets, init, rank_stabilized, tmp_path):
    model, ids = gpt2(), torch.arange(8)[None]
    settings = {"targets": targets, "init": init, "rank_stabilized": rank_stabilized}
    adapt(model, rank_pattern={targets[0]: 3}, alpha_pattern={targets[-1]: 5.0}, **settings)
    save_adapter(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on tied embeddings
        theirs = peft.PeftModel.from_pretrained(gpt2(), tmp_path)
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    again = gpt2()
    load_adapter(again, tmp_path)
    torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_adapter_in_half_precision_is_read_into_float32(dtype, make_model, tmp_path):
    adapt(model := make_model())
    save_adapter(model, tmp_path)
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(tmp_path / TENSORS).items()}
    save_file(tensors, tmp_path / TENSORS, metadata={"format": "pt"})
    load_adapter(other := make_model(), tmp_path)
    assert {parameter.dtype for parameter in lora_parameters(other)} == {torch.float32}
    assert torch.equal(other.blocks[0].proj.lora_A, tensors["base_model.model.blocks.0.proj.lora_A.weight"].float())


def test_the_files_are_those_of_peft(make_model, tmp_path):
    adapt(model := make_model(), bias="lora_only", train_modules=("blocks.0.norm",), rank_pattern={"proj": 3})
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["peft_type"] == "LORA"
    assert config["init_lora_weights"] is True
    assert config["inference_mode"] is True
    assert sorted(config["target_modules"]) == sorted(f"blocks.{i}.{name}" for i in (0, 1) for name in ("q_proj", "proj"))
    assert set(config["rank_pattern"].values()) <= {2, 3}
    assert all(pattern.startswith("^blocks\\.") for pattern in config["rank_pattern"])
    keys = {key.removeprefix("base_model.model.blocks.0.") for key in load_file(tmp_path / TENSORS) if ".0." in key}
    expected = {f"{name}.{part}" for name in ("q_proj", "proj") for part in ("lora_A.weight", "lora_B.weight", "base_layer.bias")}
    assert keys == expected | {"norm.weight", "norm.bias"}


def test_a_name_that_ends_another_does_not_adapt_the_other(tmp_path):
    def network():
        torch.manual_seed(0)
        return nn.ModuleDict({"proj": nn.Linear(6, 4), "block": nn.ModuleDict({"proj": nn.Linear(6, 4)})})

    model = network()
    add_lora(model, LoRAConfig(rank=2, targets=("proj",), rank_pattern={"block.proj": 1}))
    save_adapter(model, tmp_path / "both")
    assert load_adapter(network(), tmp_path / "both") == ("proj", "block.proj")

    model = network()
    add_lora(model, LoRAConfig(rank=2, targets=(re.compile("proj"),)))
    save_adapter(model, tmp_path / "outer")
    theirs = peft.PeftModel.from_pretrained(network(), tmp_path / "outer")
    assert [name for name, _ in theirs.named_parameters() if "lora_A" in name] == ["base_model.model.proj.lora_A.default.weight"]
    assert load_adapter(network(), tmp_path / "outer") == ("proj",)


def test_several_adapters_live_in_subfolders_and_come_back_under_their_names(make_model, ids, tmp_path):
    model = make_model()
    for seed, name in enumerate(("default", "sql", "text")):
        adapt(model, name, rank=seed + 1)
        move(model, seed)
        save_adapter(model, tmp_path, name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, TENSORS, "sql", "text"]
    other = make_model()
    for name in ("text", "default", "sql"):
        load_adapter(other, tmp_path, name)
        assert active_adapter(other) == name
    for name in ("default", "sql", "text"):
        use_adapter(model, name)
        use_adapter(other, name)
        assert torch.equal(model(ids), other(ids))
    with pytest.raises(AdapterError, match="holds no adapter 'typo'; it holds default, sql, text"):
        load_adapter(other, tmp_path, "typo")
    use_adapter(model, "sql")
    load_adapter(other, tmp_path / "sql", "another-name")
    assert torch.equal(model(ids), other(ids))


def test_a_loaded_adapter_trains_and_nothing_else_does(make_model, tmp_path):
    adapt(model := make_model())
    save_adapter(model, tmp_path)
    paths = load_adapter(other := make_model(), tmp_path)
    assert paths == ("blocks.0.q_proj", "blocks.0.proj", "blocks.1.q_proj", "blocks.1.proj")
    assert {p for p in other.parameters() if p.requires_grad} == set(lora_parameters(other))


def test_peft_writes_the_embedding_along_and_we_take_it_if_it_is_ours(tmp_path):
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed_tokens = nn.Embedding(9, 6)

        def get_input_embeddings(self):
            return self.embed_tokens

        def get_output_embeddings(self):
            return None

        def forward(self, ids):
            return self.embed_tokens(ids)

    model = peft.get_peft_model(Language(), peft.LoraConfig(r=2, target_modules=["embed_tokens"]))
    move(model)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    tensors = load_file(tmp_path / TENSORS)
    assert any(key.endswith("base_layer.weight") for key in tensors), sorted(tensors)
    load_adapter(ours := Language(), tmp_path)
    torch.testing.assert_close(ours(torch.arange(9)), model(torch.arange(9)))
    changed = Language()
    changed.embed_tokens.weight.data[3] += 1
    with pytest.raises(AdapterError, match=r"unexpected tensor 'embed_tokens\.weight'"):
        load_adapter(changed, tmp_path)


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


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers in its old words
def test_several_adapters_that_peft_saved_are_read_by_name(tmp_path):
    ids = torch.arange(8)[None]
    theirs = peft.get_peft_model(gpt2(), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    theirs.add_adapter("sql", peft.LoraConfig(r=3, target_modules=["c_fc"], fan_in_fan_out=True, use_rslora=True))
    theirs.set_adapter("sql")
    move(theirs)
    theirs.save_pretrained(tmp_path)
    load_adapter(ours := gpt2(), tmp_path, "sql")
    load_adapter(ours, tmp_path)
    use_adapter(ours, "sql")
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_block_called_with_named_inputs_trains_in_full(dtype, tmp_path):
    def network():
        return gpt2().to(dtype)

    ids = torch.arange(8)[None]
    adapt(model := network(), targets=("c_attn",), train_modules=("transformer.ln_f", "transformer.h.1.mlp", "transformer.wpe"))
    model(ids).logits.float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in lora_parameters(model))
    save_adapter(model, tmp_path)
    load_adapter(other := network(), tmp_path)
    assert torch.equal(model(ids).logits, other(ids).logits)
    adapt(whole := network(), targets=("transformer.h.0.attn.c_attn",), train_modules=("transformer.h.1",))
    assert whole(ids, attention_mask=torch.ones_like(ids)).logits.dtype == dtype


def test_counters_and_running_means_are_saved_with_their_module_and_are_no_part_of_the_base(tmp_path):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))

    adapt(model := network(), targets=("0", "2"), train_modules=("1",))
    model(torch.randn(5, 6))
    save_adapter(model, tmp_path)
    load_adapter(other := network(), tmp_path)
    own = other[1].layers["default"].module
    assert own.num_batches_tracked.item() == 1
    assert torch.equal(own.running_mean, model[1].layers["default"].module.running_mean)


def test_a_module_trained_in_full_is_not_mistaken_for_one_whose_name_ends_alike(tmp_path):
    def network():
        torch.manual_seed(0)
        heads = {"head": nn.Linear(6, 4), "lm_head": nn.Linear(6, 4), "block": nn.ModuleDict({"head": nn.Linear(6, 4)})}
        return nn.ModuleDict({"q": nn.Linear(6, 5), **heads})

    for name in ("head", "block.head"):
        adapt(model := network(), targets=("q",), train_modules=(re.compile(re.escape(name)),))
        save_adapter(model, tmp_path / name)
        load_adapter(other := network(), tmp_path / name)
        trained = {key for key, parameter in other.named_parameters() if parameter.requires_grad}
        assert trained == {"q.lora_A", "q.lora_B", *(f"{name}.layers.default.module.{part}" for part in ("weight", "bias"))}


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
