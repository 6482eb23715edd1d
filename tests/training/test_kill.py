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


@pytest.mark.slow
@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs the signals of a POSIX system")
def test_killed_twenty_times_a_run_ends_with_the_same_adapter_bit_for_bit(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.killed_run"])  # PyTorch is imported once, not for every kill
    path, rng = tmp_path / "run.safetensors", random.Random(20)

    start = time.perf_counter()
    whole = context.Process(target=run, args=(tmp_path / "whole.safetensors", tmp_path / "expected"))
    whole.start()
    whole.join(120)
    assert whole.exitcode == 0
    longest = (time.perf_counter() - start) / 4

    kills, reached = 0, [0]
    while kills < KILLS:
        process = context.Process(target=run, args=(path,))
        process.start()
        # Half of the waits begin when a step is done, so that they end in the middle of later steps and writes however slow the start is.
        if kills % 2:
            before = path.stat().st_mtime_ns if path.exists() else 0
            while process.is_alive() and (path.stat().st_mtime_ns if path.exists() else 0) == before:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
        else:
            time.sleep(rng.uniform(0, longest))
        process.kill()
        process.join(30)
        reached.append(steps_done(path))
        assert reached[-1] >= reached[-2]
        if process.exitcode == 0:  # it was done before the kill
            break
        kills += 1
    assert kills == KILLS, f"the run was over after {kills} kills: {reached}"
    assert 0 < reached[-1] < STEPS
    assert len(set(reached)) > 5
    print("REACHED", reached)

    last = context.Process(target=run, args=(path, tmp_path / "found"))
    last.start()
    last.join(120)
    assert last.exitcode == 0
    expected, found = load_file(tmp_path / "expected"), load_file(tmp_path / "found")
    assert same(expected, found)
    ours, theirs = (read_checkpoint(file)[0] for file in (path, tmp_path / "whole.safetensors"))
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
