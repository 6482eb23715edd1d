"""kill -9 at random moments: the checkpoint stays readable, and the run ends where it would have ended."""

import multiprocessing
import random
import time

import pytest
import torch
from safetensors.torch import load_file

from lorabook.training.checkpoint import CheckpointError, read_checkpoint
from tests.training.killed_run import STEPS, run
from tests.training.tiny import same

KILLS = 20


def steps_done(path):
    """From the file alone; raises if it cannot be read."""
    return len(read_checkpoint(path)[0]["losses"]) if path.exists() else 0


def changed(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for_change(path, before, process):
    while process.is_alive() and changed(path) == before:
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs the signals of a POSIX system")
def test_killed_twenty_times_a_run_ends_with_the_same_adapter_bit_for_bit(tmp_path):
    context = multiprocessing.get_context("forkserver")
    # Imported once, not for every kill; the last one is what an optimizer imports when it is made.
    context.set_forkserver_preload(["lorabook.training.loop", "safetensors.torch", "torch._dynamo"])
    path, rng = tmp_path / "run.safetensors", random.Random(20)

    first = context.Process(target=run, args=(tmp_path / "first.safetensors", None, 1))
    first.start()  # so that what follows does not wait for PyTorch to be imported
    first.join(120)
    whole_path = tmp_path / "whole.safetensors"
    start = time.perf_counter()
    whole = context.Process(target=run, args=(whole_path, tmp_path / "expected"))
    whole.start()
    wait_for_change(whole_path, 0, whole)
    start_seconds = time.perf_counter() - start
    whole.join(120)
    assert whole.exitcode == 0
    step_seconds = read_checkpoint(whole_path)[1]["tally"]["seconds"] / STEPS

    kills, reached = 0, [0]
    while kills < KILLS:
        process, before = context.Process(target=run, args=(path,)), changed(path)
        process.start()
        # Most waits begin with a step that is done, so that they end somewhere in a later step or write, however slow the start is.
        if kills % 4:
            wait_for_change(path, before, process)
            time.sleep(rng.uniform(0, 4 * step_seconds))
        else:
            time.sleep(rng.uniform(0, start_seconds))
        process.kill()
        process.join(30)
        reached.append(steps_done(path))
        assert reached[-1] >= reached[-2]
        if process.exitcode == 0:  # it was done before the kill
            break
        kills += 1
    assert kills == KILLS, f"the run was over after {kills} kills: {reached}"
    assert 0 < reached[-1] < STEPS, reached
    assert len(set(reached)) > 10  # the kills were spread over the run

    last = context.Process(target=run, args=(path, tmp_path / "found"))
    last.start()
    last.join(120)
    assert last.exitcode == 0
    expected, found = load_file(tmp_path / "expected"), load_file(tmp_path / "found")
    assert same(expected, found)
    ours, theirs = (read_checkpoint(file)[0] for file in (path, whole_path))
    assert same(ours, theirs)  # the losses and the moments, too


def test_what_a_kill_leaves_beside_the_checkpoint_does_no_harm(tmp_path):
    path = tmp_path / "run.safetensors"
    (tmp_path / "run.safetensors.part").write_bytes(b"half a fi")
    run(path, steps=2)
    assert steps_done(path) == 2
    assert torch.equal(read_checkpoint(path)[0]["losses"], read_checkpoint(path)[0]["losses"])
    path.write_bytes(path.read_bytes()[:100])  # what an unsafe write would leave is noticed
    with pytest.raises(CheckpointError):
        steps_done(path)
