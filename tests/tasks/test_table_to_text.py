"""Rows and their sentences, against a reader of rows that knows nothing of the package's Thing."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabook.tasks.sentences import Thing
from lorabook.tasks.table_to_text import TextExample, ask, examples, judge, predict, scores, slot_recall, split_of
from lorabook.tasks.tables import SEEN, TABLES, UNSEEN

SPLITS = ("train", "validation", "test", "unseen")
drawn = st.builds(lambda seed, table: ask(random.Random(seed), table), st.integers(0, 2**32 - 1), st.sampled_from(list(TABLES.values())))
of_unseen = st.builds(
    lambda seed, table: ask(random.Random(seed), table), st.integers(0, 2**32 - 1), st.sampled_from(list(UNSEEN.values()))
)


def parse(row):
    table, fields = re.fullmatch(r"(\w+)\((.*)\)", row).groups()
    name, *others = (tuple(field.split(" = ")) for field in fields.split(", "))
    assert name[0] == "name"
    return table, name[1], others


def said(prompt, phrases, kinds):
    """The sentence of a prompt: words first, numbers after them, each in the row's order."""
    row, cue = prompt.split("\n")
    assert cue == "TEXT:"
    table, label, fields = parse(row)
    kind = kinds.get(table, table.removesuffix("s"))
    words = [phrases.get((table, column), f"whose {column} is {{}}").format(value) for column, value in fields if not value.isdigit()]
    numbers = [f"{column} {value}" for column, value in fields if value.isdigit()]
    return ", ".join([" ".join([f"{label} is {'an' if kind[0] in 'aeiou' else 'a'} {kind}", *words]), *numbers]) + "."


@given(drawn)
def test_the_sentence_follows_from_the_row_and_from_how_seen_columns_are_said(example):
    phrases = {(table.name, text.name): text.conditions[0] for table in SEEN.values() for text in table.texts}
    kinds = {table.name: table.singular for table in SEEN.values()}
    assert example.target == " " + said(example.prompt, phrases, kinds)


@given(of_unseen)
def test_the_sentence_of_an_unseen_table_follows_from_the_row_alone(example):
    assert example.target == " " + said(example.prompt, {}, {})


def test_words_and_numbers_are_mixed_in_the_rows():
    kinds = Counter(
        "".join("n" if value.isdigit() else "w" for _, value in parse(example.row)[2])
        for example in examples("train", 3000, seed=0)
        if len(example.thing.values) == 4
    )
    assert set(kinds) == {"wwnn", "wnwn", "wnnw", "nwwn", "nwnw", "nnww"}
    assert min(kinds.values()) > sum(kinds.values()) / 12  # none is half as frequent as its share


def test_every_table_and_every_number_of_columns_occurs():
    found = examples("train", 600, seed=0)
    assert {example.thing.table.name for example in found} == set(SEEN)
    assert {len(example.thing.values) for example in found} == {1, 2, 3, 4}
    assert {example.thing.table.name for example in examples("unseen", 100, seed=0)} == set(UNSEEN)


def facts(example):
    table, label, fields = parse(example.row)
    return table, label, frozenset(fields)


def test_splits_never_share_a_set_of_facts():
    found = {split: {facts(example) for seed in range(3) for example in examples(split, 700, seed=seed)} for split in SPLITS}
    everything = [thing for things in found.values() for thing in things]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_example_belongs_to_its_split_in_whatever_order_its_facts_come(split):
    for example in examples(split, 100, seed=3):
        thing = example.thing
        backwards = Thing(thing.table, thing.label, dict(reversed(thing.values.items())))
        assert split_of(thing) == split_of(backwards) == split


@pytest.mark.parametrize("split", ["validation", "test", "unseen"])
def test_no_set_of_held_out_facts_occurs_twice(split):
    assert len({facts(example) for example in examples(split, 500, seed=2)}) == 500


