"""The training loop on a model of a few weights that records what it is shown."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lorabook import LoRAConfig, add_lora
from lorabook.language.likelihood import IGNORE, sequence_example
from lorabook.training.loop import learning_rate_factor, train

VOCAB_SIZE = 7
# A different first token each, so that a row shown to the model tells which example it is.
EXAMPLES = [sequence_example([first, *((first + i) % VOCAB_SIZE for i in range(1, 3 + first % 3))]) for first in range(VOCAB_SIZE)]


class Recorder(nn.Module):
    def __init__(self, seed=0, dropout=0.0):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, 5)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(5, VOCAB_SIZE)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)
        self.seen, self.modes = [], []

    def forward(self, input_ids):
        self.seen.append(input_ids[:, 0].tolist())
        self.modes.append(self.training)
        return self.head(self.dropout(self.embedding(input_ids)))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def run(model, **settings):
    return train(model, EXAMPLES, **{"steps": 6, "learning_rate": 0.05, "batch_size": 3, **settings})


def mean_loss(model, batch):
    scores = [model(torch.tensor([EXAMPLES[index][0]]))[0].log_softmax(-1) for index in batch]
    return -torch.stack(
        [line[t, label] for index, line in zip(batch, scores, strict=True) for t, label in enumerate(EXAMPLES[index][1])]
    ).mean()


def test_only_trainable_parameters_move():
    model = Recorder()
    add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("head",)), generator=torch.Generator().manual_seed(0))
    before = weights(model)
    run(model, weight_decay=0.1)
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved == {"head.lora_A", "head.lora_B"}


def test_the_loss_goes_down():
    losses = run(Recorder(), steps=60, batch_size=7).losses
    assert losses[-1] < losses[0] / 4


def test_the_log_holds_the_mean_loss_per_target_token_of_each_batch():
    model = Recorder()
    log = run(model, learning_rate=0.0)  # so that the weights stay as they are
    batches = list(model.seen)
    expected = [mean_loss(model, batch).item() for batch in batches]
    assert log.losses == pytest.approx(expected, rel=1e-6)
    assert log.target_tokens == sum(len(EXAMPLES[index][1]) for batch in batches for index in batch)
    assert log.seconds > 0


def test_the_first_step_of_adam_moves_every_weight_by_the_learning_rate():
    model = Recorder()
    before = weights(model)
    run(model, steps=1, batch_size=7, learning_rate=0.01, clip_norm=1e9)
    for name, tensor in weights(model).items():
        torch.testing.assert_close((tensor - before[name]).abs(), torch.full_like(tensor, 0.01), rtol=1e-3, atol=0)


def test_a_run_equals_adam_written_out_with_the_schedule_the_clipping_and_the_decay():
    model, reference = Recorder(), Recorder()
    run(model, steps=8, warmup=0.25, clip_norm=0.5, weight_decay=0.1)
    parameters = list(reference.parameters())
    first, second = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    for step, batch in enumerate(model.seen):
        rate = 0.05 * learning_rate_factor(step, 8, 2)
        gradients = torch.autograd.grad(mean_loss(reference, batch), parameters)
        shrink = min(1.0, 0.5 / torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            m.mul_(0.9).add_(0.1 * shrink * g)
            v.mul_(0.98).add_(0.02 * (shrink * g) ** 2)
            update = m / (1 - 0.9 ** (step + 1)) / ((v / (1 - 0.98 ** (step + 1))).sqrt() + 1e-8)
            p.data.sub_(rate * (update + (0.1 if p.dim() > 1 else 0.0) * p.data))
    for name, tensor in weights(model).items():
        torch.testing.assert_close(tensor, weights(reference)[name], rtol=1e-4, atol=1e-4)


def test_matrices_decay_apart_from_the_gradient_and_biases_do_not():
    plain, decayed = Recorder(), Recorder()
    start = weights(plain)
    run(plain, steps=1, batch_size=7, learning_rate=0.01)
    run(decayed, steps=1, batch_size=7, learning_rate=0.01, weight_decay=0.5)
    for name, tensor in weights(plain).items():
        shrinks = 0.0 if name == "head.bias" else 0.01 * 0.5
        torch.testing.assert_close(weights(decayed)[name], tensor - shrinks * start[name])


def test_gradients_are_clipped_together():
    model = Recorder()
    run(model, clip_norm=1e-3)
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_seed_decides_the_run(dropout):
    first, second, other = Recorder(dropout=dropout), Recorder(dropout=dropout), Recorder(dropout=dropout)
    logs = [run(first, seed=3), run(second, seed=3), run(other, seed=4)]
    assert logs[0].losses == logs[1].losses != logs[2].losses
    assert first.seen == second.seen != other.seen
    assert same(weights(first), weights(second))


@given(st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_every_example_is_visited_once_an_epoch(batch_size, seed):
    model = Recorder()
    run(model, steps=7, batch_size=batch_size, seed=seed)  # 7 batches of b are b epochs of 7
    assert {len(batch) for batch in model.seen} == {batch_size}
    visited = [index for batch in model.seen for index in batch]
    for epoch in range(batch_size):
        assert sorted(visited[7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_each_epoch_has_its_own_order():
    model = Recorder()
    run(model, steps=20, batch_size=7)
    assert len({tuple(batch) for batch in model.seen}) > 10


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_and_global_generator_are_restored(training):
    model, state = Recorder(dropout=0.5).train(training), torch.get_rng_state()
    run(model)
    assert model.modes == [True] * 6
    assert model.training is model.dropout.training is training
    assert torch.equal(torch.get_rng_state(), state)


class Failing(Recorder):
    """Gives a loss that is not finite at the third step, and remembers its weights from before."""

    def __init__(self, value):
        super().__init__(dropout=0.5)
        self.value = value

    def forward(self, input_ids):
        logits = super().forward(input_ids)
        if len(self.seen) == 3:
            self.before = weights(self)
            return logits * self.value
        return logits


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_before_its_update(value):
    model, state = Failing(value).eval(), torch.get_rng_state()
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step 2: lower the learning rate"):
        run(model)
    assert same(weights(model), model.before)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "need examples, steps and batch_size of at least 1, got 7, 0 and 3"),
        ({"batch_size": 0}, "need examples, steps and batch_size of at least 1, got 7, 6 and 0"),
    ],
)
def test_an_empty_run_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        run(Recorder(), **settings)


def test_nothing_to_train_and_nothing_to_learn_from_are_refused():
    with pytest.raises(ValueError, match="no parameter requires a gradient: add an adapter or unfreeze something"):
        run(Recorder().requires_grad_(False))
    with pytest.raises(ValueError, match="got 0, 6 and 32"):
        train(Recorder(), [], steps=6, learning_rate=0.1)


def test_a_masked_prompt_teaches_nothing():
    model = Recorder()
    before = weights(model)
    train(model, [([1, 2, 3], [IGNORE, IGNORE, 4])], steps=3, learning_rate=0.1, batch_size=1)
    moved = (weights(model)["embedding.weight"] != before["embedding.weight"]).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [3]  # only the last input has a label


@given(st.integers(1, 300), st.data())
def test_the_learning_rate_rises_evenly_to_one_and_falls_towards_zero(steps, data):
    warmup_steps = data.draw(st.integers(1, steps))
    factors = [learning_rate_factor(step, steps, warmup_steps) for step in range(steps + 1)]
    assert factors[:warmup_steps] == pytest.approx([(i + 1) / warmup_steps for i in range(warmup_steps)])
    decay = factors[warmup_steps:]
    assert decay[0] == 1
    assert all(later < earlier for earlier, later in pairwise(decay))
    assert all(0 < factor <= 1 for factor in factors[:steps])
    if steps > warmup_steps:
        assert factors[steps] == pytest.approx(0, abs=1e-12)


def test_a_batch_without_labels_is_named_as_such():
    model = nn.Embedding(7, 7)
    with pytest.raises(ValueError, match="no target token"):
        train(model, [([1, 2], [-100, -100])], steps=1, learning_rate=0.1)


def test_a_part_in_evaluation_mode_stays_in_it():
    model = nn.Sequential(nn.Embedding(7, 5), nn.Dropout(0.5), nn.Linear(5, 7))
    model[1].eval()
    train(model, [([1, 2], [2, 3])], steps=1, learning_rate=0.1)
    assert model.training
    assert not model[1].training


@pytest.mark.parametrize(
    "setting", [{"clip_norm": 0.0}, {"clip_norm": -1.0}, {"clip_norm": float("nan")}, {"warmup": 10}, {"warmup": -0.1}]
)
def test_a_clipping_or_a_warmup_that_would_train_wrongly_is_refused(setting):
    with pytest.raises(ValueError, match="clip_norm above 0 and a warmup from 0 to 1"):
        run(Recorder(), **setting)


def test_a_gradient_that_is_not_finite_stops_the_run_before_its_update():
    class Steep(nn.Module):
        """Its loss is finite, and the gradient of the square root at zero is not."""

        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 7))
            self.shift = nn.Parameter(torch.zeros(7))

        def forward(self, ids):
            return self.body(ids) + self.shift.abs().sqrt()

    model = Steep()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(FloatingPointError, match="norm of the gradient is nan at step 0"):
        train(model, [([1, 2], [2, 3])], steps=1, learning_rate=0.1, batch_size=1)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("frozen", [True, False])
def test_running_means_of_a_frozen_norm_stay_and_those_of_one_that_trains_move(frozen):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm, self.out = nn.Embedding(7, 6), nn.BatchNorm1d(6), nn.Linear(6, 7)

        def forward(self, ids):
            return self.out(self.norm(self.table(ids).transpose(1, 2)).transpose(1, 2))

    model = Normed()
    if frozen:
        add_lora(model, LoRAConfig(rank=2, targets=("out",)))
    train(model, [([1, 2], [2, 3])], steps=2, learning_rate=0.1, batch_size=1)
    assert torch.equal(model.norm.running_mean, torch.zeros(6)) == frozen
    assert model.norm.training
