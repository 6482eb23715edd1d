"""What the backbone reads about tables besides real text: plans, queries, passages, facts and rows.

Each task's input and each task's output occur here, but never the one as the answer to the other: a question is followed by a *plan* in
a small pipeline language, SQL answers no question, a row has no sentence, a passage is followed by its facts and by no question. Half of
what it reads is about tables made up on the spot, so that it learns to look words up in the prompt instead of knowing them by heart.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Literal

from lorabook.tasks.questions import Query, ask
from lorabook.tasks.sentences import draw_thing
from lorabook.tasks.tables import LABELS, SEEN, UNSEEN, Table, number_column, text_column
from lorabook.tasks.text_to_sql import split_of

_OPERATORS = {"=": "is", ">": "above", "<": "below", ">=": "from", "<=": "upto"}
_REDUCTIONS = {"COUNT": "tally", "AVG": "mean", "SUM": "total", "MAX": "top", "MIN": "bottom"}
_MADE_UP = 0.5  # share of documents about tables that exist only once


def plan(query: Query) -> str:
    """The query as steps of a pipeline, in an order and with words other than SQL's.

    Example:
        >>> plan(Query("rivers", "*", "COUNT", group="sea"))
        'rivers : split sea : tally'
    """
    steps = [query.table]
    steps += [f"keep {condition.column} {_OPERATORS[condition.operator]} {condition.value}" for condition in query.conditions]
    if query.order:
        steps += [f"sort {query.order[0]} {'down' if query.order[1] else 'up'}", f"first {query.limit}"]
    if query.group:
        steps.append(f"split {query.group}")
    shown = "" if query.column == "*" else f" {query.column}"
    steps.append(_REDUCTIONS[query.aggregate] + shown if query.aggregate else f"take{shown}")
    return " : ".join(steps)


def kept_for_testing() -> set[str]:
    """Every word of the unseen tables; no generated text of pre-training holds one as a table, a column or a value."""
    words = {word for table in UNSEEN.values() for word in (table.name, table.singular, *(column.name for column in table.described))}
    return words | set(chain.from_iterable(text.values for table in UNSEEN.values() for text in table.texts))


def usable_names(words: Sequence[str]) -> list[str]:
    """The words that may name a made-up table or column: none of the unseen tables' and none that SQL keeps to itself.

    Example:
        >>> usable_names(["river", "order", "horse", "stone"])
        ['river', 'stone']
    """
    connection = sqlite3.connect(":memory:")

    def is_name(word: str) -> bool:
        if not word.isalpha():
            return False
        try:
            connection.execute(f"SELECT {word} FROM (SELECT 1 AS {word})")  # noqa: S608  # letters only, run in an empty database
        except sqlite3.OperationalError:
            return False
        return True

    kept = kept_for_testing()
    # A made-up table's name is a plural, so that has to be free too.
    return sorted(word for word in set(words) if not {word, word + "s"} & kept and is_name(word) and is_name(word + "s"))


def made_up_table(rng: random.Random, words: Sequence[str]) -> Table:
    """A table that exists only once, its name, columns and values drawn from ``words``."""
    singular, *names = rng.sample(words, 5)
    values = [" ".join(rng.sample(words, 5)) for _ in range(2)]
    texts = tuple(text_column(name, "", text) for name, text in zip(names[:2], values, strict=True))
    numbers = tuple(number_column(name, rng.choice((range(10, 410, 10), range(100, 4100, 100)))) for name in names[2:])
    return Table(singular + "s", singular, (singular + "s",), texts, numbers)


def generated(count: int, *, words: Sequence[str], seed: int, split: Literal["train", "validation"] = "train") -> Iterator[str]:
    """Generated documents for pre-training.

    Args:
        count: how many.
        words: what made-up tables are made of, at least five; words of the unseen tables are left out.
        seed: the same seed gives the same documents.
        split: queries of this split only, so that no test query is pre-trained on, in any form.

    Example:
        >>> next(generated(1, words="alpha beta gamma delta omega zeta".split(), seed=3)).count("SELECT") <= 1
        True
    """
    rng = random.Random(f"pretrain-{split}-{seed}")
    usable = usable_names(words)
    forms: tuple[Callable[[random.Random, Table, Sequence[str], str], str], ...] = (_plan, _query, _passage, _row)
    for _ in range(count):
        table = made_up_table(rng, usable) if rng.random() < _MADE_UP else rng.choice(list(SEEN.values()))
        form = rng.choices(forms, (35, 25, 25, 15))[0]
        yield form(rng, table, usable, split)


def _query_of(rng: random.Random, table: Table, split: str) -> tuple[str, Query]:
    while True:
        example = ask(rng, table)
        if split_of(example.query) == split:
            return example.question, example.query


def _plan(rng: random.Random, table: Table, words: Sequence[str], split: str) -> str:
    question, query = _query_of(rng, table, split)
    return f"{table.schema}\n{question}\nPLAN: {plan(query)}"


def _query(rng: random.Random, table: Table, words: Sequence[str], split: str) -> str:
    return f"{table.schema}\nSQL: {_query_of(rng, table, split)[1].sql}"


def _label(rng: random.Random, words: Sequence[str]) -> str:
    return rng.choice(LABELS) if rng.random() < 0.5 else " ".join(rng.sample(words, 2))


def _passage(rng: random.Random, table: Table, words: Sequence[str], split: str) -> str:
    things = [draw_thing(rng, table, columns=rng.randint(1, 3), label=_label(rng, words)) for _ in range(rng.randint(1, 3))]
    said = []
    for thing in things:
        said += [thing.sentence()] if rng.random() < 0.5 else [thing.statement(column, rng) for column in thing.values]
    if len(things) > 1:
        rng.shuffle(said)
    passage = " ".join(said)
    return passage if rng.random() < 0.3 else "\n".join([passage, *(f"FACTS: {thing.facts()}" for thing in things)])


def _row(rng: random.Random, table: Table, words: Sequence[str], split: str) -> str:
    return draw_thing(rng, table, columns=rng.randint(1, 4), label=_label(rng, words)).row(rng)
