"""Chapters were executed each in a kernel of its own, with the network cut, and in time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_cache import get_cache

from tests.book.conftest import ROOT
from tests.book.test_cells import CHAPTERS, cells

sys.path.insert(0, str(ROOT / "_ext"))

from cut_network import offline_environment

LIMIT_SECONDS = {"11-fine-tuning": 120.0}
EXECUTED = [path for path in CHAPTERS if cells(path)]


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_a_chapter_executes_in_time(path):
    records = [one for one in get_cache(str(ROOT / "_build" / ".jupyter_cache")).list_cache_records() if Path(one.uri) == path]
    assert records
    newest = max(records, key=lambda record: record.created)
    assert newest.data["execution_seconds"] < LIMIT_SECONDS.get(path.stem, 90.0)


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)",
        "import socket; socket.socket().connect_ex(('192.0.2.1', 80))",
        "import socket; socket.getaddrinfo('example.org', 443)",
        "import urllib.request; urllib.request.urlopen('http://example.org')",
    ],
)
def test_nothing_outside_can_be_reached_while_chapters_execute(attempt):
    environment = offline_environment({**os.environ, "http_proxy": "", "no_proxy": "*"})
    result = subprocess.run([sys.executable, "-c", attempt], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "the network is cut" in result.stderr
