"""How many random directions are enough to fine-tune in? Only d coordinates train, each moving its own random part of all parameters.

    python experiments/intrinsic_dimension.py

theta = theta_0 + P z, with P random and z of d numbers (lorabook.measure.subspace), for d from 100 to 100,000 by factors of ten, each d at
its own best rate. The summary gives the smallest d whose mean test score reaches 90 % of full fine-tuning's, as Li et al. 2018 define the
intrinsic dimension.

What it is: an upper bound on how many numbers have to be learnt here, for this backbone, task, budget of steps and kind of subspace.
What it is not: the rank of anything. Random directions spread over all weights are not the directions of a rank-r update, a low
intrinsic dimension does not imply that Delta W has low rank, and with more steps or another P the number would be another.

The same from a randomly initialized model of the same shape says what pre-training contributes: there the reference is full training from
scratch with as many steps, which itself may hardly learn the task.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import mean

import torch
from fine_tuning import Place, answer, expected_seconds, fingerprint, headline, place_of, train_cached, training_examples
from methods import FULL_FINE_TUNING, earlier
from run_file import Entry
from sweep import TEST, Arm, Sweep, complete, options

from lorabook import best_device
from lorabook.language.backbone import load_backbone
from lorabook.language.gpt import GPT
from lorabook.measure.subspace import RandomSubspace

TASK = "text_to_sql"
DIMENSIONS = (100, 1_000, 10_000, 100_000)
FROM_SCRATCH = (10_000,)
RATES = (3e-4, 1e-3, 3e-3)
HIGHER_RATES = (9e-3, 2.7e-2)  # from random weights too: where no question is answered, no score tells in which direction to go on
REACHED = 0.9  # of full fine-tuning's score


@dataclass(frozen=True)
class SubspaceRun:
    """Settings of one run; all parameters train where the dimension is None."""

    arm: str
    start: str
    dimension: int | None
    learning_rate: float
    seed: int
    steps: int
    stage: str


def run_subspace(run: SubspaceRun, place: Place) -> Entry:
    """Train the coordinates, or all parameters, and answer."""
    start = time.perf_counter()
    model, tokenizer = load_backbone()
    if run.start == "random":
        torch.manual_seed(run.seed)
        model = GPT(model.config)
    model.to(best_device())
    trained = model if run.dimension is None else RandomSubspace(model, run.dimension, seed=run.seed)
    examples = training_examples(TASK, place.sizes.training_examples, tokenizer)
    settings = {key: value for key, value in asdict(run).items() if key not in ("arm", "stage")}
    path = place.cache / f"{fingerprint({'subspace': settings, **place.settings})}.safetensors"
    result: Entry = {"trainable": sum(p.numel() for p in trained.parameters() if p.requires_grad)}
    try:
        sizes = {"steps": run.steps, "batch_size": place.sizes.batch_size}
        settings = {"learning_rate": run.learning_rate, "seed": run.seed, "description": run.arm, **sizes}
        log = train_cached(trained, examples, path, since=place.trained_since, **settings)
        result["final_loss"] = mean(log.losses[-20:])
    except FloatingPointError:  # far too high a rate is no failure of the experiment
        return {**result, "diverged": True, "validation": {"none": 0.0}, "seconds": round(time.perf_counter() - start, 1)}
    if isinstance(trained, RandomSubspace):
        trained.write()
    for split in ("validation", "test", "unseen") if run.stage == TEST else ("validation",):
        result[split] = answer(model, tokenizer, TASK, split, getattr(place.sizes, split))
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def arms_of(place: Place) -> list[Arm[SubspaceRun]]:
    """Every dimension from the backbone; fewer, and all parameters, from random weights, with one seed."""

    def arm(start: str, dimension: int | None, rates: tuple[float, ...], seeds: tuple[int, ...]) -> Arm[SubspaceRun]:
        name = f"{start}, d = {dimension or 'all'}"

        def make(rate: float, seed: int, stage: str) -> SubspaceRun:
            return SubspaceRun(name, start, dimension, rate, seed, place.steps, stage)

        return Arm(name, rates[: place.most_rates], make, headline, seeds)

    pretrained = [arm("pre-trained", dimension, RATES, place.seeds) for dimension in DIMENSIONS]
    scratch = [arm("random", dimension, RATES + HIGHER_RATES, place.seeds[:1]) for dimension in FROM_SCRATCH]
    scratch.append(arm("random", None, FULL_FINE_TUNING.rates, place.seeds[:1]))
    return [pretrained[1], scratch[0], scratch[-1]] if place.quick else pretrained + scratch


def summarize(entries: Sequence[Entry], reference: float) -> Entry:
    """The smallest dimension that reaches 90 % of full training's score, from either start; None where none does."""
    found: Entry = {}
    for start in ("pre-trained", "random"):
        scores: dict[int | None, list[float]] = {}
        for entry in entries:
            if entry["start"] == start and entry["stage"] == TEST and "test" in entry:
                scores.setdefault(entry["dimension"], []).append(next(iter(entry["test"].values())))
        full = mean(scores[None]) if None in scores else reference
        reached = [d for d in scores if d is not None and mean(scores[d]) >= REACHED * full]
        found[start] = {"full": round(full, 4), "dimension": min(reached) if reached and full > 0 else None}
    return found


def main() -> None:
    arguments = options(__doc__, "intrinsic_dimension").parse_args()
    with place_of(arguments) as place:
        reference = 0.0
        if not place.quick:
            runs = [run for run in earlier(TASK)["runs"] if run["arm"] == FULL_FINE_TUNING.name and run["stage"] == TEST]
            reference = mean(next(iter(run["test"].values())) for run in runs)
        sweep = Sweep(
            "python experiments/intrinsic_dimension.py",
            place.path,
            {**place.settings, "full_fine_tuning": round(reference, 4)},
            arms_of(place),
            partial(run_subspace, place=place),
            expected_seconds(place.steps),
            summarize=partial(summarize, reference=reference),
        )
        complete(sweep, arguments)


if __name__ == "__main__":
    main()
