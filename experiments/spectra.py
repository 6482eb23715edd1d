"""What full fine-tuning changed: the spectrum of every layer's Delta W, and the task's score when each is cut to rank r.

    python experiments/spectra.py

The models are those of full fine-tuning on text to SQL at the rate that experiments/methods.py found, three seeds. Two curves of
execution accuracy against r: in "others_kept" everything that is no linear layer's weight (embeddings, layer norms, biases) stays as it was
fine-tuned; in "others_reset" it is put back to the backbone's, so that rank r is exactly what LoRA on all linear layers could express.
Beside each layer's spectrum stands that of a Gaussian matrix of its shape: what no structure at all would look like.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from fine_tuning import FineTuning, Place, answer, expected_seconds, fine_tune, place_of, prepare, settings_of
from methods import FULL_FINE_TUNING, earlier, tuned_rate
from run_file import Entry
from sweep import TEST, Arm, Sweep, complete, options
from torch import Tensor

from lorabook.language.gpt import GPT
from lorabook.measure.spectra import ChangeSpectrum, change_spectrum, linear_weights, truncate_changes

TASK = "text_to_sql"
RANKS = (0, 1, 2, 4, 8, 16, 32, 64)
QUESTIONS = 500


@dataclass(frozen=True)
class SpectraRun:
    """Settings of one run."""

    arm: str
    learning_rate: float
    seed: int
    steps: int
    stage: str = TEST


def run_spectra(run: SpectraRun, place: Place) -> Entry:
    """Fine-tune, or take what methods.py has trained, and take the changes apart."""
    start = time.perf_counter()
    settings: FineTuning = settings_of(FULL_FINE_TUNING, TASK, run.learning_rate, run.seed, run.steps)
    backbone, _ = prepare(settings)
    before, other = linear_weights(backbone), {name: value.detach().clone() for name, value in backbone.state_dict().items()}
    model, tokenizer, _ = fine_tune(settings, place)
    after = linear_weights(model)
    questions = place.sizes.test if place.quick else QUESTIONS

    def score_at(rank: int) -> float:
        truncate_changes(model, before, after, rank)
        return next(iter(answer(model, tokenizer, TASK, "test", questions).values()))

    ranks = RANKS[:2] if place.quick else RANKS
    result: Entry = {"questions": questions, "test_at_full_rank": next(iter(answer(model, tokenizer, TASK, "test", questions).values()))}
    result["others_kept"] = {str(rank): score_at(rank) for rank in ranks}
    _reset_others(model, before, other)
    full_rank = max(min(weight.shape) for weight in before.values())
    result["others_reset"] = {str(rank): score_at(rank) for rank in (*ranks, full_rank)}
    result["layers"] = {path: _described(change_spectrum(weight, after[path])) for path, weight in before.items()}
    result["gaussian"] = _gaussian({tuple(weight.shape) for weight in before.values()})
    return result | {"seconds": round(time.perf_counter() - start, 1)}


@torch.no_grad()
def _reset_others(model: GPT, linear: Mapping[str, Tensor], backbone: Mapping[str, Tensor]) -> None:
    """Put everything but the linear layers' weights back to the backbone's."""
    for name, value in model.state_dict().items():
        if name.removesuffix(".weight") not in linear:
            value.copy_(backbone[name])


def _described(spectrum: ChangeSpectrum) -> Entry:
    return {
        "relative_size": _rounded(spectrum.relative_size),
        "effective_rank": _rounded(spectrum.effective_rank),
        "energy": {str(rank): _rounded(spectrum.energy[rank - 1].item()) for rank in RANKS if 0 < rank <= len(spectrum.energy)},
        "singular_values": [_rounded(value) for value in spectrum.singular_values.tolist()],
    }


def _gaussian(shapes: set[tuple[int, ...]]) -> Entry:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for shape in sorted(shapes):
        drawn = _described(change_spectrum(torch.zeros(shape), torch.randn(shape, generator=generator)))
        found[" x ".join(map(str, shape))] = {key: drawn[key] for key in ("effective_rank", "energy")}
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> None:
    arguments = options(__doc__, "spectra").parse_args()
    with place_of(arguments) as place:
        rate, steps = 1e-3, place.steps
        if not place.quick:
            found = earlier(TASK)
            rate, steps = tuned_rate(found, FULL_FINE_TUNING), found["settings"]["steps"]

        def make(_: float, seed: int, __: str) -> SpectraRun:
            return SpectraRun(FULL_FINE_TUNING.name, rate, seed, steps)

        arm = Arm(FULL_FINE_TUNING.name, (), make, lambda entry: 0.0, place.seeds)
        settings = {**place.settings, "steps": steps, "ranks": RANKS, "questions": QUESTIONS}
        seconds = expected_seconds(steps) + 18 * 20
        run = partial(run_spectra, place=place)
        complete(Sweep("python experiments/spectra.py", place.path, settings, [arm], run, seconds), arguments)


if __name__ == "__main__":
    main()
