"""The audit's server compresses, and its verdict follows the numbers."""

import gzip
import urllib.request

import pytest

from tests.book.audit import EXPLORER_BYTES, TEXT_BYTES, Measured, pages_to_measure, read, serve, summary, table
from tests.book.conftest import SITE

PERFECT = dict.fromkeys(("performance", "accessibility", "best-practices", "seo"), 1.0)


def report(**changed):
    numbers = {**PERFECT, "shift": 0.0, "bytes": 1000, **changed}
    categories = {name: {"score": numbers[name], "auditRefs": [{"id": "slow", "weight": 1}]} for name in PERFECT}
    audits = {
        "cumulative-layout-shift": {"numericValue": numbers["shift"], "score": 1},
        "total-byte-weight": {"numericValue": numbers["bytes"], "score": 1},
        "slow": {"score": 0.2},
    }
    return {"categories": categories, "audits": audits}


def test_text_travels_gzipped_and_whole(tmp_path):
    (tmp_path / "page.html").write_text("<p>word</p>" * 1000)
    server = serve(tmp_path)
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_address[1]}/page.html", headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request) as response:
        body = response.read()
        assert response.headers["Content-Encoding"] == "gzip"
    server.shutdown()
    server.server_close()
    assert len(body) < 1000
    assert gzip.decompress(body) == (tmp_path / "page.html").read_bytes()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, []),
        ({"performance": 0.95}, []),
        ({"performance": 0.94}, ["performance 0.94 < 0.95"]),
        ({"seo": 0.99}, ["seo 0.99 < 1.0"]),
        ({"shift": 0.01}, ["layout shift 0.010 > 0"]),
        ({"bytes": TEXT_BYTES + 1}, [f"{TEXT_BYTES + 1} bytes > {TEXT_BYTES}"]),
    ],
)
def test_what_is_below_the_promise_is_named(changed, words):
    one = read(report(**changed), "page", explorer=False)
    assert one.shortcomings() == words
    assert all(text in table([one]) for text in words)


def test_an_explorer_may_weigh_more_and_a_failing_audit_is_named():
    one = read(report(bytes=TEXT_BYTES + 1, performance=0.5), "page", explorer=True)
    assert one.allowed_bytes == EXPLORER_BYTES
    assert one.failing == ["slow"]
    assert Measured("page", PERFECT, 0.0, EXPLORER_BYTES + 1, EXPLORER_BYTES, []).shortcomings()


def test_the_median_run_counts_for_speed_and_the_worst_for_everything_else():
    runs = [
        read(report(performance=score, **rest), "page", explorer=False) for score, rest in ((0.9, {"shift": 0.01}), (0.99, {}), (0.96, {}))
    ]
    found = summary(runs)
    assert found.scores["performance"] == 0.96
    assert found.shortcomings() == ["layout shift 0.010 > 0"]
    found = summary([*runs[1:], read(report(seo=0.9), "page", explorer=False)])
    assert found.shortcomings() == ["seo 0.90 < 1.0"]
    assert found.failing == ["slow"]


def test_the_welcome_page_and_the_heaviest_chapters_are_measured():
    first, *heavy = pages_to_measure(SITE)
    assert first == "chapters/index.html"
    sizes = {path.name: len(gzip.compress(path.read_bytes(), 6)) for path in (SITE / "chapters").glob("[0-9][0-9]-*.html")}
    assert [page.partition("/")[2] for page in heavy] == sorted(sizes, key=sizes.get, reverse=True)[:3]
