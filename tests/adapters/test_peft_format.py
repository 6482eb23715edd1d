"""The directory format: PEFT reads ours, and we read PEFT's."""

import json
import re
import warnings

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
    add_lora,
    load_adapter,
    lora_parameters,
    save_adapter,
    use_adapter,
)

from .moving import CONFIG, TENSORS, adapt, move


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=13, n_positions=8, n_embd=12, n_layer=2, n_head=2)).eval()


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
