"""A run that is stopped and goes on, against the run that never stopped."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lorabook.training import checkpoint as module
from lorabook.training.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from lorabook.training.loop import train
from tests.training.tiny import SETTINGS, VOCAB_SIZE, adapted_gpt, examples, same, trained


class StoppedError(Exception):
    pass


def run(model, path=None, **settings):
    return train(model, examples(), **{**SETTINGS, "checkpoint": path, "checkpoint_every": 1, **settings})


@pytest.fixture
def stop_after(monkeypatch):
    """Let the run fail right after it has written its n-th checkpoint."""

    def arrange(count):
        written = []

        def write(*arguments):
            write_checkpoint(*arguments)
            written.append(arguments)
            if len(written) == count:
                monkeypatch.setattr(module, "write_checkpoint", write_checkpoint)
                raise StoppedError

        monkeypatch.setattr(module, "write_checkpoint", write)

    return arrange


@pytest.mark.parametrize("steps_done", [1, 3, 7, 11])
@pytest.mark.parametrize("variant", [{}, {"dropout": 0.4}, {"dora": True, "dropout": 0.2}, {"init": "pissa"}, {"bias": "all"}])
def test_resuming_equals_never_having_stopped_bit_for_bit(tmp_path, stop_after, variant, steps_done):
    settings = {"micro_batch_size": 2, "weight_decay": 0.1, "lora_plus_ratio": 4.0}
    whole, first, second = (adapted_gpt(**variant) for _ in range(3))
    log = run(whole, **settings)
    stop_after(steps_done)
    with pytest.raises(StoppedError):
        run(first, tmp_path / "run.safetensors", **settings)
    for parameter in second.parameters():
        if parameter.requires_grad:  # to be brought by the checkpoint
            parameter.data.fill_(7.0)
    torch.rand(9)  # the process that goes on has another past
    resumed = run(second, tmp_path / "run.safetensors", **settings)
    assert resumed.resumed_at == steps_done
    assert resumed.losses == log.losses
    assert (resumed.target_tokens, resumed.tokens) == (log.target_tokens, log.tokens)
    assert same(trained(second), trained(whole))
    assert not same(trained(first), trained(whole))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding, self.norm, self.head = nn.Embedding(VOCAB_SIZE, 6), nn.BatchNorm1d(6), nn.Linear(6, VOCAB_SIZE)

    def forward(self, input_ids):
        return self.head(self.norm(self.embedding(input_ids).transpose(1, 2)).transpose(1, 2))


class Averaging(nn.Module):
    """Holds buffers in modules without a weight: running means, and a moving average of its own."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table, self.norm, self.out = nn.Embedding(VOCAB_SIZE, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, VOCAB_SIZE)
        self.register_buffer("average", torch.zeros(6))

    def forward(self, ids):
        hidden = self.norm(self.table(ids).transpose(1, 2)).transpose(1, 2)
        if self.training:
            self.average.lerp_(hidden.detach().mean(dim=(0, 1)), 0.1)
        return self.out(hidden + self.average)


@pytest.mark.parametrize("kind", [Normed, Averaging])
def test_full_fine_tuning_resumes_too_and_buffers_with_it(kind, tmp_path, stop_after):
    whole, first, second = kind(), kind(), kind()
    run(whole)
    stop_after(5)
    with pytest.raises(StoppedError):
        run(first, tmp_path / "run")
    run(second, tmp_path / "run")
    assert same(whole.state_dict(), second.state_dict())
    assert not same(whole.state_dict(), first.state_dict())


def test_the_interval_does_not_change_the_run(tmp_path):
    models = [adapted_gpt(dropout=0.3) for _ in range(3)]
    for index, every in enumerate((1, 5, 100)):
        run(models[index], tmp_path / str(every), checkpoint_every=every)
    assert same(trained(models[0]), trained(models[1]))
    assert same(trained(models[0]), trained(models[2]))


def test_a_finished_run_is_returned_at_once(tmp_path):
    first, again = adapted_gpt(), adapted_gpt()
    log = run(first, tmp_path / "run", checkpoint_every=100)
    again.forward = None  # calling it would fail
    repeated = run(again, tmp_path / "run", checkpoint_every=100)
    assert repeated.resumed_at == SETTINGS["steps"]
    assert (repeated.losses, repeated.seconds) == (log.losses, log.seconds)
    assert same(trained(first), trained(again))


