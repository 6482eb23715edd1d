"""Bits per byte on the test documents of each source of the corpus, for the experiments that need them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from lorabook.language.corpus import Split, documents
from lorabook.language.evaluate import held_out_bits_per_byte
from lorabook.language.gpt import GPT
from lorabook.language.tokenizer import BytePairTokenizer

BYTES = 100_000  # of each source


@cache
def sample(source: str, split: Split, n_bytes: int) -> tuple[str, ...]:
    """Documents spread evenly over a source, not its first ones, with about so many bytes together."""
    found: Sequence[str] = documents(source, split)
    step = max(1, sum(map(len, found)) // n_bytes)
    return tuple(found[::step])


def bits_per_byte_of(
    model: GPT, tokenizer: BytePairTokenizer, sources: Iterable[str], *, split: Split = "test", n_bytes: int = BYTES
) -> dict[str, float]:
    """Bits per byte by source."""
    found = {source: sample(source, split, n_bytes) for source in sources}
    return {source: round(held_out_bits_per_byte(model, tokenizer, texts, max_bytes=n_bytes), 4) for source, texts in found.items()}
