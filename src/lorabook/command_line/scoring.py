"""Let a model answer a task's questions, and score the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from tqdm import tqdm

from lorabook.language.gpt import GPT
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.tasks import Task, TaskExample

_CHUNK = 200  # questions between two steps of the progress bar


def answer(task: Task, model: GPT, tokenizer: BytePairTokenizer, examples: Sequence[TaskExample]) -> list[Any]:
    """The task's predictions for all examples, with a progress bar on a terminal.

    Args:
        task: one of ``lorabook.tasks.TASKS``.
        model: what is to answer.
        tokenizer: the model's.
        examples: of this task.
    """
    predictions: list[Any] = []
    with tqdm(total=len(examples), desc="answering", leave=False, disable=None) as progress:
        for start in range(0, len(examples), _CHUNK):
            chunk = examples[start : start + _CHUNK]
            predictions += task.predict(model, tokenizer, chunk)
            progress.update(len(chunk))
    return predictions


def shown(prediction: Any) -> dict[str, Any]:
    """A prediction as plain values: what was asked, what was to come, and the answer with how it was judged."""
    plain = {field.name: getattr(prediction, field.name) for field in fields(prediction)}
    example = plain.pop("example")
    judged = {name: value for name, value in plain.items() if isinstance(value, str | bool | int | float)}
    return {"prompt": example.prompt, "target": example.target.strip(), **judged}
