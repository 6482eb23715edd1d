"""Fine-tune the backbone on text to SQL by several methods, each at its own best learning rate, with three seeds.

    python experiments/text_to_sql_methods.py

The learning rate of a method is chosen by execution accuracy on validation questions with seed 0, never on test questions; the other
seeds run at that rate, and two of the methods once more with more steps. Runs that the result file already holds are not
repeated, so an interrupted sweep goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from lorabook import LoRAConfig, add_lora, best_device, count_parameters
from lorabook.language.backbone import load_backbone
from lorabook.tasks import text_to_sql
from lorabook.training.loop import train

_METHODS: dict[str, LoRAConfig | None] = {
    "full fine-tuning": None,
    "LoRA, all linear, r = 16": LoRAConfig(rank=16, alpha=32.0, targets="all-linear"),
    "LoRA, q and v, r = 16": LoRAConfig(rank=16, alpha=32.0, targets=("q_proj", "v_proj")),
}
_RATES = {"full": (5e-4, 1e-3, 2e-3), "lora": (2.5e-3, 5e-3, 1e-2)}
_SEEDS = (0, 1, 2)
_STEPS, _MORE_STEPS = 400, 600
_LONGER = ("full fine-tuning", "LoRA, all linear, r = 16")  # methods that also run with more steps
_TRAINING_EXAMPLES, _VALIDATION_QUESTIONS, _TEST_QUESTIONS = 4000, 300, 500


def run(method: str, learning_rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Fine-tune once and answer the validation and the test questions."""
    model, tokenizer = load_backbone()
    config = _METHODS[method]
    if config is not None:
        add_lora(model, config, generator=torch.Generator().manual_seed(seed))
    model.to(best_device())
    examples = [text_to_sql.encode(example, tokenizer) for example in text_to_sql.examples("train", _TRAINING_EXAMPLES, seed=0)]
    log = train(model, examples, steps=steps, learning_rate=learning_rate, seed=seed, description=method)
    validation = text_to_sql.predict(model, tokenizer, text_to_sql.examples("validation", _VALIDATION_QUESTIONS, seed=0))
    test = text_to_sql.predict(model, tokenizer, text_to_sql.examples("test", _TEST_QUESTIONS, seed=0))
    return {
        "method": method,
        "learning_rate": learning_rate,
        "seed": seed,
        "steps": steps,
        "trainable": count_parameters(model).trainable,
        "validation_accuracy": text_to_sql.execution_accuracy(validation),
        "test_accuracy": text_to_sql.execution_accuracy(test),
        "final_loss": sum(log.losses[-20:]) / 20,
        "seconds": round(log.seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare fine-tuning methods on text to SQL.")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--out", type=Path, default=Path("assets/results/text_to_sql_methods.json"))
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else []

    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:

        def complete(wanted: list[tuple[str, float, int, int]]) -> None:
            present = {(entry["method"], entry["learning_rate"], entry["seed"], entry["steps"]) for entry in runs}
            missing = [pool.submit(run, *key) for key in wanted if key not in present]
            for finished in as_completed(missing):
                entry = finished.result()
                runs.append(entry)
                write(arguments.out, runs, arguments.workers)
                accuracies = f"validation {entry['validation_accuracy']:.1%} test {entry['test_accuracy']:.1%}"
                print(f"{entry['method']:26} {entry['steps']} steps, rate {entry['learning_rate']:.1e} seed {entry['seed']} {accuracies}")

        complete([(method, rate, 0, _STEPS) for method, config in _METHODS.items() for rate in _RATES["lora" if config else "full"]])
        complete([(method, best_rate(runs, method), seed, _STEPS) for method in _METHODS for seed in _SEEDS])
        complete([(method, best_rate(runs, method), seed, _MORE_STEPS) for method in _LONGER for seed in _SEEDS])


def best_rate(runs: list[dict[str, Any]], method: str) -> float:
    """The learning rate with the best validation accuracy at seed 0; the smallest of those that tie."""
    compared = [entry for entry in runs if entry["method"] == method and entry["seed"] == 0 and entry["steps"] == _STEPS]
    tried = sorted((entry["learning_rate"], entry["validation_accuracy"]) for entry in compared)
    return float(max(tried, key=lambda pair: pair[1])[0])


def write(path: Path, runs: list[dict[str, Any]], workers: int) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()  # noqa: S607
    provenance = {
        "command": "python experiments/text_to_sql_methods.py",
        "commit": commit,
        "device": f"{best_device().type}, {workers} runs at a time, one thread each",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "validation_questions": _VALIDATION_QUESTIONS,
        "test_questions": _TEST_QUESTIONS,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(sum(entry["seconds"] for entry in runs), 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    order = {method: index for index, method in enumerate(_METHODS)}
    runs = sorted(runs, key=lambda entry: (order[entry["method"]], entry["steps"], entry["learning_rate"], entry["seed"]))
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"provenance": provenance, "runs": runs}, indent=1) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    main()
