"""The bar that a run shows: for people, and silenced by the variable that the book's build sets."""

import os
import subprocess
import sys

import pytest

CODE = """
from lorabook.training.progress import Progress, Tally
with Progress(Tally(), steps=2, description="a run", shown={shown}) as progress:
    progress.step(0.5, target_tokens=3, tokens=8)
    progress.step(0.5, target_tokens=3, tokens=8)
"""


@pytest.mark.parametrize(
    ("shown", "variable", "seen"), [(True, {}, True), (False, {}, False), (True, {"TQDM_DISABLE": "1"}, False)], ids=str
)
def test_a_bar_is_drawn_unless_the_caller_or_the_environment_says_no(shown, variable, seen):
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"} | variable
    run = subprocess.run([sys.executable, "-c", CODE.format(shown=shown)], env=environment, capture_output=True, text=True, check=True)
    assert ("a run" in run.stderr) is seen
    assert run.stdout == ""
