"""Run SQL that a model wrote: in memory, read-only, within a time, row and size limit. Whatever it does, a result comes back."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Cell = str | int | float | bytes | None
Row = tuple[Cell, ...]

_ALLOWED_ACTIONS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_ALLOWED_FUNCTIONS = {"abs", "avg", "coalesce", "count", "length", "like", "lower", "max", "min", "round", "sum", "total", "upper"}
_INSTRUCTIONS_BETWEEN_CHECKS = 1000

# Named subqueries that refer to each other can double a query with every level while SQLite prepares it, and no time limit reaches
# into that. With three of these words in a query there are too few levels to matter.
_MOST_SELECTS = 3
_SELECT = re.compile(r"\b(?:select|values)\b", re.IGNORECASE)


@dataclass(frozen=True)
class QueryResult:
    """What a query gave: its rows, or why it has none.

    Args:
        rows: the rows, empty when the query failed.
        error: None when the query ran, else one sentence.
    """

    rows: tuple[Row, ...]
    error: str | None = None


def create_database(tables: Iterable[tuple[str, Sequence[str], Sequence[Row]]]) -> sqlite3.Connection:
    """Fill an in-memory database, then close it to everything but reading.

    Args:
        tables: name, column names and rows of each table. Names must be plain identifiers.

    Returns:
        A connection for :func:`run_query`. An authorizer allows SELECT and some harmless functions and nothing else; SQLite's
        own limits bound the length of values, the depth of expressions, the number of columns and of attached files (none).

    Raises:
        ValueError: a name that is not an identifier.
    """
    connection = sqlite3.connect(":memory:", check_same_thread=False, cached_statements=0)
    for name, columns, rows in tables:
        for identifier in (name, *columns):
            if not identifier.isidentifier():
                connection.close()
                raise ValueError(f"names of tables and columns must be identifiers, got {identifier!r}")
        quoted = ", ".join(f'"{column}"' for column in columns)
        connection.execute(f'CREATE TABLE "{name}" ({quoted})')
        connection.executemany(f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(columns))})', rows)  # noqa: S608 (name is checked)
    connection.commit()
    connection.execute("PRAGMA query_only = ON")
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, 100_000),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 2_000),
        (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 100),
        (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 10),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_COLUMN, 100),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100),
    ):
        connection.setlimit(limit, value)
    connection.set_authorizer(_authorize)
    return connection


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    allowed = action in _ALLOWED_ACTIONS or (action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _ALLOWED_FUNCTIONS)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def run_query(connection: sqlite3.Connection, sql: str, *, seconds: float = 1.0, max_rows: int = 1000) -> QueryResult:
    """Run one query and never raise because of what the query says.

    A write, an ATTACH, a PRAGMA, a second statement, a syntax error, an endless recursion, too many rows or subqueries: each
    comes back as a result with an error.

    Args:
        connection: a database that :func:`create_database` made.
        sql: the query, as the model wrote it.
        seconds: time limit; what runs longer is interrupted.
        max_rows: row limit; a query with more rows has failed.

    Example:
        >>> connection = create_database([("cities", ["name", "country"], [("Bergen", "norway")])])
        >>> run_query(connection, "SELECT name FROM cities").rows
        (('Bergen',),)
        >>> run_query(connection, "DROP TABLE cities").error
        'not authorized'
    """
    if len(_SELECT.findall(sql)) > _MOST_SELECTS:
        return QueryResult((), f"more than {_MOST_SELECTS} SELECTs")
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _INSTRUCTIONS_BETWEEN_CHECKS)
    try:
        cursor = connection.execute(sql)
        if cursor.description is None:
            return QueryResult((), "not a query: nothing was selected")
        rows = cursor.fetchmany(max_rows + 1)
        cursor.close()
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
        late = time.monotonic() > deadline
        return QueryResult((), f"ran longer than {seconds} s" if late else str(error) or type(error).__name__)
    finally:
        connection.set_progress_handler(None, 0)
    if len(rows) > max_rows:
        return QueryResult((), f"more than {max_rows} rows")
    return QueryResult(tuple(rows))
