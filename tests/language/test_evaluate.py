"""Bits per byte of a text, against the sum over its pieces one by one."""

import math

import pytest
import torch
from torch import nn

from lorabook.language.backbone import load_backbone
from lorabook.language.evaluate import held_out_bits_per_byte
from lorabook.language.tokenizer import BytePairTokenizer

TEXTS = ["to be or not to be, that is the question", "né à Zürich"]


@pytest.fixture
def tokenizer():
    return BytePairTokenizer.train(["to be or not to be"], vocab_size=262)


@pytest.fixture
def model(make_gpt):
    return make_gpt(vocab_size=262, context=9)


def surprise(model, tokenizer, text):
    """Bits of a text, token after token, each piece from the end token on."""
    ids, total = tokenizer.encode(text), 0.0
    for index, token in enumerate(ids):
        start = index - index % (model.config.context - 1)
        logits = model(torch.tensor([[tokenizer.end_id, *ids[start:index]]]))
        total -= logits[0, -1].log_softmax(dim=-1)[token].item() / math.log(2)
    return total


def test_every_token_is_predicted_once_from_what_its_piece_holds(model, tokenizer):
    expected = sum(surprise(model, tokenizer, text) for text in TEXTS) / sum(len(text.encode()) for text in TEXTS)
    assert held_out_bits_per_byte(model, tokenizer, TEXTS, batch_size=3) == pytest.approx(expected, rel=1e-12)


def test_no_text_is_begun_after_the_limit_and_the_last_is_read_to_its_end(model, tokenizer):
    first = held_out_bits_per_byte(model, tokenizer, TEXTS[:1])
    assert held_out_bits_per_byte(model, tokenizer, TEXTS, max_bytes=5) == first
    assert held_out_bits_per_byte(model, tokenizer, TEXTS, max_bytes=41) != first


def test_a_model_in_training_stays_so(model, tokenizer):
    model.train()
    held_out_bits_per_byte(model, tokenizer, TEXTS)
    assert model.training


@pytest.mark.parametrize("texts", [[], [""]])
def test_nothing_to_read_is_an_error(model, tokenizer, texts):
    with pytest.raises(ValueError, match="at least one byte"):
        held_out_bits_per_byte(model, tokenizer, texts)


def test_every_part_is_left_in_its_own_mode_also_after_an_error():
    model, tokenizer = load_backbone()
    model.train()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    held_out_bits_per_byte(model, tokenizer, ["import os"])
    assert [module.training for module in model.modules()] == before
    model.token_embedding = nn.Embedding(3, model.config.n_embd)  # too few tokens
    model.eval()
    model.blocks[0].train()
    before = [module.training for module in model.modules()]
    with pytest.raises(IndexError):
        held_out_bits_per_byte(model, tokenizer, ["import os"])
    assert [module.training for module in model.modules()] == before
