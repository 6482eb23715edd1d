"""Questions, their SQL and their judge, against the meaning of a query written out in plain Python."""

import operator
import random
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorabook.language.likelihood import IGNORE
from lorabook.language.tokenizer import WordTokenizer
from lorabook.tasks.sandbox import run_query
from lorabook.tasks.tables import TABLES
from lorabook.tasks.text_to_sql import (
    Condition,
    Query,
    SQLExample,
    database,
    draw,
    encode,
    examples,
    execution_accuracy,
    judge,
    predict,
    split_of,
)

SPLITS = ("train", "validation", "test")
COMPARE = {"=": operator.eq, "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
REDUCE = {"COUNT": len, "AVG": fmean, "SUM": sum, "MAX": max, "MIN": min}
questions = st.integers(0, 2**32 - 1).map(lambda seed: draw(random.Random(seed)))


def records(table):
    columns = ["name", *(column.name for column in (*TABLES[table].texts, *TABLES[table].numbers))]
    return [dict(zip(columns, row, strict=True)) for row in run_query(database(), f"SELECT * FROM {table}").rows]


def meaning(query):
    """Rows that a query asks for, without SQL."""
    kept = [row for row in records(query.table) if all(COMPARE[c.operator](row[c.column], c.value) for c in query.conditions)]
    if query.order:
        kept = sorted(kept, key=operator.itemgetter(query.order[0]), reverse=query.order[1])[: query.limit]
    if query.aggregate is None:
        return [(row[query.column],) for row in kept]
    groups = defaultdict(list)
    for row in kept:
        groups[(row[query.group],) if query.group else ()].append(row if query.column == "*" else row[query.column])
    if not query.group and not kept:
        return [(0 if query.aggregate == "COUNT" else None,)]
    return [(*group, pytest.approx(REDUCE[query.aggregate](values))) for group, values in groups.items()]


@given(questions)
def test_sql_gives_what_the_query_means(example):
    result, expected = run_query(database(), example.query.sql), meaning(example.query)
    assert result.error is None
    found = list(result.rows)
    if not example.query.order:
        found, expected = (sorted(answer, key=operator.itemgetter(0)) for answer in (found, expected))
    assert found == expected


@given(questions)
def test_a_question_contains_the_values_of_its_conditions_and_its_limit(example):
    words = example.question.replace("?", " ").split()
    for condition in example.query.conditions:
        assert str(condition.value) in words
    if example.query.limit:
        assert str(example.query.limit) in words


def test_a_question_about_a_table_has_one_meaning():
    rng, meanings = random.Random(0), {}
    for example in (draw(rng) for _ in range(5000)):
        assert meanings.setdefault(example.prompt, example.query.sql) == example.query.sql


@given(questions)
def test_gold_sql_is_judged_correct(example):
    prediction = judge(example, example.query.sql)
    assert prediction.correct
    assert prediction.result == run_query(database(), example.query.sql)


def test_splits_are_disjoint_and_take_about_a_tenth_each():
    rng = random.Random(0)
    buckets = Counter(split_of(draw(rng).query) for _ in range(5000))
    assert set(buckets) == set(SPLITS)
    for split in ("validation", "test"):
        assert 0.06 < buckets[split] / 5000 < 0.14


@pytest.mark.parametrize("split", SPLITS)
def test_examples_belong_to_their_split_and_repeat_with_the_seed(split):
    drawn = examples(split, 150, seed=4)
    assert len(drawn) == 150
    assert {split_of(example.query) for example in drawn} == {split}
    assert examples(split, 150, seed=4) == drawn
    assert examples(split, 150, seed=5) != drawn


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_queries_are_distinct(split):
    drawn = examples(split, 300, seed=1)
    assert len({example.query.sql for example in drawn}) == 300


@pytest.mark.parametrize("split", SPLITS)
def test_no_gold_answer_is_empty(split):
    for example in examples(split, 150, seed=2):
        answer = meaning(example.query)
        assert answer
        assert any(row[-1] not in (None, 0) for row in answer)


def test_every_kind_of_query_and_every_table_occurs():
    drawn = examples("train", 400, seed=0)
    assert {example.query.table for example in drawn} == set(TABLES)
    assert {example.query.aggregate for example in drawn} == {None, *REDUCE}
    assert {condition.operator for example in drawn for condition in example.query.conditions} == set(COMPARE)
    assert {bool(example.query.group) for example in drawn} == {bool(example.query.order) for example in drawn} == {True, False}


LIST = SQLExample("list the country of all rivers", Query("rivers", "country"))
TOP = SQLExample("list the 3 rivers by highest depth", Query("rivers", "name", order=("depth", True), limit=3))
MEAN = SQLExample("what is the mean depth of the rivers?", Query("rivers", "depth", "AVG"))
JUDGED = [
    (LIST, "SELECT country FROM rivers ORDER BY depth", True),  # no order was asked for
    (LIST, "SELECT DISTINCT country FROM rivers", False),  # how often a row occurs counts
    (LIST, "SELECT country, name FROM rivers", False),
    (LIST, "SELECT sea FROM rivers", False),
    (LIST, "SELECT country FROM rivers; SELECT 1", False),
    (LIST, "SELECT country FROM", False),
    (LIST, "DROP TABLE rivers", False),
    (TOP, "SELECT name FROM (SELECT * FROM rivers ORDER BY depth DESC LIMIT 3)", True),
    (TOP, "SELECT name FROM (SELECT * FROM rivers ORDER BY depth DESC LIMIT 3) ORDER BY depth", False),  # the order was asked for
    (TOP, "SELECT name FROM rivers ORDER BY depth DESC LIMIT 4", False),
    (MEAN, "SELECT SUM(depth) * 1.0 / COUNT(*) FROM rivers", True),  # the last digits may differ
    (MEAN, "SELECT SUM(depth) / COUNT(*) - 1 FROM rivers", False),
]


@pytest.mark.parametrize(("example", "sql", "correct"), JUDGED)
def test_rows_are_compared_as_the_question_asks(example, sql, correct):
    assert judge(example, sql).correct is correct


def test_another_question_rarely_has_the_same_answer():
    # An answer right by luck would add its rate to every accuracy. Half a point is far below the sampling error of the 300
    # questions themselves, whose standard error at an accuracy of 90% is sqrt(0.9 * 0.1 / 300) = 1.7 points.
    by_table = defaultdict(list)
    for example in examples("test", 300, seed=0):
        by_table[example.query.table].append(example)
    pairs = [pair for drawn in by_table.values() for pair in combinations(drawn, 2)]
    lucky = sum(judge(example, other.query.sql).correct for example, other in pairs)
    assert len(pairs) > 3000
    assert lucky / len(pairs) < 0.005


@given(questions.filter(lambda example: example.query.aggregate in (None, "COUNT") and not example.query.order), st.data())
def test_a_strict_comparison_never_passes_for_a_loose_one(example, data):
    number = data.draw(st.sampled_from(TABLES[example.query.table].numbers))
    value = data.draw(st.sampled_from(number.thresholds))
    strict, loose = (
        replace(example.query, conditions=(Condition(number.name, comparison, value, ""),))
        for comparison in data.draw(st.sampled_from([("<", "<="), (">", ">=")]))
    )
    assert not judge(SQLExample("", strict), loose.sql).correct


def test_a_gold_query_that_fails_is_an_error_not_a_wrong_answer():
    with pytest.raises(ValueError, match="the gold query failed: no such column: width"):
        judge(SQLExample("", Query("rivers", "width")), "SELECT 1")


@given(questions)
def test_an_encoded_example_asks_for_the_sql_and_the_end_alone(example):
    tokenizer = WordTokenizer.train([example.prompt + example.target], 20)
    inputs, labels = encode(example, tokenizer)
    assert tokenizer.decode(inputs) == example.prompt + example.target
    target = [label for label in labels if label != IGNORE]
    assert target[-1] == tokenizer.end_id
    assert tokenizer.decode(target) == example.target
    assert inputs[: len(inputs) - len(target) + 1] == tokenizer.encode(example.prompt)


class Recall(torch.nn.Module):
    """Continues every prompt as it was told to."""

    def __init__(self, texts, vocab_size):
        super().__init__()
        self.texts, self.vocab_size = texts, vocab_size
        self.config = SimpleNamespace(context=200)
        self.token_embedding = torch.nn.Embedding(1, 1)

    def step(self, ids, past):
        seen = ids if past is None else torch.cat((past, ids), dim=1)
        following = [next(text[len(row)] for text in self.texts if text[: len(row)] == row) for row in seen.tolist()]
        return torch.nn.functional.one_hot(torch.tensor(following), self.vocab_size)[:, None], seen


def test_predictions_are_judged_in_the_order_of_their_questions():
    asked = examples("test", 12, seed=3)
    tokenizer = WordTokenizer.train([example.prompt + example.target for example in asked], 500)
    answers = [example.query.sql if index % 3 else "SELECT COUNT(" for index, example in enumerate(asked)]
    texts = [
        [*tokenizer.encode(example.prompt), *tokenizer.encode(" " + answer), *[tokenizer.end_id] * 100]
        for example, answer in zip(asked, answers, strict=True)
    ]
    predictions = predict(Recall(texts, tokenizer.vocab_size), tokenizer, asked)
    assert [prediction.sql for prediction in predictions] == answers
    assert [prediction.correct for prediction in predictions] == [index % 3 > 0 for index in range(12)]
    assert execution_accuracy(predictions) == pytest.approx(8 / 12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: examples("dev", 1, seed=0), "split must be train, validation or test and count at least 0, got 'dev' and 1"),
        (lambda: examples("test", -1, seed=0), "got 'test' and -1"),
        (lambda: execution_accuracy([]), "at least one prediction"),
    ],
)
def test_what_names_no_examples_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