def test_the_file_is_one_plain_safetensors_file_with_json_beside_the_tensors(tmp_path):
    run(adapted_gpt(), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with safe_open(tmp_path / "run", framework="pt") as file:
        description = json.loads(file.metadata()["lorabook checkpoint"])
        names = list(file.keys())
    assert description["identity"]["learning_rate"] == SETTINGS["learning_rate"]
    assert not any("base.weight" in name for name in names)  # frozen weights are not stored
    assert {name.split(".")[0] for name in names} == {"parameters", "optimizer", "batches", "rng", "losses"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 0.04}, "here learning_rate is 0.04, there 0.03; call train as then, or name another"),
        ({"seed": 1, "batch_size": 4}, "here batch_size is 4, there 5; seed is 1, there 0; call"),
        ({"steps": 13}, "here steps is 13, there 12;"),
        ({"micro_batch_size": 2}, "micro_batch_size is 2, there None"),
        ({"weight_decay": 0.1}, "weight_decay is 0.1, there 0.0"),
        ({"warmup": 0.1}, "warmup is 0.1"),
        ({"clip_norm": 2.0}, "clip_norm is 2.0"),
        ({"lora_plus_ratio": 2.0}, "lora_plus_ratio is 2.0"),
        ({"precision": "bfloat16"}, "precision is bfloat16, there float32"),
    ],
)
def test_other_settings_are_named_and_nothing_changes(tmp_path, changed, message):
    run(adapted_gpt(), tmp_path / "run")
    model, state = adapted_gpt(), torch.get_rng_state()
    before = trained(model)
    with pytest.raises(CheckpointError, match="is of another run") as caught:
        run(model, tmp_path / "run", **changed)
    assert message in str(caught.value)
    assert same(trained(model), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("variant", "what"),
    [({"dropout": 0.1}, "layers"), ({"seed": 3}, "frozen weights"), ({"rank_stabilized": True}, "layers")],
)
def test_another_model_is_recognized(tmp_path, variant, what):
    run(adapted_gpt(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=f"here {what} is"):
        run(adapted_gpt(**variant), tmp_path / "run")


def test_one_changed_token_among_the_examples_is_recognized(tmp_path):
    run(adapted_gpt(), tmp_path / "run")
    changed = examples()
    changed[4][1][-1] = (changed[4][1][-1] + 1) % VOCAB_SIZE
    with pytest.raises(CheckpointError, match="here examples is"):
        train(adapted_gpt(), changed, **SETTINGS, checkpoint=tmp_path / "run")


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def _other_file(path):
    save_file({"x": torch.zeros(2)}, path)


def _pickle(path):
    torch.save({"x": torch.zeros(2)}, path)


def _rewrite(path, change):
    tensors, description = read_checkpoint(path)
    change(tensors, description)
    write_checkpoint(path, tensors, description)


DAMAGES = {
    "truncated": (_truncate, "is not a checkpoint that can be read"),
    "empty": (lambda path: path.write_bytes(b""), "is not a checkpoint that can be read"),
    "another safetensors file": (_other_file, "is not a checkpoint that can be read"),
    "a pickle": (_pickle, "is not a checkpoint that can be read"),
    "a parameter gone": (lambda path: _rewrite(path, lambda t, d: t.pop(next(k for k in t if k.endswith("lora_A")))), "does not fit"),
    "a wrong shape": (
        lambda path: _rewrite(path, lambda t, d: t.update({k: t[k][:1] for k in t if k.startswith("parameters") and k.endswith("lora_B")})),
        "does not fit",
    ),
    "a moment of a wrong type": (
        lambda path: _rewrite(path, lambda t, d: t.update({k: t[k].double() for k in t if "exp_avg" in k})),
        "does not fit",
    ),
    "an index of no example": (lambda path: _rewrite(path, lambda t, d: t.update({"batches.queue": torch.tensor([99])})), "does not fit"),
    "a foreign generator": (lambda path: _rewrite(path, lambda t, d: t.update({"batches.generator": torch.zeros(3)})), "does not fit"),
    "a foreign global generator": (lambda path: _rewrite(path, lambda t, d: t.update({"rng.0.cpu": torch.zeros(3)})), "does not fit"),
    "an unknown count": (lambda path: _rewrite(path, lambda t, d: d["tally"].update(more=1)), "does not fit"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_checkpoint_of_this_run_is_refused_before_anything_changes(tmp_path, damage):
    spoil, message = DAMAGES[damage]
    run(adapted_gpt(), tmp_path / "run")
    spoil(tmp_path / "run")
    model, state = adapted_gpt(), torch.get_rng_state()
    before = trained(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        run(model, tmp_path / "run")
    assert "delete it to begin anew" in str(caught.value)
    assert same(trained(model), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a checkpoint that can be read"):
        run(adapted_gpt(), tmp_path)


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, fails):
    path = tmp_path / "run"
    write_checkpoint(path, {"x": torch.zeros(3)}, {"identity": {}, "tally": {}})

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, fail)
        with pytest.raises(OSError, match="no space left"):
            write_checkpoint(path, {"x": torch.ones(3)}, {"identity": {}, "tally": {}})
    assert load_file(path)["x"].tolist() == [0, 0, 0]
    write_checkpoint(path, {"x": torch.ones(3)}, {"identity": {}, "tally": {}})
    assert load_file(path)["x"].tolist() == [1, 1, 1]
    assert [found.name for found in tmp_path.iterdir()] == ["run"]


def test_what_is_renamed_is_on_the_disk(tmp_path, monkeypatch):
    """The order: write, fsync the file, rename, fsync the folder."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (calls.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    write_checkpoint(tmp_path / "deep" / "run", {"x": torch.zeros(3)}, {})
    assert calls == ["file", "rename", "folder"]


@pytest.mark.parametrize("settings", [{"checkpoint_every": 0}, {"micro_batch_size": 0}])
def test_intervals_below_one_are_refused(tmp_path, settings):
    with pytest.raises(ValueError, match="need micro_batch_size and checkpoint_every of at least 1"):
        run(adapted_gpt(), tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_numpys_numbers_are_settings_and_an_address_in_a_description_is_none(tmp_path):
    def model():
        made = adapted_gpt()
        made.extra_repr = lambda: f"{object()}"  # at another address each time
        return made

    settings = {**SETTINGS, "learning_rate": np.float32(0.03), "batch_size": np.int64(5)}
    train(model(), examples(), **settings, checkpoint=tmp_path / "run")
    assert len(train(model(), examples(), **settings, checkpoint=tmp_path / "run").losses) == SETTINGS["steps"]
