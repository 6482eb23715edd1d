"""The invented tables: their rows make every operator and every order count, and unseen ones share no word with the others."""

import pytest

from lorabook.tasks.tables import LABELS, N_ROWS, SEEN, TABLES, UNSEEN, Text, number_column, rows, text_column

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


def words_of(table):
    """Every word by which a table, its columns or its values are called."""
    columns = [name for column in table.described for name in (column.name, *column.nouns)]
    phrases = [phrase for text in table.texts for phrase in text.conditions if not phrase.startswith("whose ")]
    values = [value for text in table.texts for value in text.values]
    said = (table.name, table.singular, *table.plurals, *columns, *values, *phrases)
    return {word for name in said for word in name.replace("{}", "").split()}


def test_four_tables_are_kept_and_share_no_word_with_the_sixteen_or_with_a_label():
    assert (len(SEEN), len(UNSEEN)) == (16, 4)
    assert {**SEEN, **UNSEEN} == TABLES
    labels = {word for label in LABELS for word in label.split()}
    seen = set().union(*map(words_of, SEEN.values()))
    for table in UNSEEN.values():
        assert not words_of(table) & (seen | labels)
        for other in UNSEEN.values():
            assert table is other or not words_of(table) & words_of(other)


@pytest.mark.parametrize("table", UNSEEN.values(), ids=UNSEEN)
def test_an_unseen_table_is_called_as_its_schema_calls_it(table):
    assert table.plurals == (table.name,) == (table.singular + "s",)
    for column in table.described:
        assert column.nouns == (column.name,)
    for text in table.texts:
        assert text.conditions == (f"whose {text.name} is {{}}",)


@every_table
def test_every_column_of_words_can_be_named_in_a_condition(table):
    for text in table.texts:
        assert f"whose {text.name} is {{}}" in text.conditions
        assert all(phrase.count("{}") == 1 for phrase in text.conditions)
        assert len(text.values) == len(set(text.values)) >= 5


@every_table
def test_names_are_single_words_and_labels_two(table):
    values = [value for text in table.texts for value in text.values]
    assert all(name.isalpha() and name.islower() for name in (table.name, table.singular, *table.columns, *values))
    assert all(len(label.split()) == 2 for label in LABELS)
    assert len(set(LABELS)) == len(LABELS)


def test_columns_are_written_with_bars_between_alternatives():
    text = text_column("country|nation", "in {}|lying in {}", "peru kenya")
    assert text == Text("country", ("country", "nation"), ("in {}", "lying in {}", "whose country is {}"), ("peru", "kenya"))
    assert text_column("breed", "", "cob shire").conditions == ("whose breed is {}",)
    number = number_column("length|extent", range(10, 40, 10))
    assert (number.name, number.nouns, number.thresholds) == ("length", ("length", "extent"), range(10, 40, 10))
