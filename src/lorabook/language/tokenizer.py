"""Text to token ids and back: whole words where the vocabulary has them, bytes where it does not.

It learns its words by counting and knows nothing of models or tasks.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

# A piece is a word, a number or a run of punctuation, together with one space before it; other white space stands alone.
_PIECE = re.compile(r" ?[^\W\d]+| ?\d+| ?[^\w\s]+|\s")
_N_BYTES = 256


class WordTokenizer:
    """Word-level tokenizer that can encode any text, because unknown words fall back to their UTF-8 bytes.

    Ids 0 to 255 are the bytes, id 256 is the end of a text, the words follow. ``decode(encode(text)) == text`` for every text.

    Args:
        words: the vocabulary, pieces of text such as ``" SELECT"`` (a word keeps the space before it), without duplicates.

    Raises:
        ValueError: a word is empty or stands twice.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> tokenizer = WordTokenizer.train(["to be or not to be"], size=4)
        >>> tokenizer.decode(tokenizer.encode("to be, or not?"))
        'to be, or not?'
    """

    def __init__(self, words: Sequence[str]) -> None:
        if len(set(words)) != len(words) or "" in words:
            raise ValueError("words must be distinct and not empty")
        self.words = tuple(words)
        self.end_id = _N_BYTES
        self._ids = {word: _N_BYTES + 1 + index for index, word in enumerate(self.words)}

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> WordTokenizer:
        """Keep the ``size`` most frequent pieces of the texts (ties in alphabetical order)."""
        counts = Counter(piece for text in texts for piece in _PIECE.findall(text))
        ranked = sorted(counts, key=lambda piece: (-counts[piece], piece))
        return cls(ranked[:size])

    @property
    def vocab_size(self) -> int:
        """Number of token ids: bytes, the end token, and words."""
        return _N_BYTES + 1 + len(self.words)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Lone surrogates, which have no UTF-8, raise UnicodeEncodeError."""
        ids: list[int] = []
        for piece in _PIECE.findall(text):
            if piece in self._ids:
                ids.append(self._ids[piece])
            else:
                ids.extend(piece.encode("utf-8"))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; the end token adds nothing, bytes that are not UTF-8 become the replacement character.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        data = bytearray()
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token ids run from 0 to {self.vocab_size - 1}, got {token}")
            if token < _N_BYTES:
                data.append(token)
            elif token > self.end_id:
                data.extend(self.words[token - self.end_id - 1].encode("utf-8"))
        return data.decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> None:
        """Write the vocabulary as JSON."""
        Path(path).write_text(json.dumps({"words": self.words}, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> WordTokenizer:
        """Read a vocabulary that :meth:`save` wrote."""
        return cls(json.loads(Path(path).read_text(encoding="utf-8"))["words"])
