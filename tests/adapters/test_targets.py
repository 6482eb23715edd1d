"""Which layers a config means, and what it refuses."""

import re

import pytest
import torch
from torch import nn

from lorabook import AdapterError, LoRAConfig, LoRAEmbedding, add_lora, load_adapter, lora_parameters, merge_lora, save_adapter
from lorabook.adapters.site import layers_named


@pytest.mark.parametrize(
    ("targets", "paths"),
    [
        (("q_proj",), ["blocks.0.q_proj", "blocks.1.q_proj"]),
        (("blocks.1.q_proj",), ["blocks.1.q_proj"]),
        ((re.compile(r"blocks\.0\..*"),), ["blocks.0.q_proj", "blocks.0.proj"]),
        ((re.compile(r".*q_proj"), "blocks.1.proj"), ["blocks.0.q_proj", "blocks.1.q_proj", "blocks.1.proj"]),
        (("embedding", "proj"), ["embedding", "blocks.0.proj", "blocks.1.proj"]),
        ("all-linear", ["blocks.0.q_proj", "blocks.0.proj", "blocks.1.q_proj", "blocks.1.proj"]),
    ],
)
def test_names_paths_and_expressions_find_their_layers_in_the_models_order(model, targets, paths):
    assert list(add_lora(model, LoRAConfig(rank=2, targets=targets))) == paths


def test_an_embedding_is_adapted_where_it_is_named(model):
    add_lora(model, LoRAConfig(rank=2, targets=("embedding",)))
    assert isinstance(model.embedding, LoRAEmbedding)


def test_patterns_set_ranks_and_alphas_the_first_that_fits(model):
    config = LoRAConfig(
        rank=2,
        alpha=8.0,
        targets=("q_proj", "proj"),
        rank_pattern={"blocks.0.proj": 1, re.compile(r".*proj"): 3},
        alpha_pattern={re.compile(r"blocks\.1\..*"): 5.0},
    )
    add_lora(model, config)
    found = {path: (layer.rank, layer.alpha) for path, layer in layers_named(model, "default").items()}
    assert found == {"blocks.0.q_proj": (3, 8.0), "blocks.0.proj": (1, 8.0), "blocks.1.q_proj": (3, 5.0), "blocks.1.proj": (3, 5.0)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"targets": ("q_proj", "typo")},
            r"no linear layer matches 'typo'; linear layers end in q_proj, proj, head; embeddings in embedding",
        ),
        ({"targets": (re.compile("blocks"),)}, "no linear layer matches 'blocks'"),
        ({"rank_pattern": {"typo": 3}}, "pattern 'typo' fits none of the adapted layers"),
        ({"alpha_pattern": {"head": 3.0}}, "pattern 'head' fits none of the adapted layers"),
        ({"train_modules": ("typo",)}, "no module matches 'typo', which is to train in full; modules end in embedding, blocks"),
        ({"train_modules": ("blocks.0",)}, r"'blocks\.0' is to train in full, but 'blocks\.0\.q_proj' is in it"),
        ({"train_modules": ("blocks.0.q_proj",)}, "is in it and adapted too"),
        ({"train_modules": (re.compile(r"blocks\.0.*"),)}, "name one of the two"),
    ],
)
def test_a_mistake_lists_the_remedy_and_leaves_the_model(make_model, settings, message):
    model = make_model()
    with pytest.raises(AdapterError, match=message):
        add_lora(model, LoRAConfig(**{"rank": 2, "targets": ("q_proj",), **settings}))
    assert repr(model) == repr(make_model())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("settings", [{"rank_pattern": {"blocks.1.q_proj": 5}}, {"alpha_pattern": {"blocks.1.q_proj": -1.0}}])
def test_a_pattern_out_of_range_is_refused_before_anything_changes(make_model, settings):
    model, state = make_model(), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"'blocks\.1\.q_proj': (rank|alpha) must be"):
        add_lora(model, LoRAConfig(rank=2, targets=("q_proj",), **settings))
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(model) == repr(make_model())


