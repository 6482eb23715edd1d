"""What each of several processes does in the tests of ranks: ``python -m tests.training.rank_run FOLDER``, as torchrun starts it."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from lorabook.adapters.fingerprint import base_fingerprint
from lorabook.training.distributed import is_main, process_group, rank, rank_count
from lorabook.training.loop import train
from tests.training.tiny import SETTINGS, adapted_gpt, examples, trained

CUT = {"batch_size": 5, "micro_batch_size": 2}
WITH_DROPOUT = {"batch_size": 5, "checkpoint_every": 100}
SCENARIOS = {  # one after the other in one group
    "micro-batches": CUT,
    "float32": CUT,
    "clipped": {**CUT, "clip_norm": 0.05, "weight_decay": 0.1, "lora_plus_ratio": 4.0},
    "whole shares": {"batch_size": 5},
    "one at a time": {"batch_size": 5, "micro_batch_size": 1},
    "one example on the second rank": {"batch_size": 3},
    "sharded": {**CUT, "shard_frozen": True},
    "sharded, one at a time": {"batch_size": 5, "micro_batch_size": 1, "shard_frozen": True},
    "other seeds": CUT,
    "too few": {"batch_size": 1},
    "dropout": {**WITH_DROPOUT, "checkpoint": "whole.safetensors"},
    "dropout, stopped": {**WITH_DROPOUT, "checkpoint": "stopped.safetensors"},
    "dropout, resumed": {**WITH_DROPOUT, "checkpoint": "stopped.safetensors"},
}


def build(scenario):
    """In float64, where what differs between one process and two is not lost in rounding."""
    model = adapted_gpt(dropout=0.3 if "dropout" in scenario else 0.0)
    return model if scenario == "float32" else model.double()


def sigterm_in_third_step(model):
    passes = []

    def hook(*_):
        passes.append(None)
        if len(passes) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    model.register_forward_pre_hook(hook)


def report(folder, scenario):
    settings = {**SETTINGS, **SCENARIOS[scenario]}
    model = build(scenario)
    if scenario == "other seeds":
        settings["seed"] = rank()
    if scenario == "dropout, stopped" and rank() == 1:  # only one of them is asked to end
        sigterm_in_third_step(model)
    if "checkpoint" in settings:
        settings["checkpoint"] = folder / settings["checkpoint"]
    failed, log = None, None
    try:
        log = train(model, examples(), **settings)
    except (ValueError, SystemExit) as error:
        failed = f"{type(error).__name__}: {error}"
    save_file(trained(model), folder / f"{scenario}.{rank()}")
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in frozen)
    return {
        "failed": failed,
        "ranks": rank_count(),
        "main": is_main(),
        "losses": log and log.losses,
        "tokens": log and [log.tokens, log.target_tokens],
        "gradient_bytes": log and log.gradient_bytes,
        "resumed_at": log and log.resumed_at,
        "same_base": base_fingerprint(model) == base_fingerprint(build(scenario)),
        "frozen_numbers": [held, sum(parameter.numel() for parameter in frozen)],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = Path(sys.argv[1])
    with process_group():
        reports = {name: report(given, name) for name in SCENARIOS}
        (given / f"reports.{rank()}").write_text(json.dumps(reports))
