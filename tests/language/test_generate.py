"""Decoding, against a loop that recomputes everything for each token."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorabook.language.generate import generate

NEVER = -1  # an id that no model produces
prompts = st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=9), max_size=5)
fixture_is_a_function = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)


def naive_greedy(model, prompt, max_new_tokens, stop_id):
    tokens = list(prompt)
    while len(tokens) < min(len(prompt) + max_new_tokens, model.config.context):
        token = int(model(torch.tensor([tokens]))[0, -1].argmax())
        if token == stop_id:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@fixture_is_a_function
@given(prompts, st.integers(0, 9), st.integers(-1, 10), st.integers(1, 4), st.integers(0, 1000))
def test_greedy_decoding_equals_the_loop_without_a_cache(make_gpt, rows, limit, stop_id, batch_size, seed):
    model = make_gpt(seed)
    found = generate(model, rows, max_new_tokens=limit, stop_id=stop_id, batch_size=batch_size)
    assert found == [naive_greedy(model, row, limit, stop_id) for row in rows]


def test_the_stop_token_ends_a_row_and_is_not_returned(make_gpt):
    model = make_gpt()
    free = generate(model, [[1, 2], [3, 4]], max_new_tokens=7, stop_id=NEVER)
    assert [len(row) for row in free] == [7, 7]
    stop_id = free[0][-1]
    assert generate(model, [[1, 2]], max_new_tokens=7, stop_id=stop_id) == [free[0][: free[0].index(stop_id)]]


def test_a_full_context_leaves_nothing_to_add(make_gpt):
    assert generate(make_gpt(), [[1] * 9, [1] * 8], max_new_tokens=5, stop_id=NEVER)[0] == []


def sample(model, seed, temperature=1.0, count=6):
    generator = torch.Generator().manual_seed(seed)
    return generate(model, [[1, 2]] * count, max_new_tokens=6, stop_id=NEVER, temperature=temperature, generator=generator)


def test_sampling_repeats_with_the_seed_and_leaves_the_global_generator_alone(make_gpt):
    model = make_gpt()
    state = torch.get_rng_state()
    first = sample(model, 7)
    assert torch.equal(state, torch.get_rng_state())
    assert sample(model, 7) == first
    assert sample(model, 8) != first


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_sampled_tokens_follow_the_softmax_at_the_temperature(make_gpt, temperature):
    model, count = make_gpt(), 4000
    rows = generate(
        model,
        [[1, 2]] * count,
        max_new_tokens=1,
        stop_id=NEVER,
        temperature=temperature,
        generator=torch.Generator().manual_seed(0),
        batch_size=count,
    )
    frequencies = torch.bincount(torch.tensor(rows).flatten(), minlength=11) / count
    expected = (model(torch.tensor([[1, 2]]))[0, -1] / temperature).softmax(-1)
    five_sigma = 5 * (expected * (1 - expected) / count).sqrt() + 1 / count
    assert ((frequencies - expected).abs() < five_sigma).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_restored(make_gpt, training):
    model = make_gpt().train(training)
    modes = []
    model.final_norm.register_forward_hook(lambda *_: modes.append(model.training))
    generate(model, [[1]], max_new_tokens=3, stop_id=NEVER)
    assert modes == [False] * 3
    assert model.training is model.final_norm.training is training


def test_the_training_mode_is_restored_after_an_exception(make_gpt):
    model = make_gpt().train()
    with pytest.raises(IndexError):
        generate(model, [[1], [99, 1]], max_new_tokens=3, stop_id=NEVER)
    assert model.training
    assert model.final_norm.training


def test_no_gradient_is_recorded(make_gpt):
    model = make_gpt().requires_grad_(True)
    recorded = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: recorded.append(output.requires_grad))
    generate(model, [[1, 2]], max_new_tokens=2, stop_id=NEVER)
    assert recorded == [False, False]


@pytest.mark.parametrize(
    ("rows", "temperature", "message"),
    [
        ([[1], []], 0.0, "1 to 9 tokens, got 0 in prompt 1"),
        ([[1] * 10], 0.0, "1 to 9 tokens, got 10 in prompt 0"),
        ([[1]], -0.5, "temperature must be 0, or positive with a generator; got -0.5"),
        ([[1]], 1.0, "temperature must be 0, or positive with a generator; got 1.0 and None"),
    ],
)
def test_what_cannot_be_decoded_is_refused(make_gpt, rows, temperature, message):
    with pytest.raises(ValueError, match=message):
        generate(make_gpt(), rows, max_new_tokens=2, stop_id=NEVER, temperature=temperature)
