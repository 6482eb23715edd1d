"""The transformer, against its equations written out in NumPy."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from lorabook.language.gpt import GPT, GPTConfig

fixture_is_a_function = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
token_rows = st.lists(st.integers(0, 10), min_size=2, max_size=9)


def layer_norm(x, weight, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def written_out(model, tokens):
    """Logits of one sequence, position by position and head by head."""
    p = {name: value.numpy() for name, value in model.state_dict().items()}
    gelu = np.vectorize(lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2)
    x = p["token_embedding.weight"][tokens] + p["position_embedding.weight"][: len(tokens)]
    width = model.config.n_embd // model.config.n_head
    for block in (f"blocks.{i}." for i in range(model.config.n_layer)):
        linear = lambda h, name, at=block: h @ p[f"{at}{name}.weight"].T + p[f"{at}{name}.bias"]  # noqa: E731
        h = layer_norm(x, p[f"{block}attention_norm.weight"], p[f"{block}attention_norm.bias"])
        q, k, v = (linear(h, f"attention.{name}_proj") for name in "qkv")
        attended = np.zeros_like(x)
        for t in range(len(tokens)):
            for head in (slice(i * width, (i + 1) * width) for i in range(model.config.n_head)):
                weights = np.exp(k[: t + 1, head] @ q[t, head] / math.sqrt(width))
                attended[t, head] = weights / weights.sum() @ v[: t + 1, head]
        x = x + linear(attended, "attention.o_proj")
        h = layer_norm(x, p[f"{block}mlp_norm.weight"], p[f"{block}mlp_norm.bias"])
        x = x + linear(gelu(linear(h, "up_proj")), "down_proj")
    return layer_norm(x, p["final_norm.weight"], p["final_norm.bias"]) @ p["token_embedding.weight"].T


@fixture_is_a_function
@given(token_rows, st.integers(0, 1000))
def test_logits_equal_the_equations_written_out(make_gpt, tokens, seed):
    model = make_gpt(seed)
    np.testing.assert_allclose(model(torch.tensor([tokens]))[0], written_out(model, tokens), rtol=1e-9, atol=1e-9)


@fixture_is_a_function
@given(token_rows, st.data())
def test_changing_a_later_token_changes_no_earlier_logits(make_gpt, tokens, data):
    model = make_gpt()
    position = data.draw(st.integers(1, len(tokens) - 1))
    changed = [*tokens[:position], (tokens[position] + 1) % 11, *tokens[position + 1 :]]
    before, after = model(torch.tensor([tokens])), model(torch.tensor([changed]))
    torch.testing.assert_close(before[:, :position], after[:, :position], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(before[:, position], after[:, position])


def test_every_position_reads_all_before_it(make_gpt):
    model = make_gpt()
    embedded = model.token_embedding(torch.tensor([[1, 5, 2, 7]])).requires_grad_(True)
    model.token_embedding.forward = lambda ids: embedded
    last = model(torch.zeros(1, 4, dtype=torch.long))[0, -1, 3]
    assert torch.autograd.grad(last, embedded)[0].abs().sum(-1).min() > 0


@fixture_is_a_function
@given(token_rows, st.data())
def test_steps_with_a_cache_equal_the_full_forward(make_gpt, tokens, data):
    model = make_gpt()
    start = data.draw(st.integers(1, len(tokens)))
    ids = torch.tensor([tokens, tokens[::-1]])
    logits, past = model.step(ids[:, :start], None)
    collected = [logits]
    for t in range(start, len(tokens)):
        logits, past = model.step(ids[:, t : t + 1], past)
        collected.append(logits)
    torch.testing.assert_close(torch.cat(collected, dim=1), model(ids), rtol=1e-10, atol=1e-10)


def test_rows_of_a_batch_do_not_read_each_other(make_gpt):
    model = make_gpt()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    torch.testing.assert_close(model(ids)[1:], model(ids[1:]), rtol=1e-12, atol=1e-12)


def test_output_layer_and_token_embedding_are_one_tensor_also_in_a_copy(make_gpt):
    for model in (make_gpt(), copy.deepcopy(make_gpt())):
        assert model.lm_head.weight is model.token_embedding.weight
        assert "lm_head.weight" not in dict(model.named_parameters())


def test_gradients_of_every_parameter_pass_gradcheck(make_gpt):
    model = make_gpt(vocab_size=5, context=3, n_layer=1, n_head=2, n_embd=4)
    ids = torch.tensor([[1, 4, 2]])
    names, values = zip(*model.named_parameters(), strict=True)

    def logits(*parameters):
        return functional_call(model, dict(zip(names, parameters, strict=True)), (ids,))

    assert torch.autograd.gradcheck(logits, [value.clone().requires_grad_(True) for value in values], fast_mode=True)


def test_a_fresh_model_guesses_almost_uniformly():
    model = GPT(GPTConfig(vocab_size=50, context=8, n_layer=2, n_head=2, n_embd=16))
    log_probabilities = model(torch.tensor([[3, 1, 4]])).log_softmax(-1)
    assert (log_probabilities + math.log(50)).abs().max() < 1


@pytest.mark.parametrize(
    ("seen", "new", "message"),
    [
        (0, 10, "at most 9 tokens, got 10: shorten it"),
        (9, 1, "at most 9 tokens, got 10: shorten it"),
        (2, 3, "one token at a time, got 3"),
    ],
)
def test_a_sequence_beyond_the_context_or_the_cache_is_refused(make_gpt, seen, new, message):
    model = make_gpt()
    past = model.step(torch.zeros(1, seen, dtype=torch.long), None)[1] if seen else None
    with pytest.raises(ValueError, match=message):
        model.step(torch.zeros(1, new, dtype=torch.long), past)


@pytest.mark.parametrize("name", ["vocab_size", "context", "n_layer", "n_head", "n_embd"])
def test_a_size_below_one_is_refused_by_name(name):
    sizes = {"vocab_size": 11, "context": 9, "n_layer": 2, "n_head": 2, "n_embd": 6, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        GPTConfig(**sizes)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="n_embd must be a multiple of n_head, got 6 and 4"):
        GPTConfig(vocab_size=11, n_head=4, n_embd=6)
