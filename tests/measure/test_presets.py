"""Presets and count_lora, against Hugging Face's own classes on the meta device and what PEFT counts on them."""

import re

import peft
import pytest
import torch
import transformers
from torch import nn

from lorabook import AdapterError, LoRAConfig, add_lora, count_parameters
from lorabook.measure.counting import count_lora, linear_sizes
from lorabook.measure.presets import PRESETS


def gpt2(n_layer, n_embd, n_head):
    return transformers.GPT2LMHeadModel, transformers.GPT2Config(n_layer=n_layer, n_embd=n_embd, n_head=n_head)


def roberta(layers, width, heads):
    config = transformers.RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=heads,
    )
    return transformers.RobertaModel, config


def llama(layers, width, heads, kv, mlp, vocab, kind="Llama"):
    config = getattr(transformers, f"{kind}Config")(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=mlp,
        vocab_size=vocab,
        tie_word_embeddings=False,
    )
    return getattr(transformers, f"{kind}ForCausalLM"), config


MODELS = {
    "gpt2": gpt2(12, 768, 12),
    "gpt2-medium": gpt2(24, 1024, 16),
    "gpt2-large": gpt2(36, 1280, 20),
    "gpt2-xl": gpt2(48, 1600, 25),
    "roberta-base": roberta(12, 768, 12),
    "roberta-large": roberta(24, 1024, 16),
    "llama-2-7b": llama(32, 4096, 32, 32, 11008, 32000),
    "llama-2-13b": llama(40, 5120, 40, 40, 13824, 32000),
    "llama-2-70b": llama(80, 8192, 64, 8, 28672, 32000),
    "llama-3-8b": llama(32, 4096, 32, 8, 14336, 128256),
    "llama-3-70b": llama(80, 8192, 64, 8, 28672, 128256),
    "mistral-7b": llama(32, 4096, 32, 8, 14336, 32000, "Mistral"),
    "mistral-7b-v0.3": llama(32, 4096, 32, 8, 14336, 32768, "Mistral"),
    "qwen2.5-7b": llama(28, 3584, 28, 4, 18944, 152064, "Qwen2"),
}
QV = {"gpt2": ("c_attn",), "roberta": ("query", "value")}


def on_meta(name):
    kind, config = MODELS[name]
    with torch.device("meta"):
        return kind(config)


def attention(name):
    return next((targets for prefix, targets in QV.items() if name.startswith(prefix)), ("q_proj", "v_proj"))


def peft_count(model, targets, rank):
    config = peft.LoraConfig(r=rank, target_modules=targets if isinstance(targets, str) else list(targets), fan_in_fan_out=False)
    with torch.device("meta"):
        return peft.get_peft_model(model, config, low_cpu_mem_usage=True).get_nb_trainable_parameters()


def test_every_preset_but_gpt3_has_a_published_class_to_compare_with():
    assert set(PRESETS) - set(MODELS) == {"gpt3-175b"}


@pytest.mark.parametrize("name", MODELS)
def test_layers_and_total_are_those_of_the_class(name):
    model = on_meta(name)
    assert PRESETS[name].total == count_parameters(model).total == sum(p.numel() for p in model.parameters())
    assert linear_sizes(PRESETS[name]) == linear_sizes(model)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")  # PEFT's remarks on Conv1D
def test_lora_counts_are_peft_s(name):
    for targets, rank in ((attention(name), 8), ("all-linear", 16)):
        model = on_meta(name)
        ours, from_shape = count_lora(model, targets, rank), count_lora(PRESETS[name], targets, rank)
        assert (ours.trainable, ours.total) == peft_count(model, targets, rank)
        assert ours == from_shape


def test_gpt3_counts_as_the_same_shape_with_fused_attention():
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=96, n_embd=12288, n_head=96, n_positions=2048))
    assert PRESETS["gpt3-175b"].total == count_parameters(model).total
    q_and_v = count_lora(PRESETS["gpt3-175b"], ("q_proj", "v_proj"), rank=4)
    assert q_and_v.trainable == 2 * 2 * 96 * 12288 * 4  # 2 x L_LoRA x d_model x r
    assert q_and_v.checkpoint_bytes(torch.float16) == 2 * q_and_v.trainable


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [("wte",), ("c_proj",), ("transformer.h.3.attn.c_proj", "wpe"), ("c_attn", "lm_head")])
def test_embeddings_single_layers_and_the_head_count_when_named(targets):
    model = on_meta("gpt2")
    assert count_lora(PRESETS["gpt2"], targets, 5) == count_lora(model, targets, 5)
    if "lm_head" not in targets:  # PEFT ties it to the embedding's adapter in its own way
        assert count_lora(model, targets, 5).trainable == peft_count(model, targets, 5)[0]


def test_a_pattern_selects_layers():
    shape = PRESETS["llama-2-7b"]
    upper = count_lora(shape, (re.compile(r"model\.layers\.(1[6-9]|2\d|3[01])\..*_proj"),), rank=2)
    assert 2 * upper.trainable == count_lora(shape, "all-linear", rank=2).trainable


def test_counting_a_module_adds_nothing_and_agrees_with_adding():
    model = nn.ModuleDict({"query": nn.Linear(6, 4), "value": nn.Linear(6, 5), "out": nn.Linear(5, 7)})
    counted = count_lora(model, ("query", "out"), rank=3)
    assert count_parameters(model).trainable == count_parameters(model).total
    add_lora(model, LoRAConfig(rank=3, alpha=8.0, targets=("query", "out")))
    assert (counted.trainable, counted.total) == (count_parameters(model).trainable, count_parameters(model).total)
    assert counted.layers == {"query": 3 * (4 + 6), "out": 3 * (7 + 5)}


def test_a_layer_in_two_places_counts_once():
    layer = nn.Linear(6, 4)
    assert count_lora(nn.ModuleDict({"a": layer, "b": layer}), ("a", "b"), rank=2).layers == {"a": 2 * (6 + 4)}


@pytest.mark.parametrize("model", [PRESETS["gpt2"], nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5))])
@pytest.mark.parametrize(
    ("targets", "rank", "error"),
    [
        (("missing",), 2, AdapterError),
        ("q_proj", 2, TypeError),
        ((), 2, ValueError),
        ("all-linear", 0, ValueError),
        ("all-linear", True, ValueError),
    ],
)
def test_what_cannot_be_counted_is_refused(model, targets, rank, error):
    with pytest.raises(error):
        count_lora(model, targets, rank)


def test_a_missing_target_lists_what_there_is():
    with pytest.raises(AdapterError, match=r"'q_proj'; layers end in c_attn, c_proj, c_fc"):
        count_lora(PRESETS["gpt2"], ("q_proj",))
