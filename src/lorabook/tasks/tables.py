"""The small world that the tasks talk about: tables, the words people use for them, and the rows that fill them.

Sixteen tables are ``SEEN`` in training; four more, ``UNSEEN``, are kept for testing, with names, values and, but for ``name``, columns of
their own. It knows no SQL and no model. All of it is invented.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

N_ROWS = 200


@dataclass(frozen=True)
class Text:
    """A column of words, such as a country: how a question names it, and how a condition on it reads.

    The first condition also reads well after one thing: "a city *in norway*".
    """

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
    singular: str
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
_YEARS = range(1200, 2000, 20)


def text_column(nouns: str, conditions: str, values: str) -> Text:
    """A column of words, its name the first noun; the other alternatives stand behind bars. Any condition may also name the column."""
    first, *others = nouns.split("|")
    phrases = (*conditions.split("|"), f"whose {first} is {{}}") if conditions else (f"whose {first} is {{}}",)
    return Text(first, (first, *others), phrases, tuple(values.split()))


def number_column(nouns: str, thresholds: range) -> Number:
    """A column of numbers, its name the first noun."""
    first, *others = nouns.split("|")
    return Number(first, (first, *others), thresholds)


def _table(singular: str, plurals: str, texts: tuple[Text, Text], numbers: tuple[Number, Number]) -> Table:
    names = tuple(plurals.split("|"))
    return Table(names[0], singular, names, texts, numbers)


_COUNTRIES = "norway peru kenya japan brazil canada egypt poland"
_text, _number = text_column, number_column

_SEEN = (
    _table(
        "city",
        "cities|towns",
        (
            _text("country|nation", "in {}|lying in {}", _COUNTRIES),
            _text("climate|kind of weather", "with a {} climate", "dry humid mild polar windy"),
        ),
        (_number("population|number of inhabitants", _HUNDREDS), _number("founded|year of foundation", _YEARS)),
    ),
    _table(
        "book",
        "books|volumes",
        (
            _text("genre|category", "of the genre {}|in the category {}", "crime poetry travel satire memoir"),
            _text("language|tongue", "written in {}|in {}", "french hindi dutch latin korean"),
        ),
        (_number("pages|page count", _TENS), _number("copies|circulation", _HUNDREDS)),
    ),
    _table(
        "film",
        "films|movies",
        (
            _text("genre|kind", "of the genre {}|of the kind {}", "drama comedy horror western musical"),
            _text("studio|company", "made by {}|from the studio {}", "orion vega lyra corona nova"),
        ),
        (_number("audience|number of viewers", _HUNDREDS), _number("budget|cost", _TENS)),
    ),
    _table(
        "worker",
        "workers|employees",
        (
            _text("team|department", "in the {} team|working in {}", "sales legal design finance support"),
            _text("office|workplace", "at the {} office|based in {}", "berlin lagos quito osaka dublin"),
        ),
        (_number("salary|pay", _HUNDREDS), _number("overtime|number of extra hours", _TENS)),
    ),
    _table(
        "river",
        "rivers|streams",
        (
            _text("country|nation", "in {}|crossing {}", _COUNTRIES),
            _text("sea|mouth", "flowing into the {} sea", "baltic coral white caspian black"),
        ),
        (_number("length|extent", _HUNDREDS), _number("depth|distance to the bottom", _TENS)),
    ),
    _table(
        "ship",
        "ships|vessels",
        (
            _text("port|harbour", "from the port of {}|based in {}", "genoa bergen dakar lima kobe"),
            _text("cargo|load", "carrying {}|loaded with {}", "grain timber coal salt tea"),
        ),
        (_number("crew|number of sailors", _TENS), _number("tonnage|carrying capacity", _HUNDREDS)),
    ),
    _table(
        "dish",
        "dishes|meals",
        (
            _text("cuisine|cooking style", "of the {} cuisine|from the {} kitchen", "thai greek cuban swiss irish"),
            _text("taste|flavour", "with a {} taste|with a {} flavour", "sweet sour bitter spicy mild"),
        ),
        (_number("price|cost", _HUNDREDS), _number("calories|energy", _TENS)),
    ),
    _table(
        "star",
        "stars|suns",
        (
            _text("colour|hue", "of {} colour|shining {}", "red blue white orange yellow"),
            _text("region|constellation", "in {}|belonging to {}", "aquila cygnus draco hydra pavo"),
        ),
        (_number("distance|remoteness", _HUNDREDS), _number("mass|weight", _TENS)),
    ),
    _table(
        "song",
        "songs|tunes",
        (
            _text("style|kind of music", "in the style {}|of the {} kind", "jazz folk opera blues swing"),
            _text("mood|feeling", "of {} mood|sounding {}", "happy gloomy calm angry tender"),
        ),
        (_number("duration|running time", _TENS), _number("plays|number of listeners", _HUNDREDS)),
    ),
    _table(
        "school",
        "schools|academies",
        (
            _text("district|quarter", "in the {} district|located {}", "north south east west centre"),
            _text("subject|field", "teaching {}|known for {}", "music physics drawing sports history"),
        ),
        (_number("pupils|number of children", _HUNDREDS), _number("rooms|room count", _TENS)),
    ),
    _table(
        "train",
        "trains|railways",
        (
            _text("route|line", "on the {} route|running {}", "coastal alpine desert urban valley"),
            _text("fuel|power", "running on {}|driven by {}", "diesel steam battery gas hydrogen"),
        ),
        (_number("speed|velocity", _TENS), _number("seats|number of places", _HUNDREDS)),
    ),
    _table(
        "plant",
        "plants|herbs",
        (
            _text("soil|ground", "growing in {} soil|rooted in {}", "sandy clay peat chalk loam"),
            _text("season|time of year", "blooming in {}|at its best in {}", "spring summer autumn winter january"),
        ),
        (_number("height|size", _TENS), _number("seeds|seed count", _HUNDREDS)),
    ),
    _table(
        "museum",
        "museums|galleries",
        (
            _text("country|nation", "in {}|found in {}", _COUNTRIES),
            _text("theme|topic", "about {}|devoted to {}", "glass maps clocks coins masks"),
        ),
        (_number("visitors|number of guests", _HUNDREDS), _number("halls|hall count", _TENS)),
    ),
    _table(
        "phone",
        "phones|handsets",
        (
            _text("brand|maker", "made by {}|of the brand {}", "atlas bravo comet delta ember"),
            _text("finish|surface", "with a {} finish|covered in {}", "matte glossy leather steel wood"),
        ),
        (_number("storage|memory", _TENS), _number("sales|units sold", _HUNDREDS)),
    ),
    _table(
        "bridge",
        "bridges|crossings",
        (
            _text("material|stuff", "built of {}|made from {}", "stone iron concrete rope brick"),
            _text("region|area", "in the {} region|standing in the {}", "lake delta gorge bay marsh"),
        ),
        (_number("span|total length", _HUNDREDS), _number("built|year of construction", _YEARS)),
    ),
    _table(
        "player",
        "players|athletes",
        (
            _text("club|side", "playing for {}|signed by {}", "rovers united wanderers rangers albion"),
            _text("position|role", "in the position {}|used as {}", "keeper striker wing back libero"),
        ),
        (_number("goals|score", _TENS), _number("fee|transfer sum", _HUNDREDS)),
    ),
)

# But for the column "name", nothing here occurs in the training tables: a question has to be answered from the schema in the prompt, whose
# words it uses.
_UNSEEN = (
    _table(
        "horse",
        "horses",
        (_text("breed", "", "arabian shire mustang cob lipizzan"), _text("stable", "", "oakfield thornhill rosedale ashby kelso")),
        (_number("stamina", _TENS), _number("prizes", _HUNDREDS)),
    ),
    _table(
        "mountain",
        "mountains",
        (_text("ridge", "", "andean uralic pamir tatra sayan"), _text("rock", "", "granite basalt slate gneiss marble")),
        (_number("altitude", _HUNDREDS), _number("climbers", _TENS)),
    ),
    _table(
        "robot",
        "robots",
        (_text("factory", "", "nagoya torino malmo pune tampa"), _text("purpose", "", "welding sorting packing mowing painting")),
        (_number("voltage", _TENS), _number("errors", _HUNDREDS)),
    ),
    _table(
        "medicine",
        "medicines",
        (_text("symptom", "", "fever cough nausea fatigue migraine"), _text("form", "", "syrup tablet powder ointment drops")),
        (_number("dose", _TENS), _number("patients", _HUNDREDS)),
    ),
)
SEEN = {table.name: table for table in _SEEN}
UNSEEN = {table.name: table for table in _UNSEEN}
TABLES = {**SEEN, **UNSEEN}

_FIRST, _SECOND = (
    words.split()
    for words in (
        "amber quiet broken silver hidden early golden distant northern velvet iron paper salt winter crooked bright hollow green lost old",
        "harbour road lantern meadow bridge tower garden mirror signal forest pier anchor valley window mill hut kettle orchard wheel well",
    )
)
LABELS = tuple(f"{first} {second}" for first in _FIRST for second in _SECOND)


def rows(table: Table, seed: int) -> list[tuple[str | int, ...]]:
    """Rows of a table: labels and numbers never repeat, and every threshold occurs, so that ``>`` and ``>=`` differ.

    Args:
        table: which table to fill.
        seed: the same seed gives the same rows; every seed has the same labels.

    Returns:
        200 rows in the order of the columns: name, texts, numbers.
    """
    rng = random.Random(f"{table.name}-{seed}")
    columns: list[list[str | int]] = [list(random.Random(table.name).sample(LABELS, N_ROWS))]
    for text in table.texts:
        columns.append([rng.choice(text.values) for _ in range(N_ROWS)])
    for number in table.numbers:
        grid = number.thresholds
        between = [value for value in range(grid.start - grid.step, grid.stop) if value > 0 and value not in grid]
        numbers = [*grid, *rng.sample(between, N_ROWS - len(grid))]
        rng.shuffle(numbers)
        columns.append(list(numbers))
    return list(zip(*columns, strict=True))
