"""Pre-train the book's small backbone on text that every reader already has, and on generated text about tables.

    python experiments/pretrain.py

More than half of what it reads is real: the documentation and the sources of Python, NumPy and Matplotlib (lorabook.language.corpus).
The rest is generated (lorabook.tasks.pretraining). An interrupted run goes on from its checkpoint. Writes to assets/weights/: the
tokenizer, the weights in 16 bits, and the card, which holds what was done and how well the result predicts text that it never saw.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from provenance import device_name, environment
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lorabook.language.backbone import load_backbone
from lorabook.language.corpus import HELD_OUT, SOURCES, documents
from lorabook.language.evaluate import held_out_bits_per_byte
from lorabook.language.generate import generate
from lorabook.language.gpt import GPT, GPTConfig
from lorabook.language.likelihood import Example
from lorabook.language.tokenizer import PIECE, BytePairTokenizer
from lorabook.tasks.pretraining import generated
from lorabook.training.loop import TrainingLog, train
from lorabook.training.runtime import best_device, seed_everything

# Shares of the tokens. Prose is worth more than its size: documentation is short beside programs.
_DIET = {"topics": 0.05, "docstrings": 0.20, "python": 0.14, "numpy": 0.08, "matplotlib": 0.08, "generated": 0.45}
_TOKENIZER_CHARACTERS = 1_500_000  # of each source
_PROMPTS = ("The following", "def __init__(self", "import ", "rivers(name, country, sea, length, depth)\ncount the rivers in peru\nPLAN:")


def common_words(count: int = 3000) -> list[str]:
    """The most frequent lower-case words of three to nine letters in the documentation, ties in alphabetical order."""
    prose = chain(documents("topics", "train"), documents("docstrings", "train"))
    counts = Counter(word for text in prose for word in re.findall(r"\b[a-z]{3,9}\b", text))
    return sorted(counts, key=lambda word: (-counts[word], word))[:count]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> BytePairTokenizer:
    """Learn the merges with the library ``tokenizers`` and number them as :class:`BytePairTokenizer` does."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECE), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    learner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False))
    # The library writes each byte as a printable character: those that are printable in Latin-1 as themselves, the others from U+0100 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    ids = {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
    merges = []
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        merges.append((ids[left], ids[right]))
        if left + right in ids:
            raise ValueError(f"two merges make the same token: {left + right!r}")
        ids[left + right] = 256 + len(merges)
    return BytePairTokenizer(merges)


