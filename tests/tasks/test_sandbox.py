"""The sandbox, against hostile SQL, arbitrary text, and an open SQLite connection on the same rows."""

import re
import sqlite3
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorabook.tasks.sandbox import QueryResult, create_database, run_query

COLUMNS = ["name", "country", "height"]
ROWS = [(f"peak {i}", ("peru", "kenya", None)[i % 3], 100 + 7 * i % 31) for i in range(60)]
WRITES = [
    "INSERT INTO peaks VALUES ('a', 'b', 1)",
    "INSERT INTO peaks VALUES ('a', 'b', 1) RETURNING *",
    "REPLACE INTO peaks VALUES ('a', 'b', 1)",
    "UPDATE peaks SET height = 0",
    "DELETE FROM peaks",
    "DROP TABLE peaks",
    "ALTER TABLE peaks RENAME TO hills",
    "CREATE TABLE hills (a)",
    "CREATE TEMP TABLE hills (a)",
    "CREATE VIEW hills AS SELECT * FROM peaks",
    "CREATE INDEX hills ON peaks (height)",
    "CREATE TRIGGER t AFTER INSERT ON peaks BEGIN SELECT 1; END",
    "CREATE VIRTUAL TABLE hills USING fts5(a)",
    "WITH old AS (SELECT 1) DELETE FROM peaks",
    "UPDATE sqlite_master SET sql = ''",
]
ESCAPES = [
    "ATTACH DATABASE 'escaped.db' AS other",
    "ATTACH DATABASE ':memory:' AS other",
    "DETACH DATABASE main",
    "VACUUM",
    "VACUUM INTO 'escaped.db'",
    "PRAGMA query_only = OFF",
    "PRAGMA table_info(peaks)",
    "SELECT * FROM pragma_table_info('peaks')",
    "SELECT load_extension('escaped.so')",
    "SELECT readfile('/etc/passwd')",
    "BEGIN",
    "COMMIT",
    "SAVEPOINT here",
    "ANALYZE",
]
BROKEN = [
    "SELECT 1; SELECT 2",
    "SELECT name FROM peaks; DROP TABLE peaks",
    "SELECT COUNT( FROM peaks",
    "SELECT depth FROM peaks",
    "SELECT name FROM hills",
    "SELECT ?",
    "SELECT 1\0",
    "\0",
    "SELECT '\ud800'",
    "SELECT CAST(x'ff' AS TEXT)",
    "SELECT abs(-9223372036854775807 - 1)",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "SELECT 1" + " + 1" * 4000,
    "SELECT '" + "a" * 20_000 + "'",
]
BOMBS = [
    "SELECT randomblob(1000000000)",
    "SELECT zeroblob(1000000000)",
    "SELECT printf('%.*c', 1000000000, 'x')",
    "SELECT replace(hex(zeroblob(50000)), '00', name) FROM peaks",
    "SELECT group_concat(a.name || b.name) FROM peaks a, peaks b, peaks c",
    "WITH RECURSIVE grow(x) AS (SELECT 'aaaaaaaa' UNION ALL SELECT x || x FROM grow) SELECT length(x) FROM grow",
]
ENDLESS = [
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n) SELECT MAX(i) FROM n",
    "SELECT COUNT(*) FROM " + ", ".join(f"peaks p{i}" for i in range(12)),
    "SELECT a.name FROM peaks a, peaks b, peaks c, peaks d, peaks e WHERE a.height + e.height > 1000",
    "SELECT a.name FROM peaks a, peaks b, peaks c, peaks d, peaks e ORDER BY a.height + b.height + c.height",
]
# What a question of the book may need; an open connection answers the same.
ALLOWED = [
    "SELECT * FROM peaks",
    "SELECT name FROM peaks WHERE country = 'peru' AND height >= 110 ORDER BY height DESC, name LIMIT 5",
    "SELECT country, COUNT(*), AVG(height), SUM(height), MIN(height), MAX(height) FROM peaks GROUP BY country",
    "SELECT country, COUNT(*) FROM peaks GROUP BY country HAVING COUNT(*) > 3",
    "SELECT DISTINCT country FROM peaks WHERE country IS NOT NULL",
    "SELECT UPPER(name), lower(name), length(name), abs(-height), round(height / 7.0, 2) FROM peaks",
    "SELECT name FROM peaks WHERE height = (SELECT MAX(height) FROM peaks) UNION SELECT 'none'",
    "SELECT a.name, b.name FROM peaks a JOIN peaks b ON a.height = b.height WHERE a.name < b.name",
    "SELECT height / 0, NULL, 1.5, x'00ff' FROM peaks WHERE height IN (100, 107) LIMIT 3",
    "SELECT name FROM peaks WHERE height < 0",
]


@pytest.fixture(scope="module")
def database():
    connection = create_database([("peaks", COLUMNS, ROWS)])
    yield connection
    connection.close()


def contents(database):
    return [run_query(database, query) for query in ("SELECT * FROM peaks", "SELECT name, sql FROM sqlite_master")]


@pytest.fixture
def intact(database):
    """The database holds after the test what it held before it."""
    before = contents(database)
    yield database
    assert before[0].rows == tuple(ROWS)
    assert contents(database) == before
    assert database.total_changes == len(ROWS)
    assert not database.in_transaction


@pytest.mark.parametrize("sql", WRITES + ESCAPES + BROKEN + BOMBS, ids=lambda sql: ascii(sql)[:40])
def test_what_is_no_harmless_query_fails_with_a_reason(intact, tmp_path, monkeypatch, sql):
    monkeypatch.chdir(tmp_path)
    result = run_query(intact, sql)
    assert result.rows == ()
    assert result.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("below", "error"), [(50_000, None), (100_000, "string or blob too big")])
