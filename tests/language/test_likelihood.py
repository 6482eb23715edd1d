"""The objective, against log-softmax written out in NumPy's float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorabook.language.likelihood import (
    IGNORE,
    conditional_example,
    negative_log_likelihood,
    pad_batch,
    perplexity,
    sequence_example,
)

tokens = st.lists(st.integers(0, 10), min_size=1, max_size=9)
VOCAB_SIZE = 7


def by_hand(logits, labels):
    """Summed loss in float64, one position after the other."""
    total, scores = 0.0, logits.double().numpy()
    for row, column in np.ndindex(*labels.shape):
        if labels[row, column] != IGNORE:
            line = scores[row, column]
            total += np.log(np.sum(np.exp(line - line.max()))) + line.max() - line[labels[row, column]]
    return total


def random_batch(seed, batch=3, length=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, length, VOCAB_SIZE, generator=generator)
    labels = torch.randint(VOCAB_SIZE, (batch, length), generator=generator)
    labels[torch.rand(batch, length, generator=generator) < 0.4] = IGNORE
    return logits.to(dtype), labels


@given(tokens, st.integers(0, 10))
def test_each_label_is_the_next_token(text, last):
    text = [*text, last]
    inputs, labels = sequence_example(text)
    assert [(inputs[t], labels[t]) for t in range(len(inputs))] == [(text[t], text[t + 1]) for t in range(len(text) - 1)]


@given(tokens, tokens)
def test_the_prompt_is_read_and_only_the_target_carries_loss(prompt, target):
    inputs, labels = conditional_example(prompt, target)
    assert inputs == (prompt + target)[:-1]
    assert len(labels) == len(inputs)
    assert {t + 1: label for t, label in enumerate(labels) if label != IGNORE} == {len(prompt) + i: token for i, token in enumerate(target)}


@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_summed_loss_equals_log_softmax_by_hand(seed, dtype):
    logits, labels = random_batch(seed, dtype=dtype)
    total, count = negative_log_likelihood(logits, labels)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(by_hand(logits, labels), rel=1e-5, abs=1e-5)
    assert count.item() == int(np.sum(labels.numpy() != IGNORE))


def test_gradient_is_softmax_minus_one_hot_where_labelled_and_zero_elsewhere():
    logits, labels = random_batch(0)
    logits.requires_grad_(True)
    negative_log_likelihood(logits, labels)[0].backward()
    scores = np.exp(logits.detach().double().numpy())
    expected = scores / scores.sum(-1, keepdims=True)
    for position in np.ndindex(*labels.shape):
        if labels[position] == IGNORE:
            expected[position] = 0
        else:
            expected[position][labels[position]] -= 1
    np.testing.assert_allclose(logits.grad, expected, atol=1e-6)


def test_sums_over_batches_weight_tokens_equally_where_averages_of_batches_do_not():
    logits, labels = random_batch(0, batch=2, length=6)
    labels = torch.randint(VOCAB_SIZE, labels.shape, generator=torch.Generator().manual_seed(1))
    labels[0, 1:] = IGNORE  # one target token against six
    parts = [negative_log_likelihood(logits[row : row + 1], labels[row : row + 1]) for row in range(2)]
    total, count = negative_log_likelihood(logits, labels)
    by_tokens = sum(part for part, _ in parts) / sum(number for _, number in parts)
    by_batches = sum(part / number for part, number in parts) / 2
    torch.testing.assert_close(by_tokens, total / count)
    assert abs(by_batches - by_tokens) > 1e-3


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=4))
def test_padding_stands_right_and_carries_no_label(pairs):
    examples = [conditional_example(prompt, target) for prompt, target in pairs]
    input_ids, labels = pad_batch(examples)
    assert input_ids.shape == labels.shape == (len(examples), max(len(inputs) for inputs, _ in examples))
    for row, (inputs, targets) in enumerate(examples):
        assert input_ids[row, : len(inputs)].tolist() == inputs
        assert labels[row].tolist() == targets + [IGNORE] * (labels.shape[1] - len(targets))


def test_a_padded_batch_has_the_loss_of_its_rows_alone(make_gpt):
    model = make_gpt()
    examples = [conditional_example([1, 2], [3]), conditional_example([4], [5, 6, 7, 8, 9]), conditional_example([2, 2, 2], [1, 10])]
    input_ids, labels = pad_batch(examples)
    alone = [negative_log_likelihood(model(torch.tensor([inputs])), torch.tensor([targets])) for inputs, targets in examples]
    for filler in (0, 7):  # what the padding holds is read by nobody
        for row, (inputs, _) in enumerate(examples):
            input_ids[row, len(inputs) :] = filler
        total, count = negative_log_likelihood(model(input_ids), labels)
        assert total.item() == pytest.approx(sum(part.item() for part, _ in alone), rel=1e-6)
        assert count == sum(number for _, number in alone)


@given(st.integers(1, 50), st.integers(1, 9))
def test_perplexity_of_a_uniform_model_is_its_vocabulary(vocab_size, length):
    total, count = negative_log_likelihood(torch.zeros(1, length, vocab_size), torch.zeros(1, length, dtype=torch.long))
    assert perplexity(total.item(), count.item()) == pytest.approx(vocab_size, rel=1e-5)


@given(st.floats(0, 100), st.integers(1, 100))
def test_perplexity_is_the_exponential_of_the_mean(total, count):
    assert perplexity(total, count) == pytest.approx(math.exp(total / count))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sequence_example([5]), "at least 2 tokens to predict one, got 1"),
        (lambda: conditional_example([], [1]), "prompt and the target each need at least one token"),
        (lambda: conditional_example([1], []), "prompt and the target each need at least one token"),
        (lambda: pad_batch([]), "at least one example"),
        (lambda: perplexity(1.0, 0), "at least one target token, got 0"),
    ],
)
def test_what_leaves_nothing_to_predict_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_labels_that_do_not_stand_beside_their_inputs_are_refused():
    with pytest.raises(ValueError, match="got 2 inputs and 1 labels"):
        pad_batch([([1, 2], [2])])
