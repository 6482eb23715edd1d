"""What a fresh clone promises: everything pinned, no address that only works somewhere, make that says what it needs."""

import json
import os
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml

from tests.book.browser import find_browser

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()


def make(*arguments):
    """Run make as a reader would, although `make test` may be running this test."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


def test_every_installed_package_has_the_version_of_the_lock():
    pinned = dict(line.lower().replace("_", "-").split("==") for line in LOCK)
    installed = {one.name.lower().replace("_", "-").replace(".", "-"): one.version.partition("+")[0] for one in distributions()}
    pinned = {name.replace(".", "-"): version for name, version in pinned.items()}
    ours = {"lorabook", "pip", "setuptools", "wheel"}
    system = re.compile(r"nvidia-|cuda-|triton$")  # libraries of PyTorch's GPU build, whose versions PyTorch itself pins
    different = {name: version for name, version in installed.items() if pinned.get(name) != version}
    assert {name: version for name, version in different.items() if name not in ours and not system.match(name)} == {}


def test_the_lock_names_exact_versions_and_no_address():
    assert [line for line in LOCK if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert "resolved" not in (ROOT / "package-lock.json").read_text(encoding="utf-8")


def test_building_the_book_again_does_nothing_and_prints_the_page():
    again = make("book")
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == f"Open {ROOT / '_build' / 'html' / 'index.html'}"
    assert (ROOT / "_build" / "html" / "index.html").is_file()


def test_help_names_every_command():
    listed = make("help").stdout
    for command in ("book", "test", "test-fast", "lab", "serve", "audit", "pdf", "bench", "clean"):
        assert f"make {command} " in listed


def test_a_missing_python_is_one_sentence():
    result = make("book", "PYTHON=", "VENV=_build/no-such-environment")
    assert result.returncode != 0
    assert [line for line in result.stderr.splitlines() if not line.startswith("make")] == [
        "Python 3.11, 3.12 or 3.13 is needed: install one, or name it: make PYTHON=/path/to/python book"
    ]


def test_a_missing_browser_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BROWSER", raising=False)
    with pytest.raises(FileNotFoundError, match=r"^The page tests need a browser: install Chromium .*\.$"):
        find_browser()


def test_the_weights_come_with_their_provenance():
    card = json.loads((ROOT / "assets/weights/backbone.json").read_text(encoding="utf-8"))
    assert {"command", "commit", "arguments", "device", "data", "seconds", "date", "test_bits_per_byte", "samples"} <= card.keys()
    for result in (ROOT / "assets/results").glob("*.json"):
        provenance = json.loads(result.read_text(encoding="utf-8"))["provenance"]
        assert {"command", "commit", "device", "torch", "seconds", "date"} <= provenance.keys()


def test_the_workflow_runs_the_readmes_commands():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert commands
    assert all(f"$ {command}" in readme for command in commands)
