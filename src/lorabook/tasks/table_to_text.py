"""A row of a table to a sentence that says all of it, judged by its words; it knows the language wing and no adapters.

An example, as the model reads and must continue it::

    cities(name = amber harbour, population = 300, country = norway)
    TEXT: amber harbour is a city in norway, population 300.

The sentence puts words before numbers, and each in the order in which the row has them. How a column is said ("in norway") the row does
not tell: that is what there is to learn. A column of an unseen table is said in the one way that needs no learning: "whose breed is cob".
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorabook.language.generate import generate
from lorabook.language.gpt import GPT
from lorabook.language.likelihood import Example, conditional_example
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.tasks.sentences import Thing, draw_thing
from lorabook.tasks.splits import SPLITS, Split, draw_distinct, split_of_key
from lorabook.tasks.tables import SEEN, UNSEEN, Table

__all__ = ["SPLITS", "Prediction", "TextExample", "ask", "encode", "examples", "judge", "predict", "scores", "slot_recall", "split_of"]

_MAX_TEXT_TOKENS = 80


@dataclass(frozen=True)
class TextExample:
    """A row and what it says.

    Args:
        row: the row as a record, its columns in one of several orders.
        thing: its meaning; ``thing.sentence()`` is the reference.
    """

    row: str
    thing: Thing

    @property
    def prompt(self) -> str:
        """What the model reads: the row, and the cue to say it."""
        return f"{self.row}\nTEXT:"

    @property
    def target(self) -> str:
        """What the model is to write, the end token aside."""
        return " " + self.thing.sentence()


def ask(rng: random.Random, table: Table) -> TextExample:
    """One random row of a table, with one to all of its columns."""
    thing = draw_thing(rng, table, columns=rng.randint(1, len(table.described)))
    return TextExample(_row(rng, thing), thing)


def _row(rng: random.Random, thing: Thing) -> str:
    """The row, its columns mixed, but words among themselves and numbers among themselves in the order of the sentence.

    Otherwise nobody could tell, for a table never seen, which of two columns of words to say first.
    """
    while True:
        row = thing.row(rng)
        places = [
            [row.index(f", {column.name} = ") for column in alike if column.name in thing.values]
            for alike in (thing.table.texts, thing.table.numbers)
        ]
        if all(found == sorted(found) for found in places):
            return row


def split_of(thing: Thing) -> Split:
    """The split to which a thing belongs, decided by its facts: no order of the columns of a test row is ever trained on.

    Example:
        >>> from lorabook.tasks.tables import TABLES
        >>> split_of(Thing(TABLES["cities"], "amber harbour", {"country": "norway"}))
        'train'
    """
    return split_of_key(_facts(thing))


def _facts(thing: Thing) -> str:
    return " : ".join([thing.table.name, thing.label, *sorted(f"{column} {value}" for column, value in thing.values.items())])


def examples(split: Split, count: int, *, seed: int) -> list[TextExample]:
    """Draw examples of one split. Outside training no set of facts occurs twice.

    Args:
        split: ``train``, ``validation`` and ``test`` say rows of sixteen tables, and their sets of facts are disjoint; ``unseen`` says
            rows of four tables that occur nowhere else.
        count: how many.
        seed: the same seed gives the same examples.

    Raises:
        ValueError: an unknown split or a negative count.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> example = examples("test", 1, seed=1)[0]
        >>> split_of(example.thing)
        'test'
    """
    tables = list((UNSEEN if split == "unseen" else SEEN).values())
    return draw_distinct(
        split,
        count,
        seed=seed,
        draw=lambda rng: ask(rng, rng.choice(tables)),
        key=lambda example: _facts(example.thing),
        identity=lambda example: _facts(example.thing),
    )


def encode(example: TextExample, tokenizer: BytePairTokenizer) -> Example:
    """Inputs and labels of an example: the prompt carries no loss, the target ends with the end token."""
    return conditional_example(tokenizer.encode(example.prompt), [*tokenizer.encode(example.target), tokenizer.end_id])


@dataclass(frozen=True)
class Prediction:
    """What a model wrote and how it was judged.

    Args:
        example: the row.
        text: what the model wrote.
        exact: whether it is the reference.
        slot_recall: how much of the row it holds, between 0 and 1.
    """

    example: TextExample
    text: str
    exact: bool
    slot_recall: float


def judge(example: TextExample, text: str) -> Prediction:
    """Compare a sentence with the row's reference, white space around it aside, and with the row itself.

    Example:
        >>> from lorabook.tasks.tables import TABLES
        >>> thing = Thing(TABLES["cities"], "amber harbour", {"country": "norway", "population": 300})
        >>> said = judge(TextExample(thing.row(random.Random(0)), thing), "amber harbour is a city in peru, population 300.")
        >>> said.exact, round(said.slot_recall, 3)
        (False, 0.667)
    """
    return Prediction(example, text, text.strip() == example.thing.sentence(), slot_recall(example.thing, text))


def slot_recall(thing: Thing, text: str) -> float:
    """Share of a row's slots, its label and its values, that a text holds as whole words or numbers; each mention counts for one slot.

    Example:
        >>> from lorabook.tasks.tables import TABLES
        >>> slot_recall(Thing(TABLES["cities"], "amber harbour", {"population": 30}), "amber harbour: 300")
        0.5
    """
    # The label is struck out first: "iron bridge" is no mention of the material iron.
    slots = [thing.label, *map(str, thing.values.values())]
    found = 0
    for slot in slots:
        text, struck = re.subn(rf"(?<![\w-])(?<!\d[.,]){re.escape(slot)}(?![\w-]|[.,]\d)", "", text, count=1)
        found += struck
    return found / len(slots)


def predict(model: GPT, tokenizer: BytePairTokenizer, examples: Sequence[TextExample]) -> list[Prediction]:
    """Let the model say every row greedily and judge each sentence.

    Chapter: Fine-tuning with LoRA.
    """
    prompts = [tokenizer.encode(example.prompt) for example in examples]
    written = generate(model, prompts, max_new_tokens=_MAX_TEXT_TOKENS, stop_id=tokenizer.end_id)
    return [judge(example, tokenizer.decode(ids).strip()) for example, ids in zip(examples, written, strict=True)]


def scores(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Mean exactness and mean slot recall, each between 0 and 1.

    Exactness comes first: a model that copies the row has a slot recall of 1 and has said nothing. Slot recall tells, of a sentence that
    is not exact, whether facts are missing or only the wording is off.

    Raises:
        ValueError: no prediction.
    """
    if not predictions:
        raise ValueError("scores need at least one prediction")
    return {
        "exactness": sum(prediction.exact for prediction in predictions) / len(predictions),
        "slot_recall": sum(prediction.slot_recall for prediction in predictions) / len(predictions),
    }
