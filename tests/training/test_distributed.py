"""Two processes against one: the same adapter, and nothing on the wire but its gradient."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lorabook.training.distributed import agree, gather, process_group, shard_frozen_weights, share
from lorabook.training.loop import train
from tests.training.rank_run import SCENARIOS, build
from tests.training.tiny import SETTINGS, adapted_gpt, examples, same, trained

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch built without distributed")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Reports and adapters of two processes with the variables that torchrun sets, by scenario and rank."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "tests.training.rank_run", str(folder)]
    processes = []
    for number in "01":
        variables = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        outputs = [process.communicate(timeout=250)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    reports = [json.loads((folder / f"reports.{number}").read_text()) for number in "01"]
    return {name: [(reports[number][name], load_file(folder / f"{name}.{number}")) for number in (0, 1)] for name in SCENARIOS}


def alone(scenario, **changed):
    model = build(scenario)
    settings = {name: value for name, value in (SCENARIOS[scenario] | changed).items() if name != "shard_frozen"}
    return train(model, examples(), **{**SETTINGS, **settings}), trained(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    ["micro-batches", "clipped", "whole shares", "one at a time", "one example on the second rank", "sharded", "sharded, one at a time"],
)
def test_two_processes_train_to_the_adapter_of_one_and_send_its_gradient_alone(ranks, scenario):
    (first, adapter), (second, other) = ranks[scenario]
    log, expected = alone(scenario)
    start = trained(build(scenario))
    assert (first["failed"], first["ranks"], first["main"]) == (None, 2, True)
    assert (second["failed"], second["ranks"], second["main"]) == (None, 2, False)
    assert same(adapter, other)
    for name, tensor in expected.items():
        torch.testing.assert_close(adapter[name], tensor, rtol=1e-10, atol=1e-10)
        assert (tensor - start[name]).abs().max() > 0.05  # far more than the tolerance
    assert first["losses"] == second["losses"] == pytest.approx(log.losses, rel=1e-5)
    assert first["tokens"] == [log.tokens, log.target_tokens]
    adapter_bytes = sum(tensor.nbytes for tensor in expected.values())
    assert first["gradient_bytes"] == second["gradient_bytes"] == SETTINGS["steps"] * adapter_bytes


@pytest.mark.slow
def test_in_float32_two_processes_are_as_near_to_the_exact_adapter_as_one(ranks):
    """Adam enlarges rounding, a hundred times more in one order of adding than in another, so the measure of what it does is the largest
    error of one process, however that cuts its batches."""

    def error(adapter):
        return max((tensor.double() - exact[name]).abs().max().item() for name, tensor in adapter.items())

    (found, adapter), _ = ranks["float32"]
    (_, alone32), (_, exact) = alone("float32"), alone("micro-batches")
    cuts = [alone("float32", micro_batch_size=size)[1] for size in range(1, 6)]
    assert max(map(error, cuts)) < 0.01  # every tensor moves by more than 0.05
    assert error(adapter) < 3 * max(map(error, cuts))
    assert found["gradient_bytes"] == SETTINGS["steps"] * sum(tensor.nbytes for tensor in alone32.values())


@pytest.mark.slow
def test_a_sharded_base_has_the_fingerprint_of_the_whole_one(ranks):
    assert all(found["same_base"] for found, _ in ranks["sharded"])


@pytest.mark.slow
def test_sharded_frozen_weights_are_held_in_parts_and_others_whole(ranks):
    held, whole = zip(*(found["frozen_numbers"] for found, _ in ranks["sharded"]), strict=True)
    assert sum(held) == whole[0] == whole[1]
    assert max(held) < 0.6 * whole[0]
    assert all(len(set(found["frozen_numbers"])) == 1 for found, _ in ranks["whole shares"])


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_after_one_step_and_they_resume_bit_for_bit(ranks):
    (_, whole), (_, other) = ranks["dropout"]
    assert same(whole, other)
    (first, stopped), (second, stopped_too) = ranks["dropout, stopped"]
    assert first["failed"] == second["failed"] == "Interrupted: 143"
    assert same(stopped, stopped_too)
    assert not same(stopped, whole)
    for found, adapter in ranks["dropout, resumed"]:
        assert found["resumed_at"] == 3
        assert same(adapter, whole)
    assert ranks["dropout, resumed"][0][0]["losses"] == ranks["dropout"][0][0]["losses"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "message"),
    [("other seeds", "are to do one run, but here seed is"), ("too few", "batch_size must be at least 2, one for each rank, got 1")],
)
def test_ranks_that_cannot_work_together_say_so_on_each(ranks, scenario, message):
    assert all(message in found["failed"] for found, _ in ranks[scenario])


def test_without_torchrun_there_is_one_rank(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with process_group():
        assert not torch.distributed.is_initialized()
        assert share([1, 2, 3]) == [1, 2, 3]
        assert gather("x") == ["x"]
        assert agree(torch.tensor(0.5), True) == (0.5, True)


def test_sharding_without_ranks_is_refused():
    model = adapted_gpt()
    with pytest.raises(ValueError, match="shard_frozen needs several processes: start the script with torchrun"):
        shard_frozen_weights(model)
    with pytest.raises(ValueError, match="start the script with torchrun"):
        train(model, examples(), **SETTINGS, shard_frozen=True)
