"""Which singular vectors of the fine-tuned weights are new, and what fine-tuning does to the pre-training text: full against LoRA.

    python experiments/intruders.py

The models are those of experiments/methods.py on text to SQL at its tuned rates, three seeds each. For every adapted layer: the cosines of
the ten first singular vectors of W + Delta W with the nearest singular vector of W, left and right, from which the number of intruder
dimensions follows at any threshold; and the left ones again for two made-up changes, one with the singular values of Delta W in random
directions, one Gaussian with the norm of Delta W. Bits per byte on test documents of pre-training are taken in the same models, on the
beginnings of documents and fewer bytes than in experiments/forgetting.py; for LoRA also with the adapter disabled. A method without a tuned
rate is left out, and named.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fine_tuning import ALL_LINEAR, LORA, UNTOUCHED, Method, Place, expected_seconds, fine_tune, lora, place_of, settings_of
from methods import FULL_FINE_TUNING, Q_V, earlier, tuned_rate
from run_file import Entry
from sweep import TEST, Arm, Sweep, complete, options
from torch import Tensor

from lorabook import adapter_disabled, merge_lora
from lorabook.language.backbone import load_backbone
from lorabook.language.corpus import SOURCES, documents
from lorabook.language.evaluate import held_out_bits_per_byte
from lorabook.language.gpt import GPT
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.measure.similarity import closest_cosines
from lorabook.measure.spectra import linear_weights

TASK = "text_to_sql"
METHODS = (
    Method("untouched", UNTOUCHED, ()),
    FULL_FINE_TUNING,
    lora(ALL_LINEAR, 8),
    lora(Q_V, 8),
    lora(ALL_LINEAR, 64),
    lora(Q_V, 64),
)
TOP = 10
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BYTES = 20_000  # of each source
BEGINNING = 2_000  # characters of a document, so that no single one counts for much


@dataclass(frozen=True)
class IntruderRun:
    """Settings of one run."""

    arm: str
    learning_rate: float
    seed: int
    steps: int
    stage: str = TEST


def run_intruders(run: IntruderRun, place: Place) -> Entry:
    """Fine-tune, or take what methods.py has trained, and compare the weights with the backbone's."""
    start = time.perf_counter()
    method = next(method for method in METHODS if method.name == run.arm)
    model, tokenizer, _ = fine_tune(settings_of(method, TASK, run.learning_rate, run.seed, run.steps), place)
    result: Entry = {"bits_per_byte": _bits_per_byte(model, tokenizer, few=place.quick)}
    if method.kind == LORA:
        with adapter_disabled(model):
            result["bits_per_byte_disabled"] = _bits_per_byte(model, tokenizer, few=place.quick)
    if method.kind != UNTOUCHED:
        result["layers"] = _compared(model, run.seed, few=place.quick)
        cosines = {key: [value for layer in result["layers"].values() for value in layer[key]] for key in ("left", "right")}
        result["vectors"] = len(cosines["left"])
        for side, values in cosines.items():
            result[f"intruders_{side}"] = {str(threshold): sum(value < threshold for value in values) for threshold in THRESHOLDS}
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def _bits_per_byte(model: GPT, tokenizer: BytePairTokenizer, few: bool) -> dict[str, float]:
    """On the beginnings of the test documents of every source, in the order of their names."""
    found = {}
    for source in SOURCES[: 1 if few else None]:
        texts = [text[:BEGINNING] for text in documents(source, "test")]
        found[source] = round(held_out_bits_per_byte(model, tokenizer, texts, max_bytes=1_000 if few else BYTES), 4)
    return found


@torch.no_grad()
def _compared(model: GPT, seed: int, few: bool) -> dict[str, Entry]:
    """Every changed layer's cosines, and how large the change is beside the weight."""
    before, after = _before_and_after(model)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for path in list(before)[: 2 if few else None]:
        weight, change = before[path].cpu().double(), (after[path] - before[path]).cpu().double()
        values = torch.linalg.svdvals(change)
        noise = torch.randn(change.shape, generator=generator, dtype=torch.float64)
        u, _, vh = torch.linalg.svd(torch.randn(change.shape, generator=generator, dtype=torch.float64), full_matrices=False)
        found[path] = {
            "left": _rounded(closest_cosines(weight, weight + change, TOP)),
            "right": _rounded(closest_cosines(weight, weight + change, TOP, side="right")),
            "left_if_turned": _rounded(closest_cosines(weight, weight + (u * values) @ vh, TOP)),
            "left_if_gaussian": _rounded(closest_cosines(weight, weight + noise * change.norm() / noise.norm(), TOP)),
            "relative_size": round((change.norm() / weight.norm()).item(), 4),
            "largest_against_weights_tenth": round((values[0] / torch.linalg.svdvals(weight)[TOP - 1]).item(), 4),
        }
    return found


def _before_and_after(model: GPT) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbone's and the fine-tuned weight of every linear layer that has changed."""
    backbone = linear_weights(load_backbone()[0])
    if any(name.endswith("lora_A") for name, _ in model.named_parameters()):
        merge_lora(model)
    tuned = {path: _weight(model, path) for path in backbone}
    changed = [path for path in backbone if not torch.equal(backbone[path], tuned[path])]
    return {path: backbone[path] for path in changed}, {path: tuned[path] for path in changed}


def _weight(model: GPT, path: str) -> Tensor:
    layer = model.get_submodule(path)
    return getattr(layer, "base", layer).get_parameter("weight").detach().cpu().clone()


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def arms_of(place: Place, found: Mapping[str, Any] | None) -> list[Arm[IntruderRun]]:
    """The methods for which there is a tuned rate."""
    arms = []
    for method in METHODS[: 3 if place.quick else None]:
        try:
            rate = 0.0 if method.kind == UNTOUCHED else tuned_rate(found, method) if found else method.rates[0]
        except SystemExit:
            print(f"{method.name} is left out", file=sys.stderr)
            continue

        def make(_: float, seed: int, __: str, method: Method = method, rate: float = rate) -> IntruderRun:
            return IntruderRun(method.name, rate, seed, found["settings"]["steps"] if found else place.steps)

        seeds = place.seeds[:1] if method.kind == UNTOUCHED else place.seeds
        arms.append(Arm(method.name, (), make, lambda entry: 0.0, seeds))
    return arms


def summarize(entries: Sequence[Entry]) -> Entry:
    """Whether every disabled adapter left the backbone exactly as it was."""
    backbone = next(entry["bits_per_byte"] for entry in entries if entry["arm"] == "untouched")
    disabled = [entry["bits_per_byte_disabled"] for entry in entries if "bits_per_byte_disabled" in entry]
    return {"disabled_equals_backbone": all(found == backbone for found in disabled)}


def main() -> None:
    arguments = options(__doc__, "intruders").parse_args()
    with place_of(arguments) as place:
        found = None if place.quick else earlier(TASK)
        steps = found["settings"]["steps"] if found else place.steps
        settings = {**place.settings, "steps": steps, "top": TOP, "evaluated_bytes": BYTES, "beginning": BEGINNING}
        run = partial(run_intruders, place=place)
        arms, seconds = arms_of(place, found), 30 + 0.2 * expected_seconds(steps)
        complete(Sweep("python experiments/intruders.py", place.path, settings, arms, run, seconds, summarize=summarize), arguments)


if __name__ == "__main__":
    main()