def test_configs_compare_and_hash_by_their_settings():
    one, same = (LoRAConfig(rank=3, rank_pattern={"proj": 2}) for _ in range(2))
    assert one == same
    assert len({one, same, LoRAConfig(rank=4)}) == 2


def test_a_config_that_cannot_be_meant_is_refused():
    with pytest.raises(TypeError, match="targets is a tuple"):
        LoRAConfig(targets="q_proj")
    with pytest.raises(TypeError, match="train_modules is a tuple"):
        LoRAConfig(train_modules="head")
    with pytest.raises(ValueError, match="bias must be none, lora_only or all, got 'some'"):
        LoRAConfig(bias="some")


@pytest.mark.parametrize(("bias", "expected"), [("none", 0), ("lora_only", 2), ("all", 6)])
def test_bias_modes_train_the_biases_they_name(make_model, bias, expected):
    model = make_model()
    add_lora(model, LoRAConfig(rank=2, targets=("q_proj",), bias=bias))
    assert sum(parameter.requires_grad and name.endswith("bias") for name, parameter in model.named_parameters()) == expected


def test_a_bias_that_no_layer_adds_is_not_trained_in_passing():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(6, 2), "proj": nn.Linear(6, 4)})
    with pytest.raises(AdapterError, match=r"cannot train 'attention\.in_proj_bias': name 'attention' among train_modules"):
        add_lora(model, LoRAConfig(rank=2, targets=("proj",), bias="all"))


def test_a_layer_whose_weight_is_read_without_a_call_is_no_target():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(6, 2), "proj": nn.Linear(6, 4)})
    assert add_lora(model, LoRAConfig(rank=2, targets="all-linear")) == ("proj",)
    with pytest.raises(AdapterError, match="no linear layer matches 'out_proj'"):
        add_lora(model, LoRAConfig(rank=2, targets=("out_proj",)), "other")


def test_a_module_with_layers_inside_is_no_linear_layer_whatever_its_attributes(make_model):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features, self.inner = 6, 4, nn.Linear(6, 4)

        def forward(self, x):
            return self.inner(x)

    model = nn.ModuleDict({"block": Block()})
    assert add_lora(model, LoRAConfig(rank=2, targets="all-linear")) == ("block.inner",)


@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"init": "pissa"}])
def test_with_a_frozen_a_only_b_trains_and_the_rest_of_its_life_is_the_same(settings, make_model, ids, tmp_path):
    model = make_model()
    add_lora(model, LoRAConfig(rank=2, targets=("proj",), freeze_a=True, **settings))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.allclose(model(ids), make_model()(ids), atol=1e-5)
    optimizer = torch.optim.SGD(lora_parameters(model), lr=0.01)
    model(ids).square().mean().backward()
    optimizer.step()
    moved = {name.rpartition(".")[2] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == ({"lora_B", "magnitude"} if "dora" in settings else {"lora_B"})
    save_adapter(model, tmp_path)
    load_adapter(other := make_model(), tmp_path)
    torch.testing.assert_close(other(ids), model(ids))
    expected = model(ids)
    merge_lora(model)
    torch.testing.assert_close(model(ids), expected)


def test_a_frozen_a_over_an_embedding_would_learn_nothing_and_is_refused(make_model):
    model = make_model()
    with pytest.raises(ValueError, match="'embedding': DoRA and a frozen A need a linear layer"):
        add_lora(model, LoRAConfig(rank=2, targets=("embedding", "proj"), freeze_a=True))
    assert repr(model) == repr(make_model())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers in its old words
def test_all_linear_takes_the_layers_that_peft_takes_and_leaves_an_untied_head():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**settings, tie_word_embeddings=False))
    ours = add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets="all-linear"))
    theirs = get_peft_model(
        LlamaForCausalLM(LlamaConfig(**settings, tie_word_embeddings=False)), LoraConfig(r=2, target_modules="all-linear")
    )
    adapted = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A") for name, _ in theirs.named_modules() if name.endswith(".lora_A")
    }
    assert set(ours) == adapted
    assert "lm_head" not in ours
    assert add_lora(LlamaForCausalLM(LlamaConfig(**settings)), LoRAConfig(rank=2, targets=("lm_head",))) == ("lm_head",)
