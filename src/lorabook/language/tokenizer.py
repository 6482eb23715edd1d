"""Byte-level byte-pair encoding: any text to token ids and back; it knows nothing of models or tasks."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

# A text is cut into pieces first, and no token crosses a cut: a word with the space before it, one digit, a run of anything else, white
# space. One digit at a time, so that a number is copied digit by digit and none is rarer than another. Only ASCII is told apart, which
# every regular-expression engine does alike.
PIECE = r" ?[A-Za-z]+| ?[0-9]| ?[^A-Za-z0-9 \t\n\r\x0b\x0c]+|[ \t\n\r\x0b\x0c]+(?![^ \t\n\r\x0b\x0c])|[ \t\n\r\x0b\x0c]+"
_PIECE = re.compile(PIECE)
_N_BYTES = 256


class BytePairTokenizer:
    """Byte-level BPE: a text's UTF-8 bytes, with the most frequent neighbours merged, in the order in which they were learnt.

    Ids 0 to 255 are the bytes, id 256 ends a text, id ``257 + i`` is what merge ``i`` makes of two earlier ids. Every text can be
    encoded, and ``decode(encode(text)) == text``.

    Args:
        merges: pairs of ids, each below the id that the merge makes and none of them the end token.

    Raises:
        ValueError: a merge uses an id that does not exist yet, or stands twice.

    Source: Sennrich et al. 2016 (byte-pair encoding); Radford et al. 2019 (bytes as the alphabet).
    Chapter: Fine-tuning with LoRA.

    Example:
        >>> tokenizer = BytePairTokenizer.train(["to be or not to be"], vocab_size=260)
        >>> tokenizer.decode(tokenizer.encode("to be, or not?"))
        'to be, or not?'
        >>> [tokenizer.decode([token]) for token in tokenizer.encode("to be")]
        ['to', ' be']
    """

    def __init__(self, merges: Sequence[tuple[int, int]]) -> None:
        self.merges = tuple((int(left), int(right)) for left, right in merges)
        self.end_id = _N_BYTES
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        if len(self._ranks) != len(self.merges):
            raise ValueError("each merge must stand once: a pair stands twice")
        self._bytes = [bytes([value]) for value in range(_N_BYTES)] + [b""]
        for rank, (left, right) in enumerate(self.merges):
            if min(left, right) < 0 or max(left, right) > _N_BYTES + rank or self.end_id in (left, right):
                raise ValueError(f"merge {rank} must join ids below {_N_BYTES + 1 + rank} other than {self.end_id}, got {left} and {right}")
            self._bytes.append(self._bytes[left] + self._bytes[right])
        self._known: dict[str, list[int]] = {}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BytePairTokenizer:
        """Learn merges by counting, the most frequent pair first (of equals, the one with the smallest ids).

        It recounts all pairs for each merge: for a few short texts. ``experiments/pretrain.py`` trains on megabytes with the library
        ``tokenizers``, which learns by the same rule.

        Args:
            texts: what to learn from.
            vocab_size: ids in the end, 257 or more; fewer if no pair is left.
        """
        counts = Counter(piece for text in texts for piece in _PIECE.findall(text))
        words = [(list(piece.encode("utf-8")), count) for piece, count in counts.items()]
        merges: list[tuple[int, int]] = []
        while _N_BYTES + 1 + len(merges) < vocab_size:
            pairs: Counter[tuple[int, int]] = Counter()
            for ids, count in words:
                for pair in pairwise(ids):
                    pairs[pair] += count
            if not pairs:
                break
            best = min(pairs, key=lambda pair: (-pairs[pair], pair))
            for ids, _ in words:
                _merge(ids, best, _N_BYTES + 1 + len(merges))
            merges.append(best)
        return cls(merges)

    @property
    def vocab_size(self) -> int:
        """Number of token ids: bytes, the end token, and what the merges make."""
        return _N_BYTES + 1 + len(self.merges)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Lone surrogates, which have no UTF-8, raise UnicodeEncodeError."""
        return [token for piece in _PIECE.findall(text) for token in self._encode_piece(piece)]

    def _encode_piece(self, piece: str) -> list[int]:
        known = self._known.get(piece)
        if known is not None:
            return known
        ids = list(piece.encode("utf-8"))
        while len(ids) > 1:
            rank, pair = min((self._ranks.get(pair, len(self.merges)), pair) for pair in pairwise(ids))
            if rank == len(self.merges):
                break
            _merge(ids, pair, _N_BYTES + 1 + rank)
        if len(piece) < 32:  # longer ones seldom come back
            self._known[piece] = ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; the end token adds nothing, bytes that are not UTF-8 become the replacement character.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        parts = []
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token ids run from 0 to {self.vocab_size - 1}, got {token}")
            parts.append(self._bytes[token])
        return b"".join(parts).decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> None:
        """Write the merges as JSON."""
        Path(path).write_text(json.dumps({"merges": self.merges}, separators=(",", ":")) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> BytePairTokenizer:
        """Read the merges that :meth:`save` wrote."""
        return cls(json.loads(Path(path).read_text(encoding="utf-8"))["merges"])


def _merge(ids: list[int], pair: tuple[int, int], merged: int) -> None:
    """Replace each occurrence of the pair, from the left."""
    index = 0
    while index < len(ids) - 1:
        if (ids[index], ids[index + 1]) == pair:
            ids[index : index + 2] = [merged]
        index += 1
