"""The order in which a run sees its examples, as a state that can be stored; it knows no model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorabook.language.likelihood import IGNORE, Example


class Batches:
    """Batches without end; each epoch visits every example once, in a new order, and carries its rest into the next.

    Examples of like length are not put together, although that would save padding: questions of one length tend to be of one kind, and
    in a trial with one seed such batches made LoRA learn worse.

    Args:
        examples: at least one.
        batch_size: examples per batch, at least 1; it may exceed their number.
        seed: of the orders.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> batches = Batches([([i], [i + 1]) for i in range(3)], batch_size=2, seed=0)
        >>> drawn = [*batches.draw(), *batches.draw(), *batches.draw()]
        >>> sorted(drawn[:3]) == sorted(drawn[3:])
        True
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._queue: list[int] = []

    def draw(self) -> list[Example]:
        """The next batch."""
        while len(self._queue) < self.batch_size:
            self._queue.extend(torch.randperm(len(self.examples), generator=self._generator).tolist())
        chosen, self._queue = self._queue[: self.batch_size], self._queue[self.batch_size :]
        return [self.examples[index] for index in chosen]

    def state(self) -> dict[str, Tensor]:
        """All that decides the batches to come."""
        return {"generator": self._generator.get_state(), "queue": torch.tensor(self._queue, dtype=torch.long)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a state that :meth:`state` gave.

        Raises:
            ValueError: not a state of batches of these examples; nothing has changed then.
        """
        queue, generator = state["queue"].tolist(), torch.Generator()
        if not all(0 <= index < len(self.examples) for index in queue):
            raise ValueError(f"the queue names examples that are not there: there are {len(self.examples)}")
        try:
            generator.set_state(state["generator"])
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"not the state of a random generator: {error}") from None
        self._queue, self._generator = queue, generator


def count_targets(examples: Sequence[Example]) -> int:
    """Tokens that carry loss.

    Example:
        >>> count_targets([([5, 6, 7], [-100, 7, 8]), ([5], [6])])
        3
    """
    return sum(len(labels) - labels.count(IGNORE) for _, labels in examples)
