"""The invented tables: their rows make every operator and every order count."""

import pytest

from lorabook.tasks.tables import N_ROWS, TABLES, rows

every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
seeds = pytest.mark.parametrize("seed", [0, 1, 12345])


@every_table
@seeds
def test_labels_never_repeat(table, seed):
    labels = [row[0] for row in rows(table, seed)]
    assert len(set(labels)) == len(labels) == N_ROWS


@every_table
@seeds
def test_numbers_never_repeat_and_hold_every_threshold(table, seed):
    for index, number in enumerate(table.numbers, start=1 + len(table.texts)):
        values = [row[index] for row in rows(table, seed)]
        assert len(set(values)) == N_ROWS
        assert set(number.thresholds) < set(values)
        assert min(values) > 0


@every_table
@seeds
def test_texts_come_from_their_values_and_use_all_of_them(table, seed):
    for index, text in enumerate(table.texts, start=1):
        assert {row[index] for row in rows(table, seed)} == set(text.values)


@every_table
def test_a_seed_decides_the_rows(table):
    assert rows(table, 3) == rows(table, 3)
    assert rows(table, 3) != rows(table, 4)


@every_table
def test_the_schema_lists_the_columns_in_the_order_of_the_rows(table):
    name, _, columns = table.schema.rstrip(")").partition("(")
    assert name == table.name
    assert columns.split(", ") == ["name", *(column.name for column in (*table.texts, *table.numbers))]
    for row in rows(table, 0):
        assert [type(cell) for cell in row] == [str] * (1 + len(table.texts)) + [int] * len(table.numbers)


@every_table
def test_a_word_of_a_question_means_one_column_or_value(table):
    nouns = [noun for column in (*table.texts, *table.numbers) for noun in column.nouns]
    values = [value for text in table.texts for value in text.values]
    assert len(set(nouns)) == len(nouns)
    assert len(set(values)) == len(values)


def test_tables_are_told_apart_by_name_and_plural():
    plurals = [plural for table in TABLES.values() for plural in table.plurals]
    assert len(set(plurals)) == len(plurals)
    assert all(name == table.name for name, table in TABLES.items())
