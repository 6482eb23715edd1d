"""What fine-tuning on text to SQL does to the text that the backbone was pre-trained on: full fine-tuning against LoRA.

    python experiments/forgetting.py

Bits per byte on the test documents of every source of pre-training, after fine-tuning as experiments/methods.py did it: every method at
its tuned rate with three seeds, at the other rates that were tried, and full fine-tuning also with fewer steps. So each method has
models of several task scores, and the summary compares models of about the same score: for every LoRA model at its tuned rate, the
full fine-tuning whose test score is nearest. The control is trivial and has to hold exactly: with the adapter disabled nothing is
forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

from fine_tuning import (
    ALL_LINEAR,
    LORA,
    UNTOUCHED,
    Method,
    Place,
    answer,
    expected_seconds,
    fine_tune,
    lora,
    place_of,
    settings_of,
)
from held_out import BYTES, bits_per_byte_of
from methods import FULL_FINE_TUNING, Q_V, earlier, tuned_rate
from run_file import Entry
from sweep import TEST, TUNING, Arm, Sweep, complete, options

from lorabook import adapter_disabled
from lorabook.language.corpus import SOURCES

TASK = "text_to_sql"
METHODS = (Method("untouched", UNTOUCHED, ()), FULL_FINE_TUNING, lora(ALL_LINEAR, 8), lora(Q_V, 8))
FEWER_STEPS = (50, 100, 150)
QUESTIONS = 500


@dataclass(frozen=True)
class ForgettingRun:
    """Settings of one run."""

    arm: str
    method: str
    learning_rate: float
    seed: int
    steps: int
    tuned: bool
    stage: str = TEST


def run_forgetting(run: ForgettingRun, place: Place) -> Entry:
    """Fine-tune, or take what methods.py has trained; score the task and measure the bits per byte."""
    start = time.perf_counter()
    method = next(method for method in METHODS if method.name == run.method)
    model, tokenizer, _ = fine_tune(settings_of(method, TASK, run.learning_rate, run.seed, run.steps), place)
    questions, n_bytes, sources = (2, 2_000, ("topics",)) if place.quick else (QUESTIONS, BYTES, SOURCES)
    result: Entry = {"test": answer(model, tokenizer, TASK, "test", questions)}
    result["bits_per_byte"] = bits_per_byte_of(model, tokenizer, sources, n_bytes=n_bytes)
    if method.kind == LORA:
        with adapter_disabled(model):
            result["bits_per_byte_disabled"] = bits_per_byte_of(model, tokenizer, sources, n_bytes=n_bytes)
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def arms_of(place: Place, found: Mapping[str, Any] | None) -> list[Arm[ForgettingRun]]:
    """Each method at its tuned rate; at its other rates; full fine-tuning with fewer steps."""

    def arm(name: str, method: Method, rate: float, steps: int, seeds: tuple[int, ...], tuned: bool) -> Arm[ForgettingRun]:
        def make(_: float, seed: int, __: str) -> ForgettingRun:
            return ForgettingRun(name, method.name, rate, seed, steps, tuned)

        return Arm(name, (), make, lambda entry: 0.0, seeds)

    steps = found["settings"]["steps"] if found else place.steps
    arms, others = [], []
    for method in METHODS[: 3 if place.quick else None]:
        rate = 0.0 if method.kind == UNTOUCHED else tuned_rate(found, method) if found else method.rates[0]
        seeds = place.seeds[:1] if method.kind == UNTOUCHED else place.seeds
        arms.append(arm(method.name, method, rate, steps, seeds, True))
        tried = [run["learning_rate"] for run in found["runs"] if run["arm"] == method.name and run["stage"] == TUNING] if found else []
        others += [arm(f"{method.name}, rate {other:g}", method, other, steps, seeds[:1], False) for other in tried if other != rate]
        if method is FULL_FINE_TUNING and found:
            others += [arm(f"{method.name}, {few} steps", method, rate, few, seeds[:1], False) for few in FEWER_STEPS if few < steps]
    return arms + others


def summarize(entries: Sequence[Entry]) -> Entry:
    """For each tuned LoRA run the full fine-tuning of the nearest test score, and what both cost in bits per byte."""
    before = next(mean(entry["bits_per_byte"].values()) for entry in entries if entry["method"] == "untouched")

    def described(entry: Entry) -> Entry:
        lost = mean(entry["bits_per_byte"].values()) - before
        return {"arm": entry["arm"], "seed": entry["seed"], "test": _score(entry), "bits_per_byte_lost": round(lost, 4)}

    full = [entry for entry in entries if entry["method"] == FULL_FINE_TUNING.name]
    adapted = [entry for entry in entries if entry["tuned"] and "bits_per_byte_disabled" in entry]
    pairs = [(entry, min(full, key=lambda other: abs(_score(other) - _score(entry)))) for entry in adapted]
    backbone = next(entry["bits_per_byte"] for entry in entries if entry["method"] == "untouched")
    exact = all(entry["bits_per_byte_disabled"] == backbone for entry in adapted)
    return {
        "before": round(before, 4),
        "disabled_equals_backbone": exact,
        "matched": [{"lora": described(one), "full": described(other)} for one, other in pairs],
    }


def _score(entry: Entry) -> float:
    return float(next(iter(entry["test"].values())))


def main() -> None:
    arguments = options(__doc__, "forgetting").parse_args()
    with place_of(arguments) as place:
        found = None if place.quick else earlier(TASK)
        settings = {"steps": found["settings"]["steps"] if found else place.steps, "questions": QUESTIONS, "evaluated_bytes": BYTES}
        run = partial(run_forgetting, place=place)
        seconds = 60 + 0.3 * expected_seconds(place.steps)
        command = "python experiments/forgetting.py"
        arms = arms_of(place, found)
        complete(Sweep(command, place.path, settings, arms, run, seconds, summarize=summarize), arguments)


if __name__ == "__main__":
    main()
