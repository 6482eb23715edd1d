"""The code cells of the chapters: linted, formatted, short enough to read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.md"))
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COLUMNS = 84


def cells(path):
    """Each cell's code, without its options."""
    return [re.sub(r"\A(?::[^\n]*\n)*\n?", "", cell) for cell in CELL.findall(path.read_text(encoding="utf-8"))]


def ruff(*arguments, code, name):
    command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", f"chapters/{name}.py", "-"]
    return subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_cells_pass_the_linter(path):
    result = ruff("check", "--quiet", code="\n\n".join(cells(path)), name=path.stem)
    assert result.stdout + result.stderr == ""


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_cells_are_formatted_and_short(path):
    for cell in cells(path):
        options = ("--line-length", str(COLUMNS), "--config", "format.skip-magic-trailing-comma=true")
        assert ruff("format", *options, code=cell, name=path.stem).stdout.strip() == cell.strip()
        assert sum(bool(line.strip()) for line in cell.splitlines()) <= 20, cell


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_exercise_has_a_solution_that_folds(path):
    text = path.read_text(encoding="utf-8")
    exercises = re.findall(r"\{exercise-start\}\n:label: (\S+)", text)
    solutions = re.findall(r"\{solution-start\} (\S+)\n:class: dropdown", text)
    assert exercises == solutions
