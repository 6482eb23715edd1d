"""A short passage and a question about it, judged by the words of the answer; it knows the language wing and no adapters.

An example, as the model reads and must continue it::

    amber harbour is a city in norway, population 300. the country of old mill is peru. the population of old mill is 80.
    which is the city in peru?
    ANSWER: old mill

The passage always tells of another thing of the same kind with other values, so the kind of answer wanted does not give it away.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lorabook.language.generate import generate
from lorabook.language.gpt import GPT
from lorabook.language.likelihood import Example, conditional_example
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.tasks.sentences import Thing, clause, draw_thing
from lorabook.tasks.splits import SPLITS, Split, draw_distinct, split_of_key
from lorabook.tasks.tables import LABELS, SEEN, UNSEEN, Number, Table, Text

__all__ = [
    "SPLITS",
    "Prediction",
    "ReadingExample",
    "ask",
    "encode",
    "examples",
    "f1",
    "judge",
    "normalize",
    "predict",
    "scores",
    "split_of",
]

_MOST_SENTENCES = 4
_MAX_ANSWER_TOKENS = 20


@dataclass(frozen=True)
class ReadingExample:
    """A passage, a question and its answer.

    Args:
        passage: two to four sentences about two or three things.
        question: asks for a value of a thing, or for the one thing that has a value.
        answer: a value or a label, as it stands in the passage.
        asked: what the question names, without its wording: the label and the column, or the kind of thing, the column and the value.
    """

    passage: str
    question: str
    answer: str
    asked: str

    @property
    def prompt(self) -> str:
        """What the model reads: the passage, the question, and the cue to answer."""
        return f"{self.passage}\n{self.question}\nANSWER:"

    @property
    def target(self) -> str:
        """What the model is to write, the end token aside."""
        return " " + self.answer


def ask(rng: random.Random, table: Table, other: Table) -> ReadingExample:
    """One random passage about things of a table, and of another in some, with a question about the first table."""
    while True:
        columns = rng.sample(table.described, rng.randint(1, 2))
        n_alike = rng.choice((2, 2, 3))
        labels = rng.sample(LABELS, n_alike + 1)
        alike = _alike(rng, table, columns, labels[:n_alike])
        things = list(alike)
        if n_alike == 2 and rng.random() < 0.5:
            things.append(draw_thing(rng, other, columns=rng.randint(1, 2), label=labels[-1]))
        said: list[str] = []
        for thing in things:
            said += [thing.sentence()] if rng.random() < 0.5 else [thing.statement(column, rng) for column in thing.values]
        thing, column = rng.choice(alike), rng.choice(columns)
        # One thing alone has the value asked for, though columns of the two tables may share a name.
        holders = sum(candidate.values.get(column.name) == thing.values[column.name] for candidate in things)
        if len(said) <= _MOST_SENTENCES and holders == 1:
            rng.shuffle(said)
            return _question(rng, " ".join(said), thing, column)


def _alike(rng: random.Random, table: Table, columns: Sequence[Text | Number], labels: Sequence[str]) -> list[Thing]:
    """Things with the same columns, in none of which two have the same value."""
    drawn: dict[str, list[str | int]] = {}
    for column in table.described:
        if column in columns:
            possible: Sequence[str | int] = column.values if isinstance(column, Text) else range(1, column.thresholds.stop)
            drawn[column.name] = rng.sample(possible, len(labels))
    return [Thing(table, label, {name: values[index] for name, values in drawn.items()}) for index, label in enumerate(labels)]


def _question(rng: random.Random, passage: str, thing: Thing, column: Text | Number) -> ReadingExample:
    value, kind = thing.values[column.name], thing.table.singular
    if rng.random() < 0.5:
        question = rng.choice((f"what is the {column.name} of {thing.label}?", f"which {column.name} does {thing.label} have?"))
        return ReadingExample(passage, question, str(value), f"{thing.label} : {column.name}")
    forms = [f"which {kind} has the {column.name} {value}?"]
    if isinstance(column, Text):
        forms.append(f"which is the {kind} {clause(column, value)}?")
    return ReadingExample(passage, rng.choice(forms), thing.label, f"{kind} : {column.name} {value}")


def split_of(example: ReadingExample) -> Split:
    """The split to which an example belongs, decided by what is asked: no wording of a test question is ever trained on.

    Example:
        >>> split_of(ReadingExample("", "what is the country of amber harbour?", "norway", "amber harbour : country"))
        'train'
    """
    return split_of_key(example.asked)


def examples(split: Split, count: int, *, seed: int) -> list[ReadingExample]:
    """Draw examples of one split. Outside training none occurs twice.

    Args:
        split: ``train``, ``validation`` and ``test`` are about sixteen tables, and their questions are disjoint; ``unseen`` is about four
            tables that occur nowhere else.
        count: how many.
        seed: the same seed gives the same examples.

    Raises:
        ValueError: an unknown split or a negative count.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> example = examples("test", 1, seed=1)[0]
        >>> example.answer in example.passage
        True
    """
    tables = list((UNSEEN if split == "unseen" else SEEN).values())
    return draw_distinct(
        split,
        count,
        seed=seed,
        draw=lambda rng: ask(rng, *rng.sample(tables, 2)),
        key=lambda example: example.asked,
        identity=lambda example: example.prompt,
    )


def encode(example: ReadingExample, tokenizer: BytePairTokenizer) -> Example:
    """Inputs and labels of an example: the prompt carries no loss, the target ends with the end token."""
    return conditional_example(tokenizer.encode(example.prompt), [*tokenizer.encode(example.target), tokenizer.end_id])


@dataclass(frozen=True)
class Prediction:
    """What a model answered and how it was judged.

    Args:
        example: the passage and the question.
        answer: what the model wrote.
        exact: whether it is the gold answer, both normalized.
        f1: how far its words are those of the gold answer, between 0 and 1.
    """

    example: ReadingExample
    answer: str
    exact: bool
    f1: float


def judge(example: ReadingExample, answer: str) -> Prediction:
    """Compare an answer with the gold one.

    Example:
        >>> asked = ReadingExample("", "which is the city in norway?", "amber harbour", "city : country norway")
        >>> judge(asked, "The amber harbour.").exact, judge(asked, "amber road").f1
        (True, 0.5)
    """
    return Prediction(example, answer, normalize(answer) == normalize(example.answer), f1(answer, example.answer))


def normalize(text: str) -> str:
    """A text in small letters, without ASCII punctuation and the articles a, an and the, with single spaces.

    Source: Rajpurkar et al. 2016 (SQuAD), the evaluation script.

    Example:
        >>> normalize("  The  Amber-Harbour, a city!")
        'amberharbour city'
    """
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def f1(answer: str, gold: str) -> float:
    r"""Harmonic mean of precision and recall of the normalized answer's words, as multisets.

    .. math:: F_1 = \frac{2 \lvert A \cap G \rvert}{\lvert A \rvert + \lvert G \rvert}

    Two answers without words are equal, and score 1.

    Source: Rajpurkar et al. 2016 (SQuAD), section 6.1.

    Example:
        >>> round(f1("the old stone mill", "old mill"), 2)
        0.8
    """
    ours, theirs = Counter(normalize(answer).split()), Counter(normalize(gold).split())
    if not ours and not theirs:
        return 1.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def predict(model: GPT, tokenizer: BytePairTokenizer, examples: Sequence[ReadingExample]) -> list[Prediction]:
    """Let the model answer every question greedily and judge each answer.

    Chapter: Fine-tuning with LoRA.
    """
    prompts = [tokenizer.encode(example.prompt) for example in examples]
    answers = generate(model, prompts, max_new_tokens=_MAX_ANSWER_TOKENS, stop_id=tokenizer.end_id)
    return [judge(example, tokenizer.decode(ids).strip()) for example, ids in zip(examples, answers, strict=True)]


def scores(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Share of exact answers, and mean F1, each between 0 and 1.

    The exact match comes first: an answer is one value or one label, and half a label names another thing.

    Raises:
        ValueError: no prediction.
    """
    if not predictions:
        raise ValueError("scores need at least one prediction")
    return {
        "exact_match": sum(prediction.exact for prediction in predictions) / len(predictions),
        "f1": sum(prediction.f1 for prediction in predictions) / len(predictions),
    }
