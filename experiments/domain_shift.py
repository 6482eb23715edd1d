"""Adapt the backbone to a library that it never saw, PyTorch's sources, and see what it gains there and loses elsewhere.

    python experiments/domain_shift.py

Bits per byte on torch's test files, and on the test documents of every source that the backbone was pre-trained on, before and after
training on torch's train files: full fine-tuning, and LoRA on all linear layers at two ranks. Each method's learning rate is chosen by the
bits per byte on torch's validation files with seed 0; three seeds run at that rate. The test files are read at every rate that was tried,
and choose nothing: they say what a rate gains and what it costs.
"""

from __future__ import annotations

import time
from functools import cache, partial

from fine_tuning import ALL_LINEAR, UNTOUCHED, FineTuning, Method, Place, fingerprint, lora, place_of, prepare, settings_of, train_cached
from held_out import BYTES, bits_per_byte_of, sample
from methods import FULL_FINE_TUNING
from run_file import Entry
from sweep import Arm, Sweep, complete, options

from lorabook import count_parameters
from lorabook.language.corpus import HELD_OUT, SOURCES
from lorabook.language.likelihood import Example, sequence_example
from lorabook.language.tokenizer import BytePairTokenizer

METHODS = (
    Method("untouched", UNTOUCHED, ()),
    Method(FULL_FINE_TUNING.name, FULL_FINE_TUNING.kind, (2.5e-4, 5e-4, 1e-3)),
    lora(ALL_LINEAR, 8),
    lora(ALL_LINEAR, 64),
)
BATCH_SIZE = 8  # windows of the whole context
TRAINING_BYTES = 2_000_000
QUICK_BYTES = 2_000


@cache
def windows(tokenizer: BytePairTokenizer, context: int, n_bytes: int) -> tuple[Example, ...]:
    """Consecutive windows of torch's train files, each file after the end token of the one before."""
    ids = [token for text in sample(HELD_OUT, "train", n_bytes) for token in (tokenizer.end_id, *tokenizer.encode(text))]
    return tuple(sequence_example(ids[start : start + context + 1]) for start in range(0, len(ids) - context, context))


def run_shift(run: FineTuning, place: Place) -> Entry:
    """Train on torch's files and measure: on validation, and on the test files of every source."""
    start = time.perf_counter()
    n_bytes, training_bytes, batch_size = (QUICK_BYTES, 20 * QUICK_BYTES, 2) if place.quick else (BYTES, TRAINING_BYTES, BATCH_SIZE)
    model, tokenizer = prepare(run)
    counts = count_parameters(model)
    result: Entry = {"trainable": counts.trainable, "share": counts.share}
    if run.kind != UNTOUCHED:
        settings = {"rate": run.learning_rate, "seed": run.seed, "steps": run.steps, "arm": run.arm, "bytes": training_bytes}
        log = train_cached(
            model,
            windows(tokenizer, model.config.context, training_bytes),
            place.cache / f"{fingerprint({'domain_shift': settings})}.safetensors",
            since=place.trained_since,
            steps=run.steps,
            learning_rate=run.learning_rate,
            batch_size=batch_size,
            seed=run.seed,
            description=run.arm,
        )
        result["tokens"] = log.tokens
    result["validation_bits_per_byte"] = bits_per_byte_of(model, tokenizer, (HELD_OUT,), split="validation", n_bytes=n_bytes)
    sources = (HELD_OUT, "topics") if place.quick else (HELD_OUT, *SOURCES)
    result["test_bits_per_byte"] = bits_per_byte_of(model, tokenizer, sources, n_bytes=n_bytes)
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def _score(entry: Entry) -> float:
    return -float(entry["validation_bits_per_byte"][HELD_OUT])


def main() -> None:
    arguments = options(__doc__, "domain_shift").parse_args()
    with place_of(arguments) as place:

        def arm(method: Method) -> Arm[FineTuning]:
            def make(rate: float, seed: int, stage: str) -> FineTuning:
                return settings_of(method, HELD_OUT, rate, seed, place.steps, stage)

            seeds = place.seeds[:1] if method.kind == UNTOUCHED else place.seeds
            return Arm(method.name, method.rates[: place.most_rates], make, _score, seeds)

        settings = {"steps": place.steps, "batch_size": BATCH_SIZE, "training_bytes": TRAINING_BYTES, "evaluated_bytes": BYTES}
        arms = [arm(method) for method in METHODS[: 3 if place.quick else None]]
        command = "python experiments/domain_shift.py"
        complete(Sweep(command, place.path, settings, arms, partial(run_shift, place=place), run_seconds=190), arguments)


if __name__ == "__main__":
    main()
