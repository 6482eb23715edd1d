"""Questions in English to SQL, judged by running the SQL; it knows the language wing and no adapters.

An example, as the model reads and must continue it::

    cities(name, country, climate, population, founded)
    how many cities are in norway?
    SQL: SELECT COUNT(*) FROM cities WHERE country = 'norway'
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from lorabook.language.generate import generate
from lorabook.language.gpt import GPT
from lorabook.language.likelihood import Example, conditional_example
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.tasks.questions import Condition, Query, SQLExample, ask
from lorabook.tasks.sandbox import QueryResult, Row, create_database, run_query
from lorabook.tasks.splits import SPLITS, Split, draw_distinct, split_of_key
from lorabook.tasks.tables import SEEN, TABLES, UNSEEN, rows
from lorabook.tasks.witnesses import witnesses

__all__ = [
    "SPLITS",
    "Condition",
    "Prediction",
    "Query",
    "SQLExample",
    "ask",
    "database",
    "encode",
    "examples",
    "execution_accuracy",
    "judge",
    "predict",
    "scores",
    "split_of",
]

_DATABASE_SEEDS = (0, 1, 2)  # a wrong query seldom agrees with the gold one by luck on one filling, hardly ever on three
_MAX_SQL_TOKENS = 80


def split_of(query: Query) -> Split:
    """The split to which a query belongs, so that no wording of a test query is ever trained on, nor its conditions in another order.

    Example:
        >>> hot, dry = Condition("climate", "=", "hot", ""), Condition("founded", ">", 1200, "")
        >>> split_of(Query("cities", "name", None, (hot, dry))) == split_of(Query("cities", "name", None, (dry, hot)))
        True
    """
    return split_of_key(_sorted_sql(query))


def _sorted_sql(query: Query) -> str:
    conditions = sorted(query.conditions, key=lambda condition: (condition.column, condition.operator, str(condition.value)))
    return replace(query, conditions=tuple(conditions)).sql


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
        ValueError: an unknown split, a negative count, or more examples than there are.

    Example:
        >>> example = examples("test", 1, seed=1)[0]
        >>> split_of(example.query)
        'test'
    """
    tables = list((UNSEEN if split == "unseen" else SEEN).values())
    return draw_distinct(
        split,
        count,
        seed=seed,
        draw=lambda rng: ask(rng, rng.choice(tables)),
        key=lambda example: _sorted_sql(example.query),
        identity=lambda example: _sorted_sql(example.query),
        keep=_has_answer,
    )


def _has_answer(example: SQLExample) -> bool:
    answers = (run_query(database(seed), example.query.sql) for seed in _DATABASE_SEEDS)
    return not any(all(row[-1] in (None, 0) for row in answer.rows) for answer in answers)


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

    Rows are compared as multisets, and in order only when the question asks for an order. They must agree in four databases: three with
    the same tables and different rows, and one with rows on either side of the question's thresholds.

    Raises:
        ValueError: the gold query itself fails.

    Example:
        >>> example = SQLExample("count the stars", Query("stars", "*", "COUNT"))
        >>> judge(example, "SELECT COUNT(name) FROM stars").correct
        True
        >>> judge(example, "SELECT COUNT( FROM stars").correct
        False
    """
    result = run_query(database(), sql)
    correct = all(_agrees(example, sql, database(seed)) for seed in _DATABASE_SEEDS)
    if correct:
        table = TABLES[example.query.table]
        close = create_database([(table.name, table.columns, [*rows(table, _DATABASE_SEEDS[0]), *witnesses(example.query, table)])])
        correct = _agrees(example, sql, close)
        close.close()
    return Prediction(example, sql, result, correct)


def _agrees(example: SQLExample, sql: str, connection: sqlite3.Connection) -> bool:
    gold, result = run_query(connection, example.query.sql), run_query(connection, sql)
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
