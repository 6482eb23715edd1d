"""How a task divides what it can ask: by a hash of the thing asked, never of its wording; it knows no task."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import Literal, TypeVar

Split = Literal["train", "validation", "test", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "unseen")
Drawn = TypeVar("Drawn")
_MOST_MISSES = 20_000  # draws in a row that bring nothing new


def split_of_key(key: str) -> Split:
    """The split of what a key stands for: one in ten for the test, one in ten for validation.

    Example:
        >>> split_of_key("amber harbour : country")
        'train'
    """
    bucket = zlib.crc32(key.encode("utf-8")) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def draw_distinct(
    split: Split,
    count: int,
    *,
    seed: int,
    draw: Callable[[random.Random], Drawn],
    key: Callable[[Drawn], str],
    identity: Callable[[Drawn], str],
    keep: Callable[[Drawn], bool] = lambda _: True,
) -> list[Drawn]:
    """Draw examples of one split. Outside training none occurs twice.

    Args:
        split: ``unseen`` takes every example, for ``draw`` then makes them of other tables.
        count: how many.
        seed: the same seed gives the same examples.
        draw: makes one example at random, of any split.
        key: decides an example's split.
        identity: equal for two examples that are to count as the same.
        keep: says which examples are fit to be asked.

    Raises:
        ValueError: an unknown split, a negative count, or more examples than there seem to be.
    """
    if split not in SPLITS or count < 0:
        raise ValueError(f"split must be one of {', '.join(SPLITS)} and count at least 0, got {split!r} and {count}")
    rng = random.Random(f"{split}-{seed}")
    found: list[Drawn] = []
    known: set[str] = set()
    misses = 0
    while len(found) < count:
        example = draw(rng)
        new = split in ("unseen", split_of_key(key(example))) and (split == "train" or identity(example) not in known)
        if not (new and keep(example)):
            misses += 1
            if misses > _MOST_MISSES:
                raise ValueError(f"there seem to be only {len(found)} examples in {split}, got count {count}: ask for fewer")
            continue
        misses = 0
        known.add(identity(example))
        found.append(example)
    return found
