"""What is said of a row: each way of saying it holds the facts, and no others."""

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from lorabook.tasks.sentences import Thing, clause, draw_thing
from lorabook.tasks.tables import LABELS, TABLES, Text

rngs = st.integers(0, 2**32 - 1).map(random.Random)
things = st.builds(
    lambda rng, table, columns: draw_thing(rng, table, columns=columns), rngs, st.sampled_from(list(TABLES.values())), st.integers(1, 4)
)


def columns_of(thing):
    return {column.name: column for column in thing.table.described}


@given(things)
def test_a_drawn_thing_has_a_label_and_values_of_its_columns_in_the_order_of_the_schema(thing):
    assert thing.label in LABELS
    assert [name for name in thing.table.columns if name in thing.values] == list(thing.values)
    for name, value in thing.values.items():
        column = columns_of(thing)[name]
        assert value in column.values if isinstance(column, Text) else 0 < value < column.thresholds.stop


@given(rngs, st.sampled_from(list(TABLES.values())), st.integers(1, 4))
def test_a_thing_has_as_many_columns_and_the_label_that_were_asked_for(rng, table, columns):
    thing = draw_thing(rng, table, columns=columns, label="blue door")
    assert (thing.label, len(thing.values)) == ("blue door", columns)


def test_every_label_and_every_column_is_drawn():
    rng = random.Random(0)
    found = [draw_thing(rng, TABLES["rivers"], columns=2) for _ in range(6000)]
    assert {thing.label for thing in found} == set(LABELS)
    assert {column for thing in found for column in thing.values} == {"country", "sea", "length", "depth"}


@given(things)
def test_a_sentence_is_the_label_the_kind_and_a_clause_for_each_column_words_first(thing):
    kind = thing.table.singular
    sentence = thing.sentence()
    assert sentence.startswith(f"{thing.label} is {'an' if kind[0] in 'aeiou' else 'a'} {kind}")
    left = sentence.removeprefix(f"{thing.label} is ").split(kind, 1)[1]
    order = sorted(thing.values, key=lambda name: not isinstance(columns_of(thing)[name], Text))
    for name in order:
        said = clause(columns_of(thing)[name], thing.values[name])
        lead = " " if isinstance(columns_of(thing)[name], Text) else ", "
        assert left.startswith(lead + said)
        left = left.removeprefix(lead + said)
    assert left == "."


@given(things, rngs)
def test_a_statement_is_one_sentence_of_the_label_and_the_value_of_one_column(thing, rng):
    for name, value in thing.values.items():
        statement = thing.statement(name, rng)
        assert statement.endswith(".")
        assert statement.count(".") == 1
        assert thing.label in statement
        assert re.search(rf"\b{value}\b", statement.replace(thing.label, ""))
        assert name in statement.split() or clause(columns_of(thing)[name], value) in statement
        for other in set(thing.values) - {name}:
            assert not re.search(rf"\bthe {other}\b", statement)


def test_a_statement_comes_in_every_wording():
    thing, rng = Thing(TABLES["cities"], "amber harbour", {"country": "norway", "population": 300}), random.Random(0)
    assert {thing.statement("country", rng) for _ in range(100)} == {
        "the country of amber harbour is norway.",
        "amber harbour has the country norway.",
        "amber harbour is a city in norway.",
    }
    assert {thing.statement("population", rng) for _ in range(100)} == {
        "the population of amber harbour is 300.",
        "amber harbour has the population 300.",
    }


@given(things, rngs)
def test_facts_and_rows_hold_the_label_and_every_value_with_its_column(thing, rng):
    label, *facts = thing.facts().split(" : ")
    assert (label, dict(fact.split(" ", 1) for fact in facts)) == (thing.label, {name: str(value) for name, value in thing.values.items()})
    table, fields = re.fullmatch(r"(\w+)\((.*)\)", thing.row(rng)).groups()
    assert table == thing.table.name
    name, *others = (field.split(" = ") for field in fields.split(", "))
    assert name == ["name", thing.label]
    assert sorted(map(tuple, others)) == sorted((column, str(value)) for column, value in thing.values.items())


def test_a_row_mixes_its_columns():
    thing, rng = draw_thing(random.Random(0), TABLES["books"], columns=4), random.Random(0)
    assert len({thing.row(rng) for _ in range(500)}) == 24


@given(rngs, st.sampled_from(list(TABLES.values())))
def test_different_facts_of_a_table_make_different_sentences(rng, table):
    found = [draw_thing(rng, table, columns=rng.randint(1, 4)) for _ in range(50)]
    assert len({thing.sentence() for thing in found}) == len({thing.facts() for thing in found})