THING = Thing(TABLES["bridges"], "iron bridge", {"material": "iron", "region": "bay", "span": 300, "built": 300})
ROW = "bridges(name = iron bridge, material = iron, region = bay, span = 300, built = 300)"
SENTENCE = "iron bridge is a bridge built of iron in the bay region, span 300, built 300."
JUDGED = [
    (SENTENCE, True, 1.0),
    (f"  {SENTENCE}\n", True, 1.0),  # white space around it aside
    (SENTENCE.replace("300.", "300"), False, 1.0),
    (SENTENCE.replace(" in the bay region", ""), False, 0.8),
    (SENTENCE.replace("of iron", "of stone"), False, 0.8),  # the label's iron is no material
    (SENTENCE.replace("built 300", "built 200"), False, 0.8),  # one mention is not two
    (SENTENCE.replace("300", "3000"), False, 0.6),  # no part of a number is a number
    (SENTENCE.replace("300", "1300"), False, 0.6),
    (SENTENCE.replace("300", "1,300"), False, 0.6),
    (SENTENCE.replace("300", "300.5"), False, 0.6),
    (SENTENCE.replace("bay", "bayou"), False, 0.8),
    (SENTENCE.replace("iron bridge", "iron mill"), False, 0.8),  # half a label is none
    ("iron in the bay 300 and 300 of iron bridge", False, 1.0),  # in whatever order
    (ROW, False, 1.0),  # a copy of the row says nothing, which is why exactness comes first
    ("", False, 0.0),
    ("a bridge", False, 0.0),
]


@pytest.mark.parametrize(("text", "exact", "recall"), JUDGED)
def test_sentences_are_judged_whole_and_by_their_slots(text, exact, recall):
    prediction = judge(TextExample(ROW, THING), text)
    assert prediction.exact is exact
    assert prediction.slot_recall == pytest.approx(recall)


def counted(thing, text):
    """Slot recall by cutting the text into words and striking out those that are used."""
    words = [word.rstrip(".,") for word in text.split()]
    found = 0
    for slot in [thing.label, *map(str, thing.values.values())]:
        parts = slot.split()
        for start in range(len(words) - len(parts) + 1):
            if words[start : start + len(parts)] == parts:
                words[start : start + len(parts)] = [""] * len(parts)
                found += 1
                break
    return found / (1 + len(thing.values))


@given(drawn, st.data())
def test_slot_recall_is_the_share_of_slots_among_the_words(example, data):
    words = example.target.split()
    kept = data.draw(st.lists(st.sampled_from(words), max_size=2 * len(words)) | st.permutations(words))
    assert slot_recall(example.thing, " ".join(kept)) == pytest.approx(counted(example.thing, " ".join(kept)))


@given(drawn, st.data())
def test_the_reference_is_exact_and_loses_a_slot_with_each_value_taken_out(example, data):
    gold = judge(example, example.target)
    assert gold.exact
    assert gold.slot_recall == 1
    value = str(data.draw(st.sampled_from(list(example.thing.values.values()))))
    head, _, tail = example.target.rpartition(value)
    worse = judge(example, head + "something" + tail)
    assert not worse.exact
    assert worse.slot_recall == pytest.approx(1 - 1 / (1 + len(example.thing.values)))


def test_scores_are_means_over_the_rows_and_exactness_comes_first(tokenizer, answering):
    asked = examples("test", 8, seed=5)
    answers = [example.row if index < 2 else example.thing.sentence() for index, example in enumerate(asked)]
    predictions = predict(answering(asked, answers), tokenizer, asked)
    assert [prediction.text for prediction in predictions] == answers
    assert list(scores(predictions).items()) == [("exactness", 0.75), ("slot_recall", 1.0)]
    half = [judge(TextExample(ROW, THING), text) for text in (SENTENCE, "iron bridge: bay")]
    assert scores(half) == pytest.approx({"exactness": 0.5, "slot_recall": (1 + 0.4) / 2})
