"""The tasks by name, each a module with the same face; it knows no adapters.

Example:
    >>> task = TASKS["reading"]
    >>> example = task.examples("test", 1, seed=0)[0]
    >>> example.prompt.endswith("ANSWER:")
    True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from lorabook.language.gpt import GPT
from lorabook.language.likelihood import Example
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.tasks import reading, table_to_text, text_to_sql


class TaskExample(Protocol):
    """What a model is to continue, and how."""

    @property
    def prompt(self) -> str:
        """What the model reads."""

    @property
    def target(self) -> str:
        """What it is to write, the end token aside."""


class Task(Protocol):
    """The face of a task's module. Its examples and predictions are of its own classes: one task's fit no other."""

    @property
    def SPLITS(self) -> tuple[str, ...]:  # noqa: N802  # a constant of the module
        """Names of the splits; the first is to train on."""

    def examples(self, split: Any, count: int, *, seed: int) -> Sequence[TaskExample]:
        """Draw examples of one split; the same seed gives the same ones."""

    def encode(self, example: Any, tokenizer: BytePairTokenizer) -> Example:
        """Inputs and labels: the prompt carries no loss, the target ends with the end token."""

    def predict(self, model: GPT, tokenizer: BytePairTokenizer, examples: Any) -> Sequence[Any]:
        """Let the model continue every prompt greedily, and judge what it writes."""

    def scores(self, predictions: Any) -> dict[str, float]:
        """Scores between 0 and 1 by name, the headline score first."""


TASKS: Mapping[str, Task] = MappingProxyType({"text_to_sql": text_to_sql, "table_to_text": table_to_text, "reading": reading})
