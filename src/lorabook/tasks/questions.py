"""Questions about tables with their meaning: how a query reads in English and in SQL; it knows no model and no database."""

from __future__ import annotations

import random
from dataclasses import dataclass

from lorabook.tasks.tables import LABELS, TABLES, Number, Table, Text

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
