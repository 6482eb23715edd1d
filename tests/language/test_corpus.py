"""The corpus: real text, split by file, the shifted library kept apart."""

import ast
import inspect
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lorabook.language.corpus import HELD_OUT, SOURCES, SPLITS, docstrings, documents, split_of

pytestmark = pytest.mark.slow

every_source = pytest.mark.parametrize("source", [*SOURCES, HELD_OUT])


@pytest.fixture(scope="module")
def corpus():
    return {(source, split): documents(source, split) for source in (*SOURCES, HELD_OUT) for split in SPLITS}


@every_source
def test_every_source_has_text_in_every_split(corpus, source):
    for split in SPLITS:
        assert sum(map(len, corpus[source, split])) > 10_000
    assert len(corpus[source, "train"]) > 5 * len(corpus[source, "test"])


@every_source
def test_no_document_of_the_test_is_trained_on(corpus, source):
    splits = [set(corpus[source, split]) for split in SPLITS]
    assert not (splits[0] & splits[1]) | (splits[0] & splits[2]) | (splits[1] & splits[2])


def test_docstrings_go_where_their_program_goes(corpus):
    tested = [text for package in ("python", "numpy", "matplotlib") for text in corpus[package, "test"]]
    assert corpus["docstrings", "test"] == [prose for prose in map(docstrings, tested) if len(prose) >= 200]


def test_pre_training_sees_no_file_of_the_shifted_library(corpus):
    shifted = {text for split in SPLITS for text in corpus[HELD_OUT, split] if len(text) > 500}
    assert not shifted & {text for source in SOURCES for split in SPLITS for text in corpus[source, split]}


def test_programs_are_programs(corpus):
    for source in ("numpy", "matplotlib"):
        for text in corpus[source, "test"]:
            ast.parse(text)


def test_docstrings_are_those_that_python_shows():
    program = Path(ast.__file__).read_text(encoding="utf-8")
    found = docstrings(program)
    for documented in (ast.parse, ast.walk, ast.NodeVisitor, ast.NodeVisitor.generic_visit):
        assert ast.get_docstring(ast.parse(program)) in found
        assert inspect.getdoc(documented) in found


def test_a_text_that_is_no_program_has_no_docstrings():
    assert docstrings("def f(:") == ""
    assert docstrings("\0") == ""


def test_one_name_in_ten_is_held_out():
    shares = Counter(split_of(f"x = {index}") for index in range(4000))
    assert 0.035 < shares["test"] / 4000 < 0.065
    assert 0.035 < shares["validation"] / 4000 < 0.065


def test_reading_the_shifted_library_imports_nothing_of_it():
    code = "import sys; from lorabook.language.corpus import _programs; next(_programs('torch', 'test')); print('torch' in sys.modules)"
    # lorabook itself imports torch, so matplotlib stands in for it.
    code = code.replace("torch", "matplotlib")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(("source", "split"), [("wikipedia", "train"), ("python", "dev")])
def test_an_unknown_source_or_split_is_refused(source, split):
    with pytest.raises(
        ValueError, match="source must be one of topics, docstrings, python, numpy, matplotlib, torch and split one of train"
    ):
        documents(source, split)
