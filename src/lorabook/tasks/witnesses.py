"""Rows that tell a query from its near misses: on its thresholds and next to them, where few rows would lie by chance."""

from __future__ import annotations

from lorabook.tasks.questions import Condition, Query
from lorabook.tasks.tables import Table, Text

_HIGH, _LOW, _APART = 1_000_000, -500_000, 1_000


def witnesses(query: Query, table: Table) -> list[tuple[str | int, ...]]:
    """Rows that a query and one with ``<`` for ``<=``, or with the next threshold, do not treat alike.

    For each threshold of the query there are rows on it, one above, one below, and on the two neighbouring thresholds. They meet all other
    conditions. In a number that has no condition they are extreme, high and low, the most those that a condition would admit last, so that
    MAX, MIN and the first rows of an order tell them apart too.

    Example:
        >>> from lorabook.tasks.tables import TABLES
        >>> deep = Query("rivers", "length", "MAX", (Condition("depth", ">", 100, ""),))
        >>> [row[-1] for row in witnesses(deep, TABLES["rivers"])][::2]
        [100, 99, 101, 90, 110]
    """
    conditions = {condition.column: condition for condition in query.conditions}
    rows: list[tuple[str | int, ...]] = []
    for chosen in query.conditions:
        step = next((number.thresholds.step for number in table.numbers if number.name == chosen.column), 0)
        for offset in (0, -1, 1, -step, step) if step else ():
            admitted_last = offset if chosen.operator.startswith("<") else -offset
            for extreme in (_HIGH + _APART * admitted_last, _LOW - _APART * admitted_last):
                row: list[str | int] = [f"witness {len(rows)}"]
                for column in table.described:
                    condition = conditions.get(column.name)
                    if condition is chosen:
                        row.append(int(chosen.value) + offset)
                    elif condition is not None:
                        row.append(_met(condition, table))
                    else:
                        row.append(column.values[0] if isinstance(column, Text) else extreme + len(rows))
                rows.append(tuple(row))
    return rows


def _met(condition: Condition, table: Table) -> str | int:
    """A value that meets a condition by more than a threshold."""
    if condition.operator == "=":
        return condition.value
    margin = 2 * next(number.thresholds.step for number in table.numbers if number.name == condition.column)
    return int(condition.value) + (margin if condition.operator.startswith(">") else -margin)
