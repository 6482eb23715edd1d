"""What the backbone reads about tables: each task's input and output, never the one after the other."""

import random
import re
import zlib
from collections import Counter
from dataclasses import replace

import pytest

from lorabook.tasks import text_to_sql
from lorabook.tasks.pretraining import generated, kept_for_testing, made_up_table, plan
from lorabook.tasks.tables import LABELS, SEEN, TABLES, UNSEEN
from lorabook.tasks.text_to_sql import Condition, Query

# Singulars of unseen names among them: a table made up of "error" is called "errors".
TEMPTING = "error errors drop drops horse horses prize robot arabian ridge form fever granite patient dose".split()  # noqa: SIM905
WORDS = [*TEMPTING, *"alpha beta gamma delta omega zeta kappa sigma theta lambda epsilon iota".split()]  # noqa: SIM905

SCHEMA = r"\w+\(name(?:, \w+)+\)"
ROW = r"\w+\(name = [\w ]+(?:, \w+ = \w+)+\)"
FORMS = {
    "plan": rf"{SCHEMA}\n(?P<question>[^\n]+)\nPLAN: (?P<plan>[^\n]+)",
    "query": rf"{SCHEMA}\nSQL: (?P<sql>SELECT [^\n]+)",
    "passage": r"(?:[\w ,]+\.)(?: [\w ,]+\.)*(?:\nFACTS: [\w :]+)*",
    "row": ROW,
}
ASKING = r"\?|^(?:which|what|how many|list|name|count|show|give) "  # every question asks with one of these


@pytest.fixture(scope="module")
def documents():
    return list(generated(6000, words=WORDS, seed=1))


def form_of(document):
    found = [name for name, pattern in FORMS.items() if re.fullmatch(pattern, document)]
    assert len(found) == 1, document
    return found[0]


def test_every_document_has_one_form_and_every_form_has_its_share(documents):
    shares = Counter(map(form_of, documents))
    for name, share in {"plan": 0.35, "query": 0.25, "passage": 0.25, "row": 0.15}.items():
        assert shares[name] / len(documents) == pytest.approx(share, abs=0.025)  # about 4 standard errors


def test_no_document_holds_a_question_with_its_sql(documents):
    for document in documents:
        asked = re.search(ASKING, document, re.MULTILINE)
        assert bool(asked) == (form_of(document) == "plan")
        assert not (asked and re.search(r"\bSELECT\b|SQL:", document))


def test_no_document_holds_a_row_with_a_sentence(documents):
    for document in documents:
        if re.search(r"\w+\(name = ", document):
            assert form_of(document) == "row"
            assert not re.search(r"\bis an?\b|\.|\n", document)


def test_no_document_holds_a_passage_with_a_question_or_the_cue_of_a_task(documents):
    for document in documents:
        assert not re.search(r"ANSWER:|TEXT:", document)
        if form_of(document) == "passage":
            assert not re.search(ASKING, document.replace("\n", " "))


def test_every_question_of_the_task_is_recognized_as_one():
    rng = random.Random(0)
    assert all(re.search(ASKING, text_to_sql.ask(rng, table).question) for table in TABLES.values() for _ in range(200))


@pytest.mark.parametrize("seed", range(3))
def test_no_word_of_an_unseen_table_occurs(seed):
    kept = {name for table in UNSEEN.values() for name in (table.name, table.singular, *table.columns[1:])}
    kept |= {value for table in UNSEEN.values() for text in table.texts for value in text.values}
    assert kept_for_testing() == kept
    for document in generated(3000, words=WORDS, seed=seed):
        assert not kept & set(re.findall(r"\w+", document))


def test_half_of_the_tables_are_made_up_and_every_seen_one_occurs(documents):
    tables = Counter(re.match(r"(\w+)\(", document).group(1) for document in documents if form_of(document) != "passage")
    assert set(SEEN) < set(tables)
    assert sum(tables[name] for name in SEEN) / tables.total() == pytest.approx(0.5, abs=0.03)


def in_one_order(sql):
    """A query with its conditions sorted by column, operator and value: what decides its split."""
    if not (found := re.fullmatch(r"(.*) WHERE (.*?)((?: GROUP BY| ORDER BY).*)?", sql)):
        return sql
    conditions = sorted(found[2].split(" AND "), key=lambda condition: condition.replace("'", "").split(" ", 2))
    return f"{found[1]} WHERE {' AND '.join(conditions)}{found[3] or ''}"


@pytest.mark.parametrize(("split", "buckets"), [("train", range(2, 10)), ("validation", range(1, 2))])
def test_queries_are_of_their_own_split(split, buckets):
    found = [form.group("sql") for text in generated(800, words=WORDS, seed=2, split=split) if (form := re.fullmatch(FORMS["query"], text))]
    assert len(found) > 100
    assert {zlib.crc32(in_one_order(sql).encode()) % 10 for sql in found} == set(buckets)


def test_no_plan_of_a_test_query_is_read():
    tested = {plan(example.query) for example in text_to_sql.examples("test", 1000, seed=0)}
    read = {form.group("plan") for text in generated(6000, words=WORDS, seed=3) if (form := re.fullmatch(FORMS["plan"], text))}
    assert len(read) > 1000
    assert not tested & read


def test_documents_depend_on_the_seed_and_the_set_of_words_alone():
    first = list(generated(50, words=WORDS, seed=4))
    assert list(generated(50, words=[*reversed(WORDS), *WORDS], seed=4)) == first
    assert list(generated(80, words=WORDS, seed=4))[:50] == first
    assert list(generated(50, words=WORDS, seed=5)) != first
    assert list(generated(50, words=WORDS, seed=4, split="validation")) != first


def test_a_made_up_table_is_made_of_the_words_it_is_given():
    words = "alpha beta gamma delta omega zeta".split()  # noqa: SIM905
    for seed in range(50):
        table = made_up_table(random.Random(seed), words)
        assert {table.singular, *table.columns[1:]} <= set(words)
        assert len({table.singular, *table.columns}) == 6
        assert table.name == table.singular + "s"
        assert {value for text in table.texts for value in text.values} <= set(words)


QUERY = Query("rivers", "depth", "AVG", (Condition("country", "=", "peru", ""),))
PLANS = [
    (QUERY, "rivers : keep country is peru : mean depth"),
    (replace(QUERY, aggregate=None), "rivers : keep country is peru : take depth"),
    (replace(QUERY, group="sea", conditions=()), "rivers : split sea : mean depth"),
    (
        Query("rivers", "name", None, (Condition("depth", "<=", 10, ""),), None, ("length", True), 3),
        "rivers : keep depth upto 10 : sort length down : first 3 : take name",
    ),
    (
        Query("rivers", "*", "COUNT", (Condition("depth", ">", 1, ""), Condition("length", ">=", 2, ""))),
        "rivers : keep depth above 1 : keep length from 2 : tally",
    ),
]


@pytest.mark.parametrize(("query", "expected"), PLANS)
def test_a_plan_says_what_the_query_means(query, expected):
    assert plan(query) == expected


def test_different_queries_have_different_plans_and_none_uses_the_words_of_sql():
    rng, plans = random.Random(0), {}
    for _ in range(5000):
        query = text_to_sql.ask(rng, rng.choice(list(SEEN.values()))).query
        assert plans.setdefault(plan(query), query.sql) == query.sql
        assert not re.search(r"[A-Z(*='<>]", plan(query))


def test_labels_are_not_those_of_the_tasks_alone(documents):
    labels = {found for document in documents for found in re.findall(r"FACTS: (\w+ \w+)", document)}
    assert labels & set(LABELS)
    assert labels - set(LABELS)
