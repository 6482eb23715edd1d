"""Questions in English to SQL, judged by running the SQL; it knows the language wing and no adapters.

An example, as the model reads and must continue it::

    cities(name, country, climate, population, founded)
    how many cities are in norway?
    SQL: SELECT COUNT(*) FROM cities WHERE country = 'norway'
"""

from __future__ import annotations

import random
import sqlite3
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from lorabook.language.generate import generate
from lorabook.language.gpt import GPT
from lorabook.language.likelihood import Example, conditional_example
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.tasks.sandbox import QueryResult, Row, create_database, run_query
from lorabook.tasks.tables import LABELS, SEEN, TABLES, UNSEEN, Number, Table, Text, rows

Split = Literal["train", "validation", "test", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "unseen")
_DATABASE_SEEDS = (0, 1, 2)  # a wrong query seldom agrees with the gold one by luck on one filling, hardly ever on three
_MAX_SQL_TOKENS = 80

_COMPARISONS = {
    ">": ("above", "of more than", "greater than"),
    "<": ("below", "of less than", "smaller than"),
    ">=": ("of at least", "not below"),
    "<=": ("of at most", "not above"),
}
_AGGREGATES = {
    "AVG": ("average", "mean"),
    "SUM": ("total", "summed"),
    "MAX": ("highest", "largest"),
    "MIN": ("lowest", "smallest"),
}


@dataclass(frozen=True)
class Condition:
    """``column operator value``, with the words a question uses for it."""

    column: str
    operator: str
    value: str | int
    words: str


@dataclass(frozen=True)
class Query:
    """What a question asks, before it is put in words or in SQL.

    Args:
        table: the table's name.
        column: the column to show or to aggregate; ``*`` counts rows.
        aggregate: COUNT, AVG, SUM, MAX, MIN, or None to show the column itself.
        conditions: all must hold.
        group: the column to group by, if any.
        order: the column to sort by, if any, and whether the largest comes first.
        limit: how many rows to keep when sorted.
    """

    table: str
    column: str
    aggregate: str | None = None
    conditions: tuple[Condition, ...] = ()
    group: str | None = None
    order: tuple[str, bool] | None = None
    limit: int | None = None

    @property
    def sql(self) -> str:
        """The query in SQL, always in one spelling.

        Example:
            >>> Query("rivers", "*", "COUNT", group="sea").sql
            'SELECT sea, COUNT(*) FROM rivers GROUP BY sea'
        """
        shown = f"{self.aggregate}({self.column})" if self.aggregate else self.column
        parts = ["SELECT", f"{self.group}, {shown}" if self.group else shown, "FROM", self.table]
        for index, condition in enumerate(self.conditions):
            value = f"'{condition.value}'" if isinstance(condition.value, str) else condition.value
            parts.append(f"{'AND' if index else 'WHERE'} {condition.column} {condition.operator} {value}")
        if self.group:
            parts.append(f"GROUP BY {self.group}")
        if self.order:
            parts.append(f"ORDER BY {self.order[0]} {'DESC' if self.order[1] else 'ASC'} LIMIT {self.limit}")
        return " ".join(parts)


@dataclass(frozen=True)
class SQLExample:
    """A question and what it means.

    Args:
        question: the question in English.
        query: its meaning; ``query.sql`` is the gold answer.
    """

    question: str
    query: Query

    @property
    def prompt(self) -> str:
        """What the model reads: the table's schema, the question, and the cue to answer in SQL."""
        return f"{TABLES[self.query.table].schema}\n{self.question}\nSQL:"

    @property
    def target(self) -> str:
        """What the model is to write, the end token aside."""
        return " " + self.query.sql


def _condition(rng: random.Random, column: Text | Number) -> Condition:
    if isinstance(column, Text):
        text_value = rng.choice(column.values)
        return Condition(column.name, "=", text_value, rng.choice(column.conditions).format(text_value))
    operator = rng.choice(list(_COMPARISONS))
    value = rng.choice(column.thresholds)
    return Condition(column.name, operator, value, f"with {rng.choice(column.nouns)} {rng.choice(_COMPARISONS[operator])} {value}")


