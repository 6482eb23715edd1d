"""What is a function about? Its docstring's first paragraph to one of twelve topics; it knows the language wing and no adapters.

The text and the labels are real: the docstrings are those of the standard library, of this book's libraries and of what these bring with
them, and the topic is that of the folder in which a file lies. Files are read, not imported. There are two test sets: "test" holds new
paragraphs of files that training knows others of, "unseen" those of files of which it knows none. No paragraph appears twice. Words that
would give a topic away, the names of topics, libraries and folders, are hidden in every text alike.

An example, as the model reads it and as it should answer::

    Return the shortest path between two nodes of a weighted ….          -> graphs
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

from lorabook.language.likelihood import IGNORE, Example
from lorabook.language.pretrained import token_ids

Split = Literal["train", "validation", "test", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "unseen")

# Where the files of each topic lie. The libraries are PyTorch, Matplotlib and what they install; "python" is the standard library.
TOPICS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "concurrency": (
            *("python/asyncio", "python/multiprocessing", "python/concurrent", "python/threading.py"),
            *("python/queue.py", "python/sched.py", "python/subprocess.py", "python/selectors.py"),
        ),
        "files": (
            *("python/tarfile.py", "python/zipfile.py", "python/zipfile", "python/shutil.py", "python/pathlib.py", "python/pathlib"),
            *("python/gzip.py", "python/bz2.py", "python/lzma.py", "python/tempfile.py", "python/os.py", "python/glob.py"),
            *("python/_pyio.py", "python/fnmatch.py", "python/filecmp.py", "python/fileinput.py", "python/posixpath.py"),
            *("python/ntpath.py", "python/genericpath.py", "python/mimetypes.py", "python/stat.py", "python/dbm", "python/shelve.py"),
            *("python/csv.py", "python/configparser.py"),
        ),
        "fonts": ("fontTools",),
        "geometry": ("sympy/geometry", "sympy/vector", "sympy/diffgeom"),
        "graphs": ("networkx",),
        "groups": ("sympy/combinatorics", "sympy/liealgebras"),
        "images": ("PIL",),
        "physics": ("sympy/physics",),
        "plots": ("matplotlib",),
        "polynomials": ("sympy/polys", "numpy/polynomial"),
        "probability": ("sympy/stats", "torch/distributions", "python/random.py", "python/statistics.py"),
        "protocols": (
            *("python/email", "python/http", "python/urllib", "python/xmlrpc", "python/wsgiref", "python/mailbox.py", "python/smtplib.py"),
            *("python/ftplib.py", "python/imaplib.py", "python/poplib.py", "python/socketserver.py", "python/socket.py", "python/ssl.py"),
            *("python/ipaddress.py", "python/netrc.py"),
        ),
    }
)
HIDDEN = "…"
# Beside the names of topics, libraries, folders and files above: the same in other forms, and what a library calls itself.
_TELLTALES = frozenset(
    {
        *("file", "font", "fonttools", "graph", "digraph", "multigraph", "group", "image", "pillow", "plot", "plotting"),
        *("poly", "polynomial", "protocol", "probabilities", "probabilistic", "geometric", "physical", "concurrently"),
    }
)
_GENERIC = {"stats", "queue", "stat", "glob", "os", "vector", "random", "statistics", "distributions"}  # ordinary words, kept
_FEWEST_WORDS = 8  # shorter ones often leave the topic open
_MOST_OF_A_FILE = 60  # so that no topic is the style of one file
_MOST_FILES = 120  # of a topic: reading takes seconds then
_MOST_OF_A_TOPIC: Mapping[Split, int] = MappingProxyType({"train": 200, "validation": 40, "test": 60, "unseen": 60})
_SKIPPED = {"test", "tests", "__pycache__", "_vendor", "testutils.py"}
_LARGEST_FILE_BYTES = 200_000  # larger ones are tables more than programs


@dataclass(frozen=True)
class Docstring:
    """One paragraph and what it is about.

    Args:
        text: the first paragraph of a public function's or class's docstring, on one line, telltale words hidden.
        topic: one of ``TOPICS``.
        source: library and file, such as "sympy/polys/rings.py".
    """

    text: str
    topic: str
    source: str


def split_of(source: str, text: str) -> Split:
    """The split of a paragraph, by hashes: a quarter of the files is unseen; of the paragraphs in the others a fifth each is for
    validation and for the test.

    Args:
        source: library and file.
        text: the paragraph.

    Example:
        >>> split_of("networkx/relabel.py", "Rename the nodes of a network."), split_of("matplotlib/axis.py", "Whatever it says.")
        ('train', 'unseen')
    """
    if _hash(source) % 20 < 5:
        return "unseen"
    bucket = _hash(text) % 10
    return "test" if bucket < 2 else "validation" if bucket < 4 else "train"


@cache
def examples(split: Split) -> tuple[Docstring, ...]:
    """All paragraphs of a split, topic by topic.

    A topic has at most 120 files, a file at most 60 paragraphs, and a topic at most 200 in training, 40 in validation and 60 in either test
    set; where there is more, hashes choose.
    Which there are differs a little between versions of Python and of the libraries.

    Args:
        split: train, validation, test (new paragraphs) or unseen (new files).

    Raises:
        ValueError: another split.
        ModuleNotFoundError: a library is not installed.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> {example.topic for example in examples("test")} == set(TOPICS)
        True
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    chosen: list[Docstring] = []
    for topic in TOPICS:
        of_topic = [example for example in _everything() if example.topic == topic and split_of(example.source, example.text) == split]
        chosen += sorted(of_topic, key=lambda example: _order(example.text))[: _MOST_OF_A_TOPIC[split]]
    return tuple(chosen)


