"""A chapter is executed again exactly when something that it runs has changed; tried on a small book of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---
"""
CONFIGURATION = f"""
import sys
sys.path.insert(0, {str(ROOT / "_ext")!r})
project = "book"
root_doc = "chapters/index"
extensions = ["myst_nb", "fresh_execution"]
exclude_patterns = ["_build"]
nb_execution_mode = "cache"
nb_execution_cache_path = "_build/cache"
nb_execution_raise_on_error = True
"""


def chapter(title, code):
    return f"{HEADER}\n# {title}\n\n```{{code-cell}} ipython3\n{code}\n```\n"


@pytest.fixture
def book(tmp_path):
    files = {
        "conf.py": CONFIGURATION,
        "requirements.lock": "torch==0",
        "src/lorabook/__init__.py": "",
        "src/lorabook/low.py": "def one():\n    return 'first'\n",
        "src/lorabook/high.py": "from lorabook.low import one\n",
        "src/lorabook/other.py": 'SCRIPT = "draw.js"\n\n\ndef two():\n    return "second"\n',
        "src/lorabook/draw.js": "first()",
        "chapters/index.md": "# Index\n\n```{toctree}\nhigh\nother\n```\n",
        # The path is set in the cell, so that this package and not the installed one is imported.
        "chapters/high.md": chapter(
            "High", "# draws assets/results\nimport sys\nsys.path.insert(0, '../src')\nfrom lorabook.high import one\nprint(one())"
        ),
        "chapters/other.md": chapter("Other", "import sys\nsys.path.insert(0, '../src')\nfrom lorabook.other import two\nprint(two())"),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def build(book):
    """Build; return what each chapter printed and the names of the chapters that were executed."""
    command = [sys.executable, "-m", "sphinx", "-W", "-b", "html", str(book), str(book / "_build" / "html")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=book)
    assert result.returncode == 0, result.stderr
    pages = {name: (book / "_build" / "html" / "chapters" / f"{name}.html").read_text() for name in ("high", "other")}
    executed = [line.split("chapters/")[1].split(".md")[0] for line in result.stdout.splitlines() if "Executed notebook" in line]
    return pages, sorted(executed)


def test_only_the_chapters_that_import_a_changed_module_run_again(book):
    pages, executed = build(book)
    assert executed == ["high", "other"]
    assert "first" in pages["high"]
    assert build(book)[1] == []

    (book / "src/lorabook/low.py").write_text("def one():\n    return 'changed'\n")
    pages, executed = build(book)
    assert executed == ["high"]  # through lorabook.high, which imports lorabook.low
    assert "changed" in pages["high"]
    assert build(book)[1] == []


def test_a_script_counts_for_the_chapters_whose_modules_name_it(book):
    build(book)
    (book / "src/lorabook/draw.js").write_text("changed()")
    assert build(book)[1] == ["other"]


def test_the_lock_file_counts_for_every_chapter_and_the_results_for_those_that_name_them(book):
    build(book)
    (book / "requirements.lock").write_text("torch==1")
    assert build(book)[1] == ["high", "other"]
    (book / "assets/results").mkdir(parents=True)
    (book / "assets/results/run.json").write_text(json.dumps({"accuracy": 1}))
    assert build(book)[1] == ["high"]


def test_throwing_away_the_pages_keeps_the_outputs(book):
    build(book)
    shutil.rmtree(book / "_build" / "html")
    pages, executed = build(book)
    assert executed == []
    assert "first" in pages["high"]