def ask(rng: random.Random, table: Table) -> SQLExample:
    """One random question about a table, with its meaning."""
    plural, number, text = rng.choice(table.plurals), rng.choice(table.numbers), rng.choice(table.texts)
    noun, category = rng.choice(number.nouns), rng.choice(text.nouns)
    kind = rng.choices(("list", "show", "lookup", "count", "aggregate", "top", "group"), (4, 3, 2, 4, 4, 4, 3))[0]
    if kind == "lookup":
        column, label = rng.choice(table.described), rng.choice(LABELS)
        wanted = rng.choice(column.nouns)
        question = rng.choice(("what is the {n} of {l}?", "which {n} does {l} have?")).format(n=wanted, l=label)
        return SQLExample(question, Query(table.name, column.name, None, (Condition("name", "=", label, label),)))
    others = [column for column in table.described if column is not number]
    if kind == "group":
        others = [column for column in others if column is not text]
    count = rng.choice((1, 1, 2)) if kind in ("list", "show") else rng.choice((0, 1, 1, 2) if kind != "group" else (0, 0, 1))
    conditions = tuple(_condition(rng, column) for column in rng.sample(others, count))
    subject = " and ".join([f"{plural} {conditions[0].words}", *(c.words for c in conditions[1:])]) if conditions else plural

    if kind == "list":
        question = rng.choice(("which {s} are there?", "list the {s}", "name all {s}")).format(s=subject)
        return SQLExample(question, Query(table.name, "name", None, conditions))
    if kind == "show":
        question = rng.choice(("what is the {n} of the {s}?", "show the {n} of all {s}")).format(n=noun, s=subject)
        return SQLExample(question, Query(table.name, number.name, None, conditions))
    if kind == "count":
        question = rng.choice(("how many {s} are there?", "count the {s}", "what is the number of {s}?")).format(s=subject)
        return SQLExample(question, Query(table.name, "*", "COUNT", conditions))
    if kind == "aggregate":
        aggregate = rng.choice(list(_AGGREGATES))
        word = rng.choice(_AGGREGATES[aggregate])
        question = rng.choice(("what is the {a} {n} of the {s}?", "give the {a} {n} of all {s}")).format(a=word, n=noun, s=subject)
        return SQLExample(question, Query(table.name, number.name, aggregate, conditions))
    if kind == "top":
        descending, limit = rng.random() < 0.5, rng.randint(1, 5)
        word = rng.choice(_AGGREGATES["MAX" if descending else "MIN"])
        question = rng.choice(("which {k} {s} have the {w} {n}?", "list the {k} {s} by {w} {n}"))
        return SQLExample(
            question.format(k=limit, s=subject, w=word, n=noun),
            Query(table.name, "name", None, conditions, order=(number.name, descending), limit=limit),
        )
    if rng.random() < 0.5:
        question = rng.choice(("how many {s} are there per {g}?", "count the {s} for each {g}")).format(s=subject, g=category)
        return SQLExample(question, Query(table.name, "*", "COUNT", conditions, group=text.name))
    aggregate = rng.choice(list(_AGGREGATES))
    word = rng.choice(_AGGREGATES[aggregate])
    question = rng.choice(("what is the {a} {n} of the {s} per {g}?", "give the {a} {n} of all {s} for each {g}"))
    return SQLExample(
        question.format(a=word, n=noun, s=subject, g=category),
        Query(table.name, number.name, aggregate, conditions, group=text.name),
    )


def split_of(query: Query) -> Split:
    """The split to which a query belongs, decided by its SQL, so that no wording of a test query is ever trained on."""
    bucket = zlib.crc32(query.sql.encode()) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


@cache
def database(seed: int = 0) -> sqlite3.Connection:
    """A database in which queries are judged: every table, 200 rows each, the same for the same seed."""
    return create_database((table.name, table.columns, rows(table, seed)) for table in TABLES.values())


