"""The small parts of a run: the order of examples, what identifies a run, what is counted and shown, precision, seeding."""

import io
from contextlib import redirect_stderr
from statistics import mean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorabook.training.batches import Batches, count_targets
from lorabook.training.identity import differences, run_identity
from lorabook.training.loop import train
from lorabook.training.progress import Progress, Tally
from lorabook.training.runtime import autocast, resolve_precision, seeded
from tests.training.tiny import SETTINGS, adapted_gpt, examples

NUMBERED = [([index], [index]) for index in range(5)]


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_batches_go_on_from_a_state_as_if_never_stopped(batch_size, drawn, seed):
    first, second = Batches(NUMBERED, batch_size, seed), Batches(NUMBERED, batch_size, seed + 1)
    for _ in range(drawn):
        first.draw()
    second.load_state(first.state())
    assert [first.draw() for _ in range(6)] == [second.draw() for _ in range(6)]


@pytest.mark.parametrize("change", [{"queue": torch.tensor([5])}, {"queue": torch.tensor([-1])}, {"generator": torch.zeros(4)}])
def test_a_foreign_state_of_batches_is_refused_and_changes_nothing(change):
    batches, untouched = Batches(NUMBERED, 3, 0), Batches(NUMBERED, 3, 0)
    with pytest.raises(ValueError, match=r"the queue names examples that are not there|not the state of a random generator"):
        batches.load_state({**batches.state(), **change})
    assert [batches.draw() for _ in range(4)] == [untouched.draw() for _ in range(4)]


def test_targets_are_counted_and_prompts_are_not():
    assert count_targets(examples(2)) == 16 + 1
    assert count_targets([]) == 0


def test_a_run_is_recognized_whatever_its_trained_weights_and_not_when_anything_else_differs():
    model, same = adapted_gpt(), adapted_gpt()
    same.blocks[0].up_proj.lora_A.data.fill_(5)
    mine = run_identity(model, examples(), {"steps": 3})
    assert differences(mine, run_identity(same, examples(), {"steps": 3})) == ""
    same.blocks[0].up_proj.base.bias.data[0] += 1e-3
    assert "frozen weights" in differences(mine, run_identity(same, examples(), {"steps": 3}))
    assert differences(mine, {**mine, "steps": 4}) == "steps is 3, there 4"
    assert "examples" in differences(mine, run_identity(model, examples()[::-1], {"steps": 3}))


def test_moving_a_token_from_one_example_to_the_next_makes_other_examples():
    model = adapted_gpt()
    first, second = [([1, 2], [2, 3]), ([4], [5])], [([1], [2]), ([2, 4], [3, 5])]
    assert "examples" in differences(run_identity(model, first, {}), run_identity(model, second, {}))


def test_time_and_tokens_go_on_from_an_earlier_call():
    tally = Tally([1.0], seconds=100.0, target_tokens=10, tokens=20)
    with Progress(tally, steps=2, description="x", shown=False) as progress:
        progress.step(0.5, target_tokens=3, tokens=8)
    assert (tally.losses, tally.target_tokens, tally.tokens) == ([1.0, 0.5], 13, 28)
    assert 100 < tally.seconds < 160


def test_the_bar_shows_loss_speed_and_time_left_and_leaves_nothing_behind():
    screen = io.StringIO()
    with redirect_stderr(screen):
        tally = Tally([2.0] * 3, seconds=1.0)
        with Progress(tally, steps=5, description="tuning", shown=True) as progress:
            progress._bar.mininterval = 0
            progress.step(0.25, target_tokens=3, tokens=8)
    shown = screen.getvalue()
    assert "tuning" in shown
    assert "4/5" in shown
    assert "loss 0.250" in shown
    assert "tokens/s" in shown
    assert "<" in shown  # elapsed<left
    assert shown.rsplit("\r", 2)[1].strip() == ""
    assert shown.endswith("\r")


def test_the_log_counts_the_tokens_of_every_batch():
    log = train(adapted_gpt(), examples(), **{**SETTINGS, "steps": 11})  # 11 batches of 5 are 5 epochs of 11
    assert log.tokens == 5 * sum(len(inputs) for inputs, _ in examples())
    assert log.target_tokens == 5 * count_targets(examples())
    assert (log.resumed_at, log.gradient_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("device", "capable", "precision", "expected"),
    [
        ("cpu", True, "auto", "float32"),
        ("cuda", True, "auto", "bfloat16"),
        ("cuda", False, "auto", "float32"),
        ("mps", True, "auto", "float32"),
        ("cpu", False, "bfloat16", "bfloat16"),
        ("cuda", True, "float32", "float32"),
    ],
)
def test_auto_is_bfloat16_where_a_gpu_computes_in_it(monkeypatch, device, capable, precision, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capable and not including_emulation)
    assert resolve_precision(torch.device(device), precision) == expected


def test_another_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be auto, float32 or bfloat16, got 'half'"):
        train(adapted_gpt(), examples(), **SETTINGS, precision="half")


def test_float32_means_no_autocast():
    with autocast(torch.device("cpu"), "float32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with autocast(torch.device("cpu"), "bfloat16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_bfloat16_training_learns_and_leaves_the_adapter_in_float32():
    model, settings = adapted_gpt(), {**SETTINGS, "steps": 60}
    log, wide = train(model, examples(), **settings, precision="bfloat16"), train(adapted_gpt(), examples(), **settings)
    first, last = mean(log.losses[:11]), mean(log.losses[-11:])  # five epochs each: single batches differ more than training changes them
    assert last < 0.9 * first
    assert last == pytest.approx(mean(wide.losses[-11:]), rel=0.05)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_trained_parameters_in_half_precision_are_refused():
    with pytest.raises(ValueError, match=r"trained parameters must be float32 or wider, got torch.bfloat16"):
        train(adapted_gpt().bfloat16(), examples(), **SETTINGS)


def test_seeding_is_undone_after_the_block_and_after_an_exception():
    state = torch.get_rng_state()
    with seeded(5, torch.device("cpu")):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, torch.rand(3, generator=torch.Generator().manual_seed(5)))
    with pytest.raises(RuntimeError), seeded(6, torch.device("cpu")):
        torch.rand(3) @ torch.rand(4)
    assert torch.equal(torch.get_rng_state(), state)
