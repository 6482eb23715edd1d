"""Paragraphs and their topics: real, split by file, none twice, with nothing in them that names the topic."""

import ast
import re
from collections import Counter
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import nn

from lorabook.language.likelihood import IGNORE, negative_log_likelihood, pad_batch
from lorabook.tasks.docstrings import (
    SPLITS,
    TOPICS,
    Docstring,
    TopicClassifier,
    accuracy,
    encode,
    examples,
    hide_telltales,
    paragraphs,
    split_of,
)

pytestmark = pytest.mark.slow


def words(text):
    return tuple(re.findall("[a-z]+", text.lower()))


def letters(tokenizer_text, *, truncation, max_length):
    """A tokenizer for tests: one token per letter."""
    assert truncation
    return {"input_ids": [ord(letter) for letter in tokenizer_text][:max_length]}


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_every_topic_and_none_has_most_of_it(split):
    counts = Counter(example.topic for example in examples(split))
    assert set(counts) == set(TOPICS)
    assert max(counts.values()) < 0.2 * sum(counts.values())


def test_there_are_enough_paragraphs_to_tell_methods_apart():
    assert len(examples("train")) > 1200
    assert len(examples("validation")) > 250
    assert len(examples("test")) > 300
    assert len(examples("unseen")) > 300


def test_no_paragraph_is_in_two_splits_and_no_unseen_file_in_another():
    for one, other in combinations(SPLITS, 2):
        assert {words(example.text) for example in examples(one)}.isdisjoint(words(example.text) for example in examples(other))
    seen = {example.source for split in SPLITS[:3] for example in examples(split)}
    assert seen.isdisjoint(example.source for example in examples("unseen"))


def test_new_paragraphs_mostly_stand_in_files_that_training_knows():
    known = {example.source for example in examples("train")}
    assert sum(example.source in known for example in examples("test")) > 0.8 * len(examples("test"))


def test_no_paragraph_stands_twice_or_under_two_topics():
    for split in SPLITS:
        assert max(Counter(words(example.text) for example in examples(split)).values()) == 1


def test_every_paragraph_is_of_its_file_and_split():
    for example in examples("test")[::40]:
        assert split_of(example.source, example.text) == "test"
        library, _, inside = example.source.partition("/")
        root = Path(ast.__file__).parent if library == "python" else Path(find_spec(library).origin).parent
        program = (root / inside).read_text(encoding="utf-8")
        own = [
            ast.get_docstring(node)
            for node in ast.walk(ast.parse(program))
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        ]
        firsts = {hide_telltales(" ".join(docstring.split("\n\n")[0].split())) for docstring in own if docstring}
        assert example.text in firsts
        assert any(example.source.startswith(f"{place}/") or example.source == place for place in TOPICS[example.topic])


def test_no_word_is_the_name_of_a_topic_a_library_or_a_folder():
    names = set(TOPICS) | {place.partition("/")[0].lower() for places in TOPICS.values() for place in places}
    names |= {"graph", "plot", "font", "image", "group", "polynomial", "file", "protocol"}
    for split in SPLITS:
        for example in examples(split):
            assert names.isdisjoint(words(example.text)), example


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("the DiGraph class", "the … class"),
        ("see numpy.linalg.norm for more", "see … for more"),
        ("a tk_image of it", "a … of it"),
        ("GRAPHS and Plots", "… and …"),
        ("NetworkX, SymPy and Pillow", "…, … and …"),
        ("a paragraph on photography", "a paragraph on photography"),
    ],
)
def test_telltales_are_hidden_in_identifiers_and_paths_but_not_inside_words(text, hidden):
    assert hide_telltales(text) == hidden


def test_private_names_nested_functions_and_later_paragraphs_are_left_out():
    program = '''
"""Of the module."""
class Open:
    """Of the
    class.

    Later."""
    def method(self):
        """Of the method."""
        def inner():
            """Of a nested function."""
    def _private(self):
        """Of a private method."""
async def loop():
    """Of a coroutine."""
def silent(): ...
'''
    assert sorted(paragraphs(program)) == ["Of a coroutine.", "Of the class.", "Of the method."]
    assert list(paragraphs("def broken(:")) == []


def test_an_example_is_read_whole_and_labelled_once():
    example = Docstring("Sort rows.", "plots", "a/b.py")
    inputs, labels = encode(example, letters, max_tokens=6)
    assert inputs == [ord(letter) for letter in "Sort r"]
    assert labels == [list(TOPICS).index("plots")] + [IGNORE] * 5


def test_the_loss_of_a_batch_is_the_cross_entropy_of_its_topics():
    class Length(nn.Module):
        def forward(self, input_ids):
            return torch.stack(((input_ids != 0).sum(1).double(), input_ids.double().sum(1) / 500), dim=1)

    classifier = TopicClassifier(Length(), 2).double()
    assert not classifier.head.weight.any()
    nn.init.normal_(classifier.head.weight, generator=torch.Generator().manual_seed(0))
    batch = [Docstring("Sort rows.", "plots", "a.py"), Docstring("Draw it", "files", "b.py")]
    input_ids, labels = pad_batch([encode(example, letters) for example in batch])
    total, count = negative_log_likelihood(classifier(input_ids), labels)
    logits = classifier.encoder(input_ids) @ classifier.head.weight.T
    index = [list(TOPICS).index(example.topic) for example in batch]
    expected = -sum(logits[row, topic] - logits[row].exp().sum().log() for row, topic in enumerate(index))
    assert count == 2
    torch.testing.assert_close(total, expected)


def test_accuracy_counts_right_answers_and_refuses_another_number_of_them():
    gold = [Docstring("x", topic, "a.py") for topic in ("plots", "files", "fonts")]
    assert accuracy(["plots", "fonts", "fonts"], gold) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="got 1 for 3"):
        accuracy(["plots"], gold)
    with pytest.raises(ValueError, match="at least one"):
        accuracy([], [])


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, validation, test, unseen, got 'dev'"):
        examples("dev")