def examples(split: Split, count: int, *, seed: int) -> list[SQLExample]:
    """Draw examples of one split whose gold answer is never empty. Outside training no query occurs twice.

    Args:
        split: ``train``, ``validation`` and ``test`` ask about sixteen tables, and their queries are disjoint; ``unseen`` asks about four
            tables that occur nowhere else, by the names that their schema gives.
        count: how many.
        seed: the same seed gives the same examples.

    Raises:
        ValueError: an unknown split or a negative count.

    Example:
        >>> example = examples("test", 1, seed=1)[0]
        >>> split_of(example.query)
        'test'
    """
    if split not in SPLITS or count < 0:
        raise ValueError(f"split must be one of {', '.join(SPLITS)} and count at least 0, got {split!r} and {count}")
    rng = random.Random(f"{split}-{seed}")
    tables = list((UNSEEN if split == "unseen" else SEEN).values())
    found: list[SQLExample] = []
    seen: set[str] = set()
    while len(found) < count:
        example = ask(rng, rng.choice(tables))
        if split not in ("unseen", split_of(example.query)) or (split != "train" and example.query.sql in seen):
            continue
        answers = (run_query(database(filling), example.query.sql) for filling in _DATABASE_SEEDS)
        if any(all(row[-1] in (None, 0) for row in answer.rows) for answer in answers):
            continue
        seen.add(example.query.sql)
        found.append(example)
    return found


def encode(example: SQLExample, tokenizer: BytePairTokenizer) -> Example:
    """Inputs and labels of an example: the prompt carries no loss, the target ends with the end token."""
    return conditional_example(tokenizer.encode(example.prompt), [*tokenizer.encode(example.target), tokenizer.end_id])


@dataclass(frozen=True)
class Prediction:
    """What a model answered and how it was judged.

    Args:
        example: the question.
        sql: what the model wrote.
        result: what the first database gave for it.
        correct: whether every database gives what it gives for the gold query.
    """

    example: SQLExample
    sql: str
    result: QueryResult
    correct: bool


def judge(example: SQLExample, sql: str) -> Prediction:
    """Run a predicted query and compare its rows with the gold ones.

    Rows are compared as multisets, and in order only when the question asks for an order; in three databases with the same tables and
    different rows, all of which must agree.

    Raises:
        ValueError: the gold query itself fails.

    Example:
        >>> example = SQLExample("count the stars", Query("stars", "*", "COUNT"))
        >>> judge(example, "SELECT COUNT(name) FROM stars").correct
        True
        >>> judge(example, "SELECT COUNT( FROM stars").correct
        False
    """
    results = [run_query(database(seed), sql) for seed in _DATABASE_SEEDS]
    correct = all(_agrees(example, seed, result) for seed, result in zip(_DATABASE_SEEDS, results, strict=True))
    return Prediction(example, sql, results[0], correct)


def _agrees(example: SQLExample, seed: int, result: QueryResult) -> bool:
    gold = run_query(database(seed), example.query.sql)
    if gold.error is not None:
        raise ValueError(f"the gold query failed: {gold.error}: {example.query.sql}")
    expected, found = _rounded(gold.rows), _rounded(result.rows)
    same = expected == found if example.query.order else Counter(expected) == Counter(found)
    return result.error is None and same


def _rounded(found: Sequence[Row]) -> list[Row]:
    """Rows with floats rounded: sums taken in another order differ in the last digits."""
    return [tuple(round(cell, 6) if isinstance(cell, float) else cell for cell in row) for row in found]


def predict(model: GPT, tokenizer: BytePairTokenizer, questions: Sequence[SQLExample]) -> list[Prediction]:
    """Let the model answer every question greedily and judge each answer.

    Chapter: Fine-tuning with LoRA.
    """
    prompts = [tokenizer.encode(example.prompt) for example in questions]
    answers = generate(model, prompts, max_new_tokens=_MAX_SQL_TOKENS, stop_id=tokenizer.end_id)
    return [judge(example, tokenizer.decode(answer).strip()) for example, answer in zip(questions, answers, strict=True)]


def execution_accuracy(predictions: Sequence[Prediction]) -> float:
    r"""Share of answers whose rows equal the gold rows, between 0 and 1.

    Raises:
        ValueError: no prediction.
    """
    if not predictions:
        raise ValueError("execution accuracy needs at least one prediction")
    return sum(prediction.correct for prediction in predictions) / len(predictions)


def scores(predictions: Sequence[Prediction]) -> dict[str, float]:
    """The scores of this task by name: execution accuracy alone."""
    return {"execution_accuracy": execution_accuracy(predictions)}