class Windows(Sequence[Example]):
    """Rows of ``context + 1`` tokens, each an example in which every token but the first is to be predicted."""

    def __init__(self, rows: NDArray[np.uint16]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        row = self.rows[index].tolist()
        return row[:-1], row[1:]


def real_windows(texts: Iterable[str], tokenizer: BytePairTokenizer, count: int, width: int) -> NDArray[np.uint16]:
    """Consecutive windows of the texts, over and over until there are ``count``; each time round they are cut elsewhere."""
    stream = np.fromiter(chain.from_iterable([*tokenizer.encode(text), tokenizer.end_id] for text in texts), np.uint16)
    if len(stream) % width == 0:
        stream = stream[:-1]
    return np.stack([np.take(stream, np.arange(i * width, (i + 1) * width), mode="wrap") for i in range(count)])


def generated_windows(words: Sequence[str], tokenizer: BytePairTokenizer, count: int, width: int, seed: int) -> NDArray[np.uint16]:
    """Windows that begin with a document, as a prompt does; the last document of a window is cut."""
    rows: list[list[int]] = [[]]
    for text in generated(count * width, words=words, seed=seed):  # more documents than needed: each has several tokens
        rows[-1] += [*tokenizer.encode(text), tokenizer.end_id]
        if len(rows[-1]) >= width:
            del rows[-1][width:]
            if len(rows) == count:
                break
            rows.append([])
    return np.array(rows, np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pre-train the book's small backbone and write it to assets/weights/.")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=Path("_build/pretrain.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("assets/weights"))
    arguments = parser.parse_args()

    start = time.perf_counter()
    seed_everything(arguments.seed)
    words = common_words()
    texts = {source: documents(source, "train") for source in SOURCES}
    made = list(generated(10_000, words=words, seed=arguments.seed))
    samples = chain.from_iterable(_up_to(_TOKENIZER_CHARACTERS, found) for found in (*texts.values(), made))
    tokenizer = train_tokenizer(samples, arguments.vocab_size)

    config = GPTConfig(vocab_size=tokenizer.vocab_size, context=256, n_layer=4, n_head=6, n_embd=192)
    width, total = config.context + 1, arguments.steps * arguments.batch_size
    rows = [real_windows(texts[source], tokenizer, round(share * total), width) for source, share in _DIET.items() if source in texts]
    rows.append(generated_windows(words, tokenizer, total - sum(map(len, rows)), width, arguments.seed))
    model = GPT(config).to(best_device())
    print(f"{total * config.context:,} tokens in {arguments.steps} steps, prepared in {time.perf_counter() - start:.0f} s", flush=True)
    log = train(
        model,
        Windows(np.concatenate(rows)),
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        batch_size=arguments.batch_size,
        weight_decay=0.05,
        seed=arguments.seed,
        description="pre-training",
        checkpoint=arguments.checkpoint,
        checkpoint_every=250,
    )
    save(arguments, model, tokenizer, log, words)


def _up_to(characters: int, texts: Sequence[str]) -> list[str]:
    """Texts spread over the whole list, with about so many characters together."""
    step = max(1, sum(map(len, texts)) // characters)
    return list(texts[::step])


def save(arguments: argparse.Namespace, model: GPT, tokenizer: BytePairTokenizer, log: TrainingLog, words: Sequence[str]) -> None:
    """Write the tokenizer, the weights and the card; what the card says is measured on the files as written."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(arguments.out / "tokenizer.json")
    # The head shares the embedding's weight, and the file holds it once.
    weights = {name: value.half().cpu().contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, arguments.out / "backbone.safetensors")
    card: dict[str, Any] = {"command": "python experiments/pretrain.py", "config": model.config.__dict__}
    (arguments.out / "backbone.json").write_text(json.dumps(card) + "\n", encoding="utf-8")

    model, tokenizer = load_backbone(arguments.out)
    held_out = {source: documents(source, "test") for source in (*SOURCES, HELD_OUT)}
    held_out["generated"] = list(generated(2000, words=words, seed=arguments.seed, split="validation"))
    prompts = [tokenizer.encode(prompt) for prompt in _PROMPTS]
    generator = torch.Generator().manual_seed(arguments.seed)
    added = generate(model, prompts, max_new_tokens=80, stop_id=tokenizer.end_id, temperature=0.7, generator=generator)
    versions = {name: version(name) for name in ("numpy", "matplotlib", "torch")}
    card |= {
        "commit": environment()["commit"],
        "arguments": {name: value for name, value in vars(arguments).items() if name not in ("out", "checkpoint")},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": arguments.steps * arguments.batch_size * model.config.context,
        "data": {
            "shares": _DIET,
            "versions": {"python": platform.python_version(), **versions},
        },
        "test_bits_per_byte": {name: round(held_out_bits_per_byte(model, tokenizer, texts), 4) for name, texts in held_out.items()},
        "training_nats_per_token": [round(loss, 4) for loss in log.losses[:: max(1, len(log.losses) // 50)]],
        "samples": [prompt + tokenizer.decode(ids) for prompt, ids in zip(_PROMPTS, added, strict=True)],
        "seconds": round(log.seconds),
        "resumed_at_step": log.resumed_at,
        "device": device_name(),
        "date": time.strftime("%Y-%m-%d"),
    }
    (arguments.out / "backbone.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(card["test_bits_per_byte"], indent=1), *card["samples"], sep="\n---\n")


if __name__ == "__main__":
    main()
