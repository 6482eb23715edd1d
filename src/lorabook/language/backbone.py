"""The book's small pre-trained GPT, read from the files that come with it: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from lorabook.language.gpt import GPT, GPTConfig
from lorabook.language.tokenizer import BytePairTokenizer

_INSTALLED = Path(__file__).parents[1] / "weights"  # in a wheel the weights lie inside the package,
_CHECKOUT = Path(__file__).parents[3] / "assets" / "weights"  # in a checkout beside it


def load_backbone(directory: str | Path | None = None) -> tuple[GPT, BytePairTokenizer]:
    """The pre-trained model, in evaluation mode and float32 on the CPU, and its tokenizer.

    Args:
        directory: holds ``backbone.json`` (its "config" gives the shape), ``backbone.safetensors`` and ``tokenizer.json``; the
            backbone that comes with the package when None.

    Raises:
        FileNotFoundError: a file is missing.
        RuntimeError: the tensors do not fit the shape.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> model, tokenizer = load_backbone()
        >>> model.config.vocab_size == tokenizer.vocab_size
        True
    """
    folder = Path(directory) if directory is not None else _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    card = json.loads((folder / "backbone.json").read_text(encoding="utf-8"))
    model = GPT(GPTConfig(**card["config"]))
    weights = load_file(folder / "backbone.safetensors")  # stored in 16 bits; copied into the model's float32
    # The file holds the shared weight of embedding and head once.
    model.load_state_dict({**weights, "lm_head.weight": weights["token_embedding.weight"]})
    return model.eval(), BytePairTokenizer.load(folder / "tokenizer.json")
