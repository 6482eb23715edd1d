"""The small world that the SQL task asks about: eight tables, the words people use for them, and the rows that fill them.

It knows no SQL and no model. All of it is invented.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

N_ROWS = 200


@dataclass(frozen=True)
class Text:
    """A column of words, such as a country: how a question names it, and how a condition on it reads."""

    name: str
    nouns: tuple[str, ...]
    conditions: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Number:
    """A column of whole numbers: how a question names it, and the thresholds that questions use."""

    name: str
    nouns: tuple[str, ...]
    thresholds: range


@dataclass(frozen=True)
class Table:
    """A table: its first column is ``name``, the label of a row; the others are ``texts`` and ``numbers``."""

    name: str
    plurals: tuple[str, ...]
    texts: tuple[Text, ...]
    numbers: tuple[Number, ...]

    @property
    def schema(self) -> str:
        """The table as a prompt shows it.

        Example:
            >>> TABLES["rivers"].schema
            'rivers(name, country, sea, length, depth)'
        """
        return f"{self.name}({', '.join(self.columns)})"

    @property
    def described(self) -> tuple[Text | Number, ...]:
        """All columns but the first, which is only a label."""
        return (*self.texts, *self.numbers)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns in order."""
        return ("name", *(column.name for column in self.described))


# Thresholds that questions use. Rows also hold numbers between them.
_TENS = range(10, 410, 10)
_HUNDREDS = range(100, 4100, 100)

_COUNTRIES = ("norway", "peru", "kenya", "japan", "brazil", "canada", "egypt", "poland")

_TABLES = (
    Table(
        "cities",
        ("cities", "towns"),
        (
            Text("country", ("country", "nation"), ("in {}", "that lie in {}"), _COUNTRIES),
            Text("climate", ("climate", "kind of weather"), ("with a {} climate",), ("dry", "humid", "mild", "polar", "windy")),
        ),
        (
            Number("population", ("population", "number of inhabitants"), _HUNDREDS),
            Number("founded", ("founding year", "year of foundation"), range(1200, 2000, 20)),
        ),
    ),
    Table(
        "books",
        ("books", "volumes"),
        (
            Text(
                "genre", ("genre", "category"), ("of the genre {}", "in the category {}"), ("crime", "poetry", "travel", "satire", "memoir")
            ),
            Text("language", ("language", "tongue"), ("written in {}", "in {}"), ("french", "hindi", "dutch", "latin", "korean")),
        ),
        (
            Number("pages", ("number of pages", "page count"), _TENS),
            Number("copies", ("number of copies", "circulation"), _HUNDREDS),
        ),
    ),
    Table(
        "films",
        ("films", "movies"),
        (
            Text("genre", ("genre", "kind"), ("of the genre {}", "of the kind {}"), ("drama", "comedy", "horror", "western", "musical")),
            Text("studio", ("studio", "company"), ("made by {}", "from the studio {}"), ("orion", "vega", "lyra", "corona", "nova")),
        ),
        (
            Number("audience", ("audience", "number of viewers"), _HUNDREDS),
            Number("budget", ("budget", "cost"), _TENS),
        ),
    ),
    Table(
        "workers",
        ("workers", "employees"),
        (
            Text("team", ("team", "department"), ("in the {} team", "who work in {}"), ("sales", "legal", "design", "finance", "support")),
            Text("office", ("office", "workplace"), ("at the {} office", "based in {}"), ("berlin", "lagos", "quito", "osaka", "dublin")),
        ),
        (
            Number("salary", ("salary", "pay"), _HUNDREDS),
            Number("overtime", ("overtime", "number of extra hours"), _TENS),
        ),
    ),
    Table(
        "rivers",
        ("rivers", "streams"),
        (
            Text("country", ("country", "nation"), ("in {}", "that cross {}"), _COUNTRIES),
            Text("sea", ("sea", "mouth"), ("that flow into the {} sea",), ("baltic", "coral", "white", "caspian", "black")),
        ),
        (
            Number("length", ("length", "extent"), _HUNDREDS),
            Number("depth", ("depth", "distance to the bottom"), _TENS),
        ),
    ),
    Table(
        "ships",
        ("ships", "vessels"),
        (
            Text("port", ("port", "harbour"), ("from the port of {}", "based in {}"), ("genoa", "bergen", "dakar", "lima", "kobe")),
            Text("cargo", ("cargo", "load"), ("that carry {}", "loaded with {}"), ("grain", "timber", "coal", "salt", "tea")),
        ),
        (
            Number("crew", ("crew", "number of sailors"), _TENS),
            Number("tonnage", ("tonnage", "carrying capacity"), _HUNDREDS),
        ),
    ),
    Table(
        "dishes",
        ("dishes", "meals"),
        (
            Text(
                "cuisine",
                ("cuisine", "cooking style"),
                ("of the {} cuisine", "from the {} kitchen"),
                ("thai", "greek", "cuban", "swiss", "irish"),
            ),
            Text("taste", ("taste", "flavour"), ("that taste {}", "with a {} flavour"), ("sweet", "sour", "bitter", "spicy", "mild")),
        ),
        (
            Number("price", ("price", "cost"), _HUNDREDS),
            Number("calories", ("calories", "energy"), _TENS),
        ),
    ),
    Table(
        "stars",
        ("stars", "suns"),
        (
            Text("colour", ("colour", "hue"), ("that shine {}", "of {} colour"), ("red", "blue", "white", "orange", "yellow")),
            Text("region", ("constellation", "region"), ("in {}", "that belong to {}"), ("aquila", "cygnus", "draco", "hydra", "pavo")),
        ),
        (
            Number("distance", ("distance", "remoteness"), _HUNDREDS),
            Number("mass", ("mass", "weight"), _TENS),
        ),
    ),
)
TABLES = {table.name: table for table in _TABLES}

_FIRST = (
    "amber",
    "quiet",
    "broken",
    "silver",
    "hidden",
    "early",
    "golden",
    "distant",
    "northern",
    "velvet",
    "iron",
    "paper",
    "salt",
    "winter",
    "crooked",
    "bright",
    "hollow",
    "green",
    "lost",
    "tall",
)
_SECOND = (
    "harbour",
    "road",
    "lantern",
    "meadow",
    "bridge",
    "tower",
    "garden",
    "mirror",
    "signal",
    "forest",
    "anchor",
    "valley",
    "window",
    "compass",
    "island",
    "kettle",
    "orchard",
    "wheel",
    "canyon",
    "letter",
)


def rows(table: Table, seed: int) -> list[tuple[str | int, ...]]:
    """Rows of a table: labels and numbers never repeat, and every threshold occurs, so that ``>`` and ``>=`` differ.

    Args:
        table: which table to fill.
        seed: the same seed gives the same rows.

    Returns:
        200 rows in the order of the columns: name, texts, numbers.
    """
    rng = random.Random(f"{table.name}-{seed}")
    labels = rng.sample([f"{first} {second}" for first in _FIRST for second in _SECOND], N_ROWS)
    columns: list[list[str | int]] = [list(labels)]
    for text in table.texts:
        columns.append([rng.choice(text.values) for _ in range(N_ROWS)])
    for number in table.numbers:
        grid = number.thresholds
        between = [value for value in range(grid.start - grid.step, grid.stop) if value > 0 and value not in grid]
        numbers = [*grid, *rng.sample(between, N_ROWS - len(grid))]
        rng.shuffle(numbers)
        columns.append(list(numbers))
    return list(zip(*columns, strict=True))