def test_a_value_grows_to_a_hundred_thousand_bytes_and_no_further(intact, below, error):
    doubling = f"SELECT 'aaaaaaaa' UNION ALL SELECT x || x FROM grow WHERE length(x) < {below}"  # 65,536 or 131,072 bytes
    assert run_query(intact, f"WITH RECURSIVE grow(x) AS ({doubling}) SELECT length(x) FROM grow").error == error


def test_writing_is_refused_even_without_the_authorizer():
    connection = create_database([("peaks", COLUMNS, ROWS)])
    connection.set_authorizer(None)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM peaks")
    connection.close()


@pytest.mark.parametrize("levels", [4, 20, 40])
def test_a_query_that_doubles_with_every_level_fails_before_it_is_prepared(intact, levels):
    doubling = ", ".join(f"c{i} AS (SELECT l.x FROM c{i - 1} l, c{i - 1} r)" for i in range(1, levels))
    result = run_query(intact, f"WITH c0 AS (SELECT 1 x), {doubling} SELECT count(*) FROM c{levels - 1}", seconds=0.5)
    assert result.error == "more than 3 SELECTs"


def test_the_widest_query_that_three_selects_allow_ends_in_time(intact):
    wide = ", ".join(f"peaks p{i}" for i in range(60)), ", ".join(f"c c{i}" for i in range(60))
    start = time.monotonic()
    result = run_query(
        intact, f"WITH c AS (SELECT 1 FROM {wide[0]}), e AS (SELECT 1 FROM {wide[1]}) SELECT count(*) FROM e, e f", seconds=0.5
    )
    assert result.error is not None
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("sql", ["", "-- nothing", ";", "   "])
def test_what_selects_nothing_has_failed(intact, sql):
    assert run_query(intact, sql).error == "not a query: nothing was selected"


def test_a_keyword_can_name_a_table():
    connection = create_database([("select", ["order"], [(3,)])])
    assert run_query(connection, 'SELECT "order" FROM "select"').rows == ((3,),)
    connection.close()


@pytest.mark.parametrize("sql", ENDLESS, ids=lambda sql: sql[:40])
def test_what_does_not_end_is_interrupted_at_the_limit(intact, sql):
    start = time.monotonic()
    assert run_query(intact, sql, seconds=0.1) == QueryResult((), "ran longer than 0.1 s")
    assert 0.1 <= time.monotonic() - start < 5  # the upper bound leaves room for a busy machine


@pytest.mark.parametrize("sql", ALLOWED)
def test_a_harmless_query_gives_what_an_open_connection_gives(intact, sql):
    with sqlite3.connect(":memory:") as connection:
        connection.execute(f"CREATE TABLE peaks ({', '.join(COLUMNS)})")
        connection.executemany("INSERT INTO peaks VALUES (?, ?, ?)", ROWS)
        expected = connection.execute(sql).fetchall()
    connection.close()
    assert run_query(intact, sql) == QueryResult(tuple(expected))


@pytest.mark.parametrize("function", ["randomblob(4)", "hex('a')", "quote('a')", "json('1')", "sqlite_version()", "char(65)", "likely(1)"])
def test_a_function_that_is_not_listed_is_denied_by_name(intact, function):
    assert f"not authorized to use function: {function.partition('(')[0]}" in run_query(intact, f"SELECT {function}").error


@pytest.mark.parametrize(("max_rows", "succeeds"), [(59, False), (60, True)])
def test_more_rows_than_the_limit_are_a_failure(intact, max_rows, succeeds):
    result = run_query(intact, "SELECT name FROM peaks", max_rows=max_rows)
    assert (len(result.rows), result.error) == ((60, None) if succeeds else (0, "more than 59 rows"))


def test_an_endless_list_of_rows_is_cut_off(intact):
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    assert run_query(intact, endless).error == "more than 1000 rows"


def test_a_query_after_an_interrupted_one_runs(intact):
    run_query(intact, ENDLESS[0], seconds=0.01)
    assert run_query(intact, "SELECT COUNT(*) FROM peaks").rows == ((60,),)


# Any text, and the words of the queries above in any order.
TOKENS = sorted({token for sql in WRITES + ESCAPES + ALLOWED + ENDLESS for token in re.findall(r"\w+|[^\w\s]", sql)})
SOUP = st.lists(st.sampled_from(TOKENS), max_size=25).map(" ".join)
TEXT = st.text(st.characters(exclude_categories=()))  # null characters and lone surrogates too


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(TEXT | SOUP | SOUP.map("SELECT {} FROM peaks".format) | TEXT.map("SELECT '{}' FROM peaks".format))
def test_whatever_the_text_a_result_comes_back(intact, sql):
    result = run_query(intact, sql, seconds=0.05)
    assert isinstance(result, QueryResult)
    assert result.error is None or (result.error and result.rows == ())


@pytest.mark.parametrize("table", [("peaks; --", ["a"], []), ("peaks", ["a", "b c"], []), ("", ["a"], [])])
def test_a_name_that_is_no_identifier_is_refused(table):
    with pytest.raises(ValueError, match="must be identifiers, got"):
        create_database([table])


def test_a_comment_in_a_name_does_not_reach_the_database():
    with pytest.raises(ValueError, match=r"got 'a\) --'"):
        create_database([("peaks", ["a) --"], [])])
