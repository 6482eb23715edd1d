"""One fine-tuning run of the book's backbone on one of its tasks, by any of the compared methods; the experiments share it.

Trained weights are kept in _build/experiments/, by a checksum of everything that decides them (the settings, the backbone, the package's
code): what another experiment needs again is not trained again, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from provenance import ROOT, WEIGHTS, file_sha256
from run_file import Entry
from sweep import SEEDS, TEST, Arm, result_path
from torch import nn

from lorabook import LoRAConfig, add_lora, best_device, count_parameters
from lorabook.language.backbone import load_backbone
from lorabook.language.gpt import GPT
from lorabook.language.likelihood import Example
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.tasks import TASKS
from lorabook.training.loop import TrainingLog, train

UNTOUCHED, FULL, LAST_BLOCK, BIASES, LORA = "untouched", "full", "last_block", "biases", "lora"
ALL_LINEAR = "all-linear"
STEPS = 300
SECONDS_PER_STEP = 0.32  # of 32 examples, on one thread of the machine on which the experiments were planned
CACHE = ROOT / "_build" / "experiments"


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Args:
        name: as shown.
        kind: untouched; full (every parameter); last_block (every parameter of the last block); biases (every bias vector, of linear
            layers and of layer norms: BitFit); lora.
        rates: learning rates to try first.
        rank: of LoRA; its alpha is twice the rank, so that the scaling is always 2.
        targets: of LoRA.
    """

    name: str
    kind: str
    rates: tuple[float, ...]
    rank: int | None = None
    targets: tuple[str, ...] | str | None = None


@dataclass(frozen=True)
class FineTuning:
    """Settings of one run; see :class:`Method`."""

    task: str
    arm: str
    kind: str
    rank: int | None
    targets: tuple[str, ...] | str | None
    learning_rate: float
    seed: int
    steps: int
    stage: str


@dataclass(frozen=True)
class Sizes:
    """How much is trained on and asked; seeds of the data are fixed, so that all runs answer the same questions.

    Args:
        training_examples: drawn once; the run's seed orders them.
        batch_size: examples a step.
        validation: questions that choose the learning rate.
        test: questions about the tables that were trained on.
        unseen: questions about other tables.
    """

    training_examples: int = 4000
    batch_size: int = 32
    validation: int = 300
    test: int = 1000
    unseen: int = 500


@dataclass(frozen=True)
class Place:
    """Where an experiment writes and how large it is.

    Args:
        path: of the result file.
        cache: folder of the trained weights.
        steps: of a run.
        sizes: of the data.
        seeds: of an arm.
        most_rates: tried first.
        quick: whether it is the tiny version.
        trained_since: weights that were trained before are trained again, in seconds since the epoch; what --fresh asks for.
    """

    path: Path
    cache: Path
    steps: int = STEPS
    sizes: Sizes = Sizes()
    seeds: tuple[int, ...] = SEEDS
    most_rates: int | None = None
    quick: bool = False
    trained_since: float = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """What all runs share."""
        return {"steps": self.steps, **asdict(self.sizes)}


@contextmanager
def place_of(arguments: argparse.Namespace, steps: int = STEPS) -> Iterator[Place]:
    """The place that a command line asks for; all of it temporary for --quick."""
    with result_path(arguments) as path, tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            sizes = Sizes(training_examples=32, batch_size=4, validation=4, test=4, unseen=4)
            yield Place(path, Path(folder), steps=2, sizes=sizes, seeds=(0,), most_rates=1, quick=True)
        else:
            yield Place(path, CACHE, steps=steps, trained_since=time.time() if arguments.fresh else 0.0)


def lora(targets: tuple[str, ...] | str, rank: int, rates: tuple[float, ...] = (2.5e-3, 5e-3, 1e-2)) -> Method:
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "up_proj": "up", "down_proj": "down"}
    where = "all linear" if isinstance(targets, str) else " ".join(names[target] for target in targets)
    return Method(f"LoRA {where}, r = {rank}", LORA, rates, rank, targets)


def prepare(run: FineTuning) -> tuple[GPT, BytePairTokenizer]:
    """The backbone, with exactly that trainable which the method trains."""
    model, tokenizer = load_backbone()
    model.requires_grad_(run.kind == FULL)
    if run.kind == LAST_BLOCK:
        model.blocks[-1].requires_grad_(True)
    if run.kind == BIASES:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(".bias"))
    if run.kind == LORA:
        assert run.rank is not None
        assert run.targets is not None
        config = LoRAConfig(rank=run.rank, alpha=2.0 * run.rank, targets=run.targets)
        add_lora(model, config, generator=torch.Generator().manual_seed(run.seed))
    model.to(best_device())
    return model, tokenizer


