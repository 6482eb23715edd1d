"""Compare ways to fine-tune the backbone on one task, each at its own best learning rate, with three seeds.

    python experiments/methods.py --task text_to_sql

Methods: the untouched backbone; full fine-tuning; LoRA on the query and value projections and on all linear layers at several ranks, alpha
always twice the rank; the last block alone; BitFit, every bias vector and nothing else. table_to_text and reading have fewer.

The learning rate of a method is chosen by its score on validation questions with seed 0 (the smallest of those that tie); where the best is
the largest or the smallest tried, one beyond is tried too, at most three times. Then three seeds run at that rate and answer the test
questions and those about unseen tables, which choose nothing. Runs that the result file holds are not repeated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fine_tuning import ALL_LINEAR, BIASES, FULL, LAST_BLOCK, STEPS, UNTOUCHED, Method, arm_of, expected_seconds, lora, place_of, run_method
from provenance import RESULTS, WEIGHTS, file_sha256
from sweep import TEST, Sweep, complete, options

from lorabook.tasks import TASKS

Q_V = ("q_proj", "v_proj")
RANKS = (1, 2, 4, 8, 16, 64)
FULL_FINE_TUNING = Method("full fine-tuning", FULL, (5e-4, 1e-3, 2e-3))
FIRST = (Method("untouched", UNTOUCHED, ()), FULL_FINE_TUNING, lora(ALL_LINEAR, 8), lora(Q_V, 8))
BITFIT = Method("BitFit, all biases", BIASES, (5e-3, 1e-2, 2e-2))
OTHERS = (
    BITFIT,
    Method("last block", LAST_BLOCK, (1e-3, 2e-3, 4e-3)),
    *(lora(targets, rank) for rank in RANKS if rank != 8 for targets in (ALL_LINEAR, Q_V)),
)


def methods_of(task: str) -> tuple[Method, ...]:
    """All methods on text to SQL, five on the others; those that a chapter needs soonest come first."""
    return FIRST + (OTHERS if task == "text_to_sql" else (BITFIT,))


def earlier(task: str) -> dict[str, Any]:
    """What experiments/methods.py found on a task, for an experiment that goes on from there.

    Raises:
        SystemExit: the file is not there, or is of another backbone.
    """
    path = RESULTS / f"methods_{task}.json"
    command = f"run python experiments/methods.py --task {task} first"
    if not path.exists():
        print(f"{Path(sys.argv[0]).name}: {path.name} is missing: {command}", file=sys.stderr)
        raise SystemExit(2)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found["backbone_sha256"] != file_sha256(WEIGHTS / "backbone.safetensors"):
        print(f"{Path(sys.argv[0]).name}: {path.name} is of another backbone: {command}, with --fresh", file=sys.stderr)
        raise SystemExit(2)
    return found


def tuned_rate(found: Mapping[str, Any], method: Method) -> float:
    """The rate at which a method's test runs were made.

    Raises:
        SystemExit: the method has no test run yet.
    """
    rates = [run["learning_rate"] for run in found["runs"] if run["arm"] == method.name and run["stage"] == TEST]
    if not rates:
        print(f"{Path(sys.argv[0]).name}: no test run of {method.name} yet: complete experiments/methods.py first", file=sys.stderr)
        raise SystemExit(2)
    return float(rates[0])


def main() -> None:
    parser = options(__doc__, "methods_<task>")
    parser.add_argument("--task", choices=list(TASKS), default="text_to_sql")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each run (default {STEPS})")
    arguments = parser.parse_args()
    arguments.stem = f"methods_{arguments.task}"
    command = f"python experiments/methods.py --task {arguments.task}"
    if arguments.steps != STEPS:
        command += f" --steps {arguments.steps}"
    with place_of(arguments, arguments.steps) as place:
        methods = methods_of(arguments.task)
        if place.quick:  # one of each kind
            methods = tuple({method.kind: method for method in reversed(methods)}.values())
        arms = [arm_of(method, arguments.task, place) for method in methods]
        run = partial(run_method, place=place)
        complete(Sweep(command, place.path, place.settings, arms, run, expected_seconds(place.steps)), arguments)


if __name__ == "__main__":
    main()
