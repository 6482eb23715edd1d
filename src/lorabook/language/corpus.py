"""Real text that every reader already has: the documentation and the sources of Python and of the libraries this book needs.

Nothing is downloaded and nothing is imported: files are found and read. The split is by
document, and a program's docstrings go where it goes.
"""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS = ("train", "validation", "test")
SOURCES = ("topics", "docstrings", "python", "numpy", "matplotlib")  # what the backbone is pre-trained on
HELD_OUT = "torch"  # a library of which pre-training sees nothing: the domain shift

_PACKAGES = ("python", "numpy", "matplotlib")
_SKIPPED = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages", "encodings", "turtledemo", "ensurepip"}
_SKIPPED |= {"pydoc_data", "__pycache__", "_vendor", "vendor"}
_LARGEST_FILE_BYTES = 300_000
_FEWEST_LETTERS = 0.4  # below this share of letters a file holds a table of numbers, not a program
_SHORTEST_PROSE = 200  # characters; one line of documentation may stand in several programs


def split_of(text: str) -> Split:
    """The split of a document, by a hash of its text, so that copies stay together: one in twenty each for validation and test.

    Example:
        >>> split_of("import this")
        'train'
    """
    bucket = zlib.crc32(text.encode("utf-8", errors="replace")) % 20
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def documents(source: str, split: Split) -> list[str]:
    r"""All documents of one source and split, in the order of their names.

    Args:
        source: ``topics`` (the language reference that ``help()`` shows), ``docstrings`` (of all programs below, one document per file),
            ``python`` (the standard library's programs), ``numpy``, ``matplotlib``, or ``torch``, which is not in ``SOURCES``.
        split: train, validation or test; by program, so that no docstring of a test program is trained on.

    Returns:
        Texts. They differ a little between versions of Python and of the libraries.

    Raises:
        ValueError: an unknown source or split.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> any(text.startswith("The \"if\" statement") for text in documents("topics", "train"))
        True
    """
    if source not in (*SOURCES, HELD_OUT) or split not in SPLITS:
        raise ValueError(
            f"source must be one of {', '.join((*SOURCES, HELD_OUT))} and split one of {', '.join(SPLITS)}, got {source!r}, {split!r}"
        )
    if source == "topics":
        from pydoc_data.topics import topics

        return [text for _, text in sorted(topics.items()) if split_of(text) == split]
    if source == "docstrings":
        programs = (text for package in _PACKAGES for text in _programs(package, split))
        return [prose for prose in map(docstrings, programs) if len(prose) >= _SHORTEST_PROSE]
    return list(_programs(source, split))


def docstrings(program: str) -> str:
    r"""The docstrings of a program's module, classes and functions, in order, an empty line between two.

    Example:
        >>> docstrings("def f():\n    'One.'\ndef g():\n    'Two.'")
        'One.\n\nTwo.'
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file's invalid escapes are not ours to report
            tree = ast.parse(program)
    except (SyntaxError, ValueError):
        return ""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return "\n\n".join(text for text in found if text)


def _programs(package: str, split: Split) -> Iterator[str]:
    root = _root(package)
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED & set(relative.parts[:-1]) or path.stat().st_size > _LARGEST_FILE_BYTES:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if split_of(text) == split and sum(character.isalpha() for character in text) >= _FEWEST_LETTERS * len(text) > 0:
            yield text


def _root(package: str) -> Path:
    if package == "python":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed: pip install {package}")
    return Path(spec.submodule_search_locations[0])
