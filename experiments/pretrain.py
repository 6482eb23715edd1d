"""Pre-train the small backbone of the book: questions to plans, and SQL that answers no question.

    python experiments/pretrain.py

A plan says what a query does in a small formal language of its own, so the backbone learns to read the questions; it also sees
SQL, but never a question together with its SQL. That pairing is left to fine-tuning. Writes to assets/weights/.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from lorabook.language.gpt import GPT, GPTConfig
from lorabook.language.likelihood import Example, negative_log_likelihood, pad_batch, sequence_example
from lorabook.language.tokenizer import WordTokenizer
from lorabook.tasks.tables import TABLES
from lorabook.tasks.text_to_sql import Query, draw, split_of
from lorabook.training.loop import train
from lorabook.training.runtime import best_device, seed_everything

_OPERATORS = {"=": "is", ">": "above", "<": "below", ">=": "from", "<=": "upto"}
_REDUCTIONS = {"COUNT": "tally", "AVG": "mean", "SUM": "total", "MAX": "top", "MIN": "bottom"}


def plan(query: Query) -> str:
    """The query as steps of a pipeline, in an order and with words other than SQL's."""
    steps = [query.table]
    steps += [f"keep {condition.column} {_OPERATORS[condition.operator]} {condition.value}" for condition in query.conditions]
    if query.order:
        steps += [f"sort {query.order[0]} {'down' if query.order[1] else 'up'}", f"first {query.limit}"]
    if query.group:
        steps.append(f"split {query.group}")
    shown = "" if query.column == "*" else f" {query.column}"
    steps.append(_REDUCTIONS[query.aggregate] + shown if query.aggregate else f"take{shown}")
    return " : ".join(steps)


def documents(count: int, seed: int, split: str = "train") -> list[str]:
    """Three texts in four are a question with its plan, one is a schema with some query in SQL."""
    rng = random.Random(f"pretrain-{split}-{seed}")
    texts: list[str] = []
    while len(texts) < count:
        example = draw(rng)
        if split_of(example.query) != split:
            continue
        schema = TABLES[example.query.table].schema
        if rng.random() < 0.75:
            texts.append(f"{schema}\n{example.question}\nPLAN: {plan(example.query)}")
        else:
            texts.append(f"{schema}\nSQL: {example.query.sql}")
    return texts


def encode(texts: list[str], tokenizer: WordTokenizer) -> list[Example]:
    return [sequence_example([*tokenizer.encode(text), tokenizer.end_id]) for text in texts]


@torch.no_grad()
def validation_loss(model: GPT, examples: list[Example]) -> float:
    """Nats per token."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(examples), 64):
        input_ids, labels = (part.to(next(model.parameters()).device) for part in pad_batch(examples[start : start + 64]))
        batch_total, batch_count = negative_log_likelihood(model(input_ids), labels)
        total, count = total + batch_total.item(), count + int(batch_count)
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description="Pre-train the book's small backbone and write it to assets/weights/.")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--documents", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("assets/weights"))
    arguments = parser.parse_args()

    seed_everything(arguments.seed)
    texts = documents(arguments.documents, arguments.seed)
    tokenizer = WordTokenizer.train(texts, size=1000)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size)).to(best_device())
    held_out = encode(documents(2000, arguments.seed, "validation"), tokenizer)

    start = time.perf_counter()
    log = train(
        model,
        encode(texts, tokenizer),
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        batch_size=arguments.batch_size,
        weight_decay=0.01,
        seed=arguments.seed,
        description="pre-training",
    )
    card = {
        "command": "python experiments/pretrain.py",
        "arguments": {name: value for name, value in vars(arguments).items() if name != "out"},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "validation_nats_per_token": round(validation_loss(model, held_out), 4),
        "training_nats_per_token": [round(loss, 4) for loss in log.losses[:: max(1, arguments.steps // 50)]],
        "seconds": round(time.perf_counter() - start),
        "device": f"{best_device().type}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "config": model.config.__dict__,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(arguments.out / "tokenizer.json")
    # The head shares the embedding's weight, and the file holds it once.
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, arguments.out / "backbone.safetensors")
    (arguments.out / "backbone.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"{card['validation_nats_per_token']} nats per token on held-out documents after {card['seconds']} s")


if __name__ == "__main__":
    main()
