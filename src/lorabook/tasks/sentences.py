"""What can be said of one row of a table: as a sentence, as facts, as the row itself; it knows no task and no model."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from lorabook.tasks.tables import LABELS, Number, Table, Text


@dataclass(frozen=True)
class Thing:
    """One row: what kind of thing it is, its label, and some of its columns.

    Args:
        table: the table.
        label: the row's name.
        values: column name to value, in the order of the schema.
    """

    table: Table
    label: str
    values: Mapping[str, str | int]

    def sentence(self) -> str:
        """Everything that is known, in one sentence and always in the same words.

        Example:
            >>> from lorabook.tasks.tables import TABLES
            >>> Thing(TABLES["cities"], "amber harbour", {"country": "norway", "population": 300}).sentence()
            'amber harbour is a city in norway, population 300.'
        """
        kind = self.table.singular
        said = f"{self.label} is {_article(kind)} {kind}"
        texts = [f" {clause(column, self.values[column.name])}" for column in self.table.texts if column.name in self.values]
        numbers = [f", {clause(column, self.values[column.name])}" for column in self.table.numbers if column.name in self.values]
        return "".join([said, *texts, *numbers, "."])

    def statement(self, column: str, rng: random.Random) -> str:
        """One fact in a sentence of its own, in one of several wordings."""
        value = self.values[column]
        described = next(other for other in self.table.described if other.name == column)
        forms = [f"the {column} of {self.label} is {value}.", f"{self.label} has the {column} {value}."]
        if isinstance(described, Text):
            forms.append(f"{self.label} is {_article(self.table.singular)} {self.table.singular} {described.conditions[0].format(value)}.")
        return rng.choice(forms)

    def facts(self) -> str:
        """The facts in a small language of their own.

        Example:
            >>> from lorabook.tasks.tables import TABLES
            >>> Thing(TABLES["cities"], "amber harbour", {"country": "norway", "population": 300}).facts()
            'amber harbour : country norway : population 300'
        """
        return " : ".join([self.label, *(f"{column} {value}" for column, value in self.values.items())])

    def row(self, rng: random.Random) -> str:
        """The row as a record, its columns in random order.

        Example:
            >>> from lorabook.tasks.tables import TABLES
            >>> Thing(TABLES["cities"], "amber harbour", {"country": "norway"}).row(random.Random(0))
            'cities(name = amber harbour, country = norway)'
        """
        shuffled = rng.sample(list(self.values.items()), len(self.values))
        return f"{self.table.name}({', '.join(f'{column} = {value}' for column, value in [('name', self.label), *shuffled])})"


def clause(column: Text | Number, value: str | int) -> str:
    """A column with its value, as it stands in a sentence: ``in norway``, ``population 300``."""
    return column.conditions[0].format(value) if isinstance(column, Text) else f"{column.name} {value}"


def draw_thing(rng: random.Random, table: Table, *, columns: int, label: str | None = None) -> Thing:
    """A random thing of a table, with so many of its columns (besides the name)."""
    chosen = rng.sample(table.described, columns)
    values: dict[str, str | int] = {}
    for column in table.described:
        if column in chosen:
            values[column.name] = rng.choice(column.values) if isinstance(column, Text) else rng.randrange(1, column.thresholds.stop)
    return Thing(table, rng.choice(LABELS) if label is None else label, values)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