def fine_tune(run: FineTuning, place: Place) -> tuple[GPT, BytePairTokenizer, TrainingLog | None]:
    """Train as the settings say, or take what was trained so before; no log where nothing is trained.

    Raises:
        FloatingPointError: the loss left the finite numbers.
    """
    model, tokenizer = prepare(run)
    if run.kind == UNTOUCHED:
        return model, tokenizer, None
    settings = {key: value for key, value in asdict(run).items() if key != "stage"}
    sizes = place.sizes
    path = place.cache / f"{fingerprint({**settings, 'examples': sizes.training_examples, 'batch_size': sizes.batch_size})}.safetensors"
    log = train_cached(
        model,
        training_examples(run.task, sizes.training_examples, tokenizer),
        path,
        since=place.trained_since,
        steps=run.steps,
        learning_rate=run.learning_rate,
        batch_size=sizes.batch_size,
        seed=run.seed,
        description=run.arm,
    )
    return model, tokenizer, log


def train_cached(model: nn.Module, examples: Sequence[Example], path: Path, *, since: float, **settings: Any) -> TrainingLog:
    """Train with a checkpoint: one that is finished gives the trained weights at once, unless it is older than ``since``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_mtime < since:
        path.unlink()
    return train(model, examples, checkpoint=path, **settings)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A checksum of settings, backbone, versions and the code that a training run depends on."""
    return hashlib.sha256(json.dumps([settings, _surroundings()], sort_keys=True).encode()).hexdigest()[:24]


@cache
def _surroundings() -> list[str]:
    package = ROOT / "src" / "lorabook"
    sources = [path for wing in ("language", "adapters", "tasks", "training") for path in sorted((package / wing).rglob("*.py"))]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return [
        file_sha256(WEIGHTS / "backbone.safetensors"),
        file_sha256(WEIGHTS / "tokenizer.json"),
        code,
        torch.__version__,
        str(best_device()),
    ]


@cache
def _examples(task: str, split: str, count: int) -> Sequence[Any]:
    return TASKS[task].examples(split, count, seed=0)


@cache
def training_examples(task: str, count: int, tokenizer: BytePairTokenizer) -> tuple[Example, ...]:
    """Encoded examples to train on, drawn with seed 0."""
    return tuple(TASKS[task].encode(example, tokenizer) for example in _examples(task, "train", count))


def answer(model: GPT, tokenizer: BytePairTokenizer, task: str, split: str, count: int) -> dict[str, float]:
    """The task's scores on the first questions of a split, the headline first."""
    found = TASKS[task].scores(TASKS[task].predict(model, tokenizer, _examples(task, split, count)))
    return {name: round(score, 4) for name, score in found.items()}


def run_method(run: FineTuning, place: Place) -> Entry:
    """Fine-tune and answer: the validation questions, and in the stage "test" the test and the unseen ones too."""
    start = time.perf_counter()
    try:
        model, tokenizer, log = fine_tune(run, place)
    except FloatingPointError:  # far too high a rate is no failure of the experiment
        return {"diverged": True, "validation": {"none": 0.0}, "seconds": round(time.perf_counter() - start, 1)}
    counts = count_parameters(model)
    result: Entry = {"trainable": counts.trainable, "total": counts.total, "share": counts.share}
    for split in ("validation", "test", "unseen") if run.stage == TEST else ("validation",):
        result[split] = answer(model, tokenizer, run.task, split, getattr(place.sizes, split))
    if log is not None:
        last = log.losses[-20:]
        result |= {"final_loss": sum(last) / len(last), "training_seconds": round(log.seconds, 1)}
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def headline(entry: Entry) -> float:
    """The first of a run's validation scores."""
    return float(next(iter(entry["validation"].values())))


def arm_of(method: Method, task: str, place: Place) -> Arm[FineTuning]:
    """The arm of a sweep for a method; what trains nothing is asked once."""

    def make(rate: float, seed: int, stage: str) -> FineTuning:
        return settings_of(method, task, rate, seed, place.steps, stage)

    seeds = place.seeds[:1] if method.kind == UNTOUCHED else place.seeds
    return Arm(method.name, method.rates[: place.most_rates], make, headline, seeds)


def settings_of(method: Method, task: str, rate: float, seed: int, steps: int, stage: str = TEST) -> FineTuning:
    steps = 0 if method.kind == UNTOUCHED else steps
    return FineTuning(task, method.name, method.kind, method.rank, method.targets, rate, seed, steps, stage)


def expected_seconds(steps: int = STEPS) -> float:
    """Of a run on one thread, the mean over tuning runs and those that answer all questions."""
    return steps * SECONDS_PER_STEP + 25
