"""Train the adapters that come with the book, and save them in PEFT's format in assets/adapters/.

    python experiments/adapters.py

Settings are those of experiments/methods.py at the learning rates that it found: rank 8 on all linear layers for each task, and for text to
SQL also ranks 8 and 64 on the query and value projections, the latter with two seeds, for the comparison of subspaces. What methods.py has
trained on this machine is not trained again. The result file holds each adapter's test score. An adapter whose learning rate methods.py has
not found yet is left out, and named.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fine_tuning import ALL_LINEAR, Method, Place, answer, expected_seconds, fine_tune, lora, place_of, settings_of
from methods import Q_V, earlier, tuned_rate
from provenance import ROOT
from run_file import Entry
from sweep import TEST, Arm, Sweep, complete, options

from lorabook import save_adapter


@dataclass(frozen=True)
class Shipped:
    """One adapter of the book."""

    name: str
    task: str
    method: Method
    seed: int = 0


ADAPTERS = (
    Shipped("text_to_sql", "text_to_sql", lora(ALL_LINEAR, 8)),
    Shipped("table_to_text", "table_to_text", lora(ALL_LINEAR, 8)),
    Shipped("reading", "reading", lora(ALL_LINEAR, 8)),
    Shipped("sql_qv_rank_8", "text_to_sql", lora(Q_V, 8)),
    Shipped("sql_qv_rank_64", "text_to_sql", lora(Q_V, 64)),
    Shipped("sql_qv_rank_64_seed_1", "text_to_sql", lora(Q_V, 64), seed=1),
)


@dataclass(frozen=True)
class AdapterRun:
    """Settings of one run; the directory is that of the adapter, seen from the repository's root."""

    arm: str
    task: str
    method: str
    directory: str
    learning_rate: float
    seed: int
    steps: int
    stage: str = TEST


def run_adapter(run: AdapterRun, place: Place, folder: Path) -> Entry:
    """Train, or take what methods.py has trained; save the adapter and answer the test questions."""
    start = time.perf_counter()
    shipped = next(shipped for shipped in ADAPTERS if shipped.name == run.arm)
    model, tokenizer, _ = fine_tune(settings_of(shipped.method, run.task, run.learning_rate, run.seed, run.steps), place)
    save_adapter(model, folder / run.arm)
    result: Entry = {"test": answer(model, tokenizer, run.task, "test", place.sizes.test)}
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def arm_of(shipped: Shipped, place: Place) -> Arm[AdapterRun]:
    rate, steps = 1e-3, place.steps
    if not place.quick:
        found = earlier(shipped.task)
        rate, steps = tuned_rate(found, shipped.method), found["settings"]["steps"]

    def make(_: float, seed: int, __: str) -> AdapterRun:
        return AdapterRun(shipped.name, shipped.task, shipped.method.name, f"assets/adapters/{shipped.name}", rate, seed, steps)

    return Arm(shipped.name, (), make, lambda entry: 0.0, (shipped.seed,))


def main() -> None:
    arguments = options(__doc__, "adapters").parse_args()
    with place_of(arguments) as place:
        folder = place.cache / "adapters" if place.quick else ROOT / "assets" / "adapters"
        arms = []
        for shipped in ADAPTERS:
            try:
                arms.append(arm_of(shipped, place))
            except SystemExit:
                print(f"{shipped.name} is left out", file=sys.stderr)
        run = partial(run_adapter, place=place, folder=folder)
        complete(Sweep("python experiments/adapters.py", place.path, place.settings, arms, run, expected_seconds()), arguments)


if __name__ == "__main__":
    main()
