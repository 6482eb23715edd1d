"""How well a language model predicts text that it never saw, per byte, whatever its tokenizer; it knows no corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lorabook.language.gpt import GPT
from lorabook.language.likelihood import Example, bits_per_byte, negative_log_likelihood, pad_batch
from lorabook.language.tokenizer import BytePairTokenizer


@torch.no_grad()
def held_out_bits_per_byte(
    model: GPT, tokenizer: BytePairTokenizer, texts: Iterable[str], *, max_bytes: int = 150_000, batch_size: int = 32
) -> float:
    r"""Bits per byte over the first texts, each cut into pieces that fit the context.

    .. math:: \frac{-\sum_t \log_2 p(y_t \mid y_{<t})}{\text{bytes of UTF-8}}

    Every token is predicted; the first of a piece is predicted from the end token alone.

    Args:
        model: on any device; left in the mode in which it came.
        tokenizer: the model's.
        texts: the last one read is read to its end.
        max_bytes: no further text is begun after so many.
        batch_size: pieces at a time.

    Returns:
        Bits per byte; 8 would be no prediction at all.

    Raises:
        ValueError: the texts are empty.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> from lorabook.language.backbone import load_backbone
        >>> held_out_bits_per_byte(*load_backbone(), ["import os, sys"]) < 8
        True
    """
    total, n_bytes, pieces = 0.0, 0, list[Example]()
    width = model.config.context - 1
    for text in texts:
        if n_bytes >= max_bytes:
            break
        ids = tokenizer.encode(text)
        n_bytes += len(text.encode("utf-8"))
        for start in range(0, len(ids), width):
            piece = ids[start : start + width]
            pieces.append(([tokenizer.end_id, *piece[:-1]], piece))
    device = next(model.parameters()).device
    with evaluation_mode(model):
        for start in range(0, len(pieces), batch_size):
            input_ids, labels = (part.to(device) for part in pad_batch(pieces[start : start + batch_size]))
            total += negative_log_likelihood(model(input_ids), labels)[0].item()
    return bits_per_byte(total, n_bytes)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside the block all of the model is in evaluation mode; afterwards each part is in the mode in which it came, also after an error.

    Example:
        >>> model = nn.Sequential(nn.Dropout(0.5))
        >>> with evaluation_mode(model):
        ...     inside = model[0].training
        >>> inside, model[0].training
        (False, True)
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