def hide_telltales(text: str) -> str:
    """Replace every word that names a topic, a library or a folder of one, also inside an identifier or a dotted path.

    Example:
        >>> hide_telltales("Draw the Graph G with nx.draw_networkx and Matplotlib.")
        'Draw the … G with … and ….'
    """
    return re.sub(r"\w+(?:\.\w+)*", lambda found: HIDDEN if _telltales() & set(_parts(found.group())) else found.group(), text)


def encode(example: Docstring, tokenizer: Callable[..., Any], max_tokens: int = 64) -> Example:
    """Token ids, and as labels the topic's number at the first position and nothing elsewhere: what the training loop takes."""
    inputs = token_ids(tokenizer, example.text, max_tokens)
    return inputs, [list(TOPICS).index(example.topic)] + [IGNORE] * (len(inputs) - 1)


class TopicClassifier(nn.Module):
    """A linear layer over an encoder's vector: the logits of the topics.

    Args:
        encoder: maps token ids (B, T) to vectors (B, width).
        width: of the encoder's vectors.

    Chapter: Fine-tuning with LoRA.
    """

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, len(TOPICS))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map token ids (B, T) to logits (B, T, number of topics), the same at every position, as the training loop wants them."""
        logits: Tensor = self.head(self.encoder(input_ids))  # (B, T) -> (B, width) -> (B, topics)
        return logits.unsqueeze(1).expand(-1, input_ids.shape[1], -1)


def accuracy(predicted: Sequence[str], gold: Sequence[Docstring]) -> float:
    """The share of paragraphs whose topic was named.

    Raises:
        ValueError: no paragraphs, or another number of predictions.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> one, two = Docstring("Sort.", "arrays", "a.py"), Docstring("Draw.", "plots", "b.py")
        >>> accuracy(["arrays", "fonts"], [one, two])
        0.5
    """
    if not gold or len(predicted) != len(gold):
        raise ValueError(f"need one prediction per paragraph and at least one, got {len(predicted)} for {len(gold)}")
    return sum(topic == example.topic for topic, example in zip(predicted, gold, strict=True)) / len(gold)


def paragraphs(program: str) -> Iterator[str]:
    r"""The first paragraphs of the docstrings of a program's public functions, classes and methods, each on one line.

    Example:
        >>> list(paragraphs("def f():\n    '''Sort the\n    rows.\n\n    Slowly.'''\ndef _g():\n    'Hidden.'"))
        ['Sort the rows.']
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file's invalid escapes are not ours to report
            tree = ast.parse(program)
    except (SyntaxError, ValueError):
        return
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ClassDef):
            waiting += node.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            docstring = ast.get_docstring(node)
            if docstring:
                yield " ".join(docstring.split("\n\n")[0].split())


@cache
def _everything() -> tuple[Docstring, ...]:
    """Every paragraph that is long enough, once; one that stands under two topics is left out."""
    found: dict[str, Docstring | None] = {}
    for topic, places in TOPICS.items():
        files = sorted({file for place in places for file in _files(place)}, key=lambda file: _order(file[0]))
        for source, path in files[:_MOST_FILES]:
            texts = {hide_telltales(text) for text in paragraphs(path.read_text(encoding="utf-8", errors="replace"))}
            long_enough = sorted((text for text in texts if len(_key(text).split()) >= _FEWEST_WORDS), key=_order)
            for text in long_enough[:_MOST_OF_A_FILE]:
                key = _key(text)
                before = found.setdefault(key, Docstring(text, topic, source))
                if before is not None and before.topic != topic:
                    found[key] = None
    return tuple(example for example in found.values() if example is not None)


def _key(text: str) -> str:
    """The words alone, so that texts differ in more than signs, digits and letter case."""
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def _hash(text: str) -> int:
    return zlib.crc32(text.encode("utf-8"))


def _order(text: str) -> tuple[int, str]:
    return _hash(text), text


def _parts(identifier: str) -> list[str]:
    """The words of an identifier or a dotted path, in small letters: between dots and underscores, whole and by its capitals."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)
    return [part.lower() for part in (*re.split(r"[\W\d_]+", identifier), *words) if part]


@cache
def _telltales() -> frozenset[str]:
    names = {part for topic, places in TOPICS.items() for name in (topic, *places) for part in _parts(name.removesuffix(".py"))}
    return (frozenset(names) - _GENERIC) | _TELLTALES


def _files(place: str) -> Iterator[tuple[str, Path]]:
    """Library and file name, and path, of every program in one place; none where this version of the library has no such place."""
    library, _, inside = place.partition("/")
    root = _root(library)
    path = root / inside
    for file in [path] if path.suffix == ".py" else sorted(path.rglob("*.py")):
        relative = file.relative_to(root)
        nested = place.count("/") == 0 and relative.parts[0] == "testing"  # a library's testing folder is the topic of testing
        if file.is_file() and file.stat().st_size <= _LARGEST_FILE_BYTES and not nested and not _SKIPPED & set(relative.parts):
            yield f"{library}/{relative.as_posix()}", file


def _root(library: str) -> Path:
    if library == "python":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{library} is not installed: pip install {library}")
    return Path(spec.submodule_search_locations[0])
