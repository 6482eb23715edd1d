"""Fine-tune a real pre-trained encoder, all-MiniLM-L6-v2, to say what a docstring is about; look at what full fine-tuning changed.

    python experiments/minilm.py

Methods: a linear probe over the frozen vectors, full fine-tuning, LoRA on the query and value projections, LoRA on all linear layers. The
others start with the probe's head of the same seed, so that what they gain comes from the encoder. A method's learning rate is chosen by
accuracy on the validation paragraphs with seed 0, from three rates and, while the best of them is the largest or the smallest, one
beyond; two more seeds run at that rate. The two test sets, new paragraphs ("test") and new files ("unseen"), choose nothing.

After full fine-tuning with the seeds that did not choose the rate: for every linear layer of the encoder the share of the energy (the
squared singular values) of Delta W in its first directions, beside that of a Gaussian matrix of the same shape; and the accuracy on both
test sets when each Delta W is cut to rank r, everything else staying as fine-tuned.

Runs that the result file already holds are not repeated. --quick shows in a minute that everything runs, and writes to a temporary file.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from provenance import write_result
from torch import Tensor, nn
from torch.nn import functional as F

from lorabook import LoRAConfig, add_lora, count_parameters
from lorabook.language.pretrained import SentenceEncoder, embed, load_sentence_encoder
from lorabook.low_rank import energy, low_rank_approximation
from lorabook.tasks.docstrings import SPLITS, TOPICS, Docstring, Split, TopicClassifier, accuracy, encode, examples
from lorabook.training.loop import train

PROBE, FULL = "linear probe", "full fine-tuning"
METHODS: dict[str, LoRAConfig | None] = {
    PROBE: None,
    FULL: None,
    "LoRA, query and value, r = 8": LoRAConfig(rank=8, alpha=16.0, targets=("query", "value")),
    "LoRA, all linear, r = 8": LoRAConfig(rank=8, alpha=16.0, targets="all-linear"),
}
RATES = {PROBE: (1e-3, 3e-3, 1e-2), FULL: (3e-5, 1e-4, 3e-4)}
LORA_RATES = (3e-4, 1e-3, 3e-3)
DIRECTIONS = (8, 32, 64)
RANKS = (0, 1, 4, 8, 32)
PACKAGES = ("transformers", "tokenizers", "numpy", "matplotlib", "sympy", "networkx", "pillow", "fonttools")  # the paragraphs are theirs


@dataclass(frozen=True)
class Setting:
    """How large the experiment is.

    Args:
        steps: updates of a run.
        batch_size: paragraphs per update.
        probe_steps: updates of the linear probe, on 128 vectors each; its encoder runs once.
        max_tokens: longer paragraphs are cut.
        seeds: the first chooses the rates.
        most_rates: of a method.
        paragraphs: of each split at most, spread over the topics; all when None.
    """

    steps: int = 100
    batch_size: int = 16
    probe_steps: int = 200
    max_tokens: int = 32
    seeds: tuple[int, ...] = (0, 1, 2)
    most_rates: int = 5
    paragraphs: int | None = None


QUICK = Setting(steps=2, batch_size=4, probe_steps=20, max_tokens=16, seeds=(0, 1), most_rates=1, paragraphs=42)


class Experiment:
    """The data, the frozen encoder's vectors, and one run after another."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.texts: dict[Split, Sequence[Docstring]] = {split: examples(split) for split in SPLITS}
        if setting.paragraphs is not None:
            self.texts = {split: found[:: len(found) // setting.paragraphs] for split, found in self.texts.items()}
        self.pretrained, self.tokenizer = load_sentence_encoder()
        self.vectors = {split: self._embed(self.pretrained, split) for split in SPLITS}
        self.encoded = [encode(example, self.tokenizer, setting.max_tokens) for example in self.texts["train"]]

    def run(self, method: str, learning_rate: float, seed: int, probe_rate: float | None) -> dict[str, Any]:
        """Train once and classify the validation and the test paragraphs."""
        start = time.perf_counter()
        encoder = copy.deepcopy(self.pretrained)
        classifier = TopicClassifier(encoder, self.vectors["train"].shape[1])
        before = {path: layer.weight.detach().clone() for path, layer in linear_layers(encoder)}
        if config := METHODS[method]:
            add_lora(encoder, config, generator=torch.Generator().manual_seed(seed))
        result: dict[str, Any] = {"method": method, "learning_rate": learning_rate, "seed": seed, "steps": self.setting.steps}
        if probe_rate is None:
            encoder.requires_grad_(False)
            result |= {"steps": self.setting.probe_steps, "final_loss": self._fit_head(classifier.head, learning_rate, seed)}
        else:
            self._fit_head(classifier.head, probe_rate, seed)
            steps, batch_size = self.setting.steps, self.setting.batch_size
            log = train(
                classifier, self.encoded, steps=steps, learning_rate=learning_rate, batch_size=batch_size, seed=seed, description=method
            )
            result["final_loss"] = sum(log.losses[-20:]) / len(log.losses[-20:])
        result |= {"trainable": count_parameters(classifier).trainable, "total": count_parameters(classifier).total}
        frozen = probe_rate is None
        result["validation"] = self._accuracy(classifier, "validation", frozen)
        result |= {"test": self._accuracy(classifier, "test", frozen), "unseen": self._accuracy(classifier, "unseen", frozen)}
        if method == FULL and seed != self.setting.seeds[0]:
            result["energy_of_delta_w"] = {path: shares(layer.weight - before[path]) for path, layer in linear_layers(encoder)}
            result["energy_of_gaussian"] = gaussian_shares({tuple(weight.shape) for weight in before.values()})
            result["truncated"] = self._truncated(classifier, before)
        return result | {"seconds": round(time.perf_counter() - start, 1)}

    def _embed(self, encoder: SentenceEncoder, split: Split) -> Tensor:
        return embed(encoder, self.tokenizer, [example.text for example in self.texts[split]], max_tokens=self.setting.max_tokens)

    def _accuracy(self, classifier: TopicClassifier, split: Split, frozen: bool = False) -> float:
        vectors = self.vectors[split] if frozen else self._embed(cast(SentenceEncoder, classifier.encoder), split)
        names = list(TOPICS)
        predicted = [names[index] for index in classifier.head(vectors).argmax(dim=1).tolist()]
        return accuracy(predicted, self.texts[split])

    def _fit_head(self, head: nn.Linear, learning_rate: float, seed: int) -> float:
        """Train the head alone on the frozen vectors; returns its loss on all of them."""
        vectors = self.vectors["train"]
        labels = torch.tensor([targets[0] for _, targets in self.encoded])
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.setting.probe_steps)
        for _ in range(self.setting.probe_steps):
            rows = torch.randint(len(labels), (128,), generator=generator)
            loss = F.cross_entropy(head(vectors[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            return F.cross_entropy(head(vectors), labels).item()

    @torch.no_grad()
    def _truncated(self, classifier: TopicClassifier, before: dict[str, Tensor]) -> dict[str, dict[str, float]]:
        """Accuracy on both test sets with every Delta W of the encoder cut to rank r."""
        after = {path: layer.weight.detach().clone() for path, layer in linear_layers(classifier.encoder)}
        found: dict[str, dict[str, float]] = {}
        for rank in RANKS:
            for path, layer in linear_layers(classifier.encoder):
                delta = low_rank_approximation(after[path] - before[path], rank) if rank else 0.0
                layer.weight.copy_(before[path] + delta)
            found[str(rank)] = {"test": self._accuracy(classifier, "test"), "unseen": self._accuracy(classifier, "unseen")}
        return found


def linear_layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    yield from ((path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Linear))


def shares(matrix: Tensor) -> list[float]:
    """The share of a matrix's energy in its first 8, 32 and 64 directions."""
    cumulative = energy(torch.linalg.svdvals(matrix.detach()))
    return [round(cumulative[count - 1].item(), 4) for count in DIRECTIONS]


def gaussian_shares(shapes: set[tuple[int, ...]]) -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(0)
    return {" x ".join(map(str, shape)): shares(torch.randn(shape, generator=generator)) for shape in sorted(shapes)}


class Runs:
    """The runs made so far, kept in the result file after each."""

    def __init__(self, path: Path, setting: Setting) -> None:
        self.path, self.setting = path, setting
        earlier: dict[str, Any] = {"runs": [], "provenance": {"seconds": 0}}
        if path.exists():
            earlier = json.loads(path.read_text(encoding="utf-8"))
        self.settings = json.loads(json.dumps(asdict(setting)))  # as the file has them: tuples as lists
        if earlier.get("settings", self.settings) != self.settings:
            raise SystemExit(f"{path} holds runs with other settings: delete it, or name another file with --out")
        self.entries: list[dict[str, Any]] = earlier["runs"]
        self.start = time.perf_counter() - earlier["provenance"]["seconds"]  # the time of an interrupted experiment counts
        self.experiment: Experiment | None = None
        self.begun, self.made = time.perf_counter(), 0

    def make(self, method: str, learning_rate: float, seed: int) -> None:
        """Make one run, unless it is there already."""
        if any((entry["method"], entry["learning_rate"], entry["seed"]) == (method, learning_rate, seed) for entry in self.entries):
            return
        self.experiment = self.experiment or Experiment(self.setting)
        entry = self.experiment.run(method, learning_rate, seed, None if method == PROBE else self.best_rate(PROBE))
        self.entries.append(entry)
        self.made += 1
        self._write()
        at = f"{method:30} rate {learning_rate:.0e} seed {seed}"
        scores = "  ".join(f"{split} {entry[split]:.1%}" for split in SPLITS[1:])
        print(f"{at}  {scores}  {self._left()}", flush=True)

    def tried(self, method: str) -> dict[float, float]:
        """Validation accuracy at each rate that ran with the first seed."""
        chosen = [entry for entry in self.entries if entry["method"] == method and entry["seed"] == self.setting.seeds[0]]
        return {entry["learning_rate"]: entry["validation"] for entry in chosen}

    def best_rate(self, method: str) -> float:
        """The rate with the best validation accuracy; the smallest of those that tie."""
        tried = self.tried(method)
        return max(sorted(tried), key=lambda rate: tried[rate])

    def _left(self) -> str:
        expected = sum(len(rates_of(method, self.setting)) + len(self.setting.seeds) - 1 for method in METHODS)
        left = max(0, expected - len(self.entries))
        return f"about {left} runs and {left * (time.perf_counter() - self.begun) / self.made / 60:.0f} min left"

    def _write(self) -> None:
        order = {method: index for index, method in enumerate(METHODS)}
        runs = sorted(self.entries, key=lambda entry: (order[entry["method"]], entry["learning_rate"], entry["seed"]))
        write_result(self.path, {"settings": self.settings, "runs": runs}, start=self.start, packages=PACKAGES)


def rates_of(method: str, setting: Setting) -> tuple[float, ...]:
    return RATES.get(method, LORA_RATES)[: setting.most_rates]


def beyond(tried: dict[float, float], best: float) -> float | None:
    """A rate about three times beyond the best when that is the largest or the smallest tried, else None."""
    factor = 3.0 if best == max(tried) else 1 / 3 if best == min(tried) else None
    return None if factor is None else float(f"{best * factor:.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune all-MiniLM-L6-v2 on docstrings by several methods.")
    parser.add_argument("--quick", action="store_true", help="a tiny version, written to a temporary file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("assets/results/minilm.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            complete(Runs(Path(folder) / "minilm.json", QUICK))
    else:
        complete(Runs(arguments.out, Setting()))


def complete(runs: Runs) -> None:
    setting = runs.setting
    plan = [f"{method}: {len(rates_of(method, setting))} rates or more, then seeds {setting.seeds[1:]}" for method in METHODS]
    print(*plan, f"{len(runs.entries)} runs are in {runs.path.name}", sep="\n", flush=True)
    for method in METHODS:
        for rate in rates_of(method, setting):
            runs.make(method, rate, setting.seeds[0])
        while len(tried := runs.tried(method)) < setting.most_rates and (further := beyond(tried, runs.best_rate(method))):
            runs.make(method, further, setting.seeds[0])
        for seed in setting.seeds[1:]:
            runs.make(method, runs.best_rate(method), seed)


if __name__ == "__main__":
    main()
