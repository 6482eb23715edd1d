"""The wing as a whole: what it may import, how long its files are, and that every public name shows its use."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import lorabook
from lorabook import adapters

FILES = sorted(Path(adapters.__file__).parent.glob("*.py"))
PUBLIC = [name for name in lorabook.__all__ if getattr(lorabook, name).__module__.startswith("lorabook.adapters")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_short_and_imports_of_ours_only_low_rank(file):
    text = file.read_text()
    assert len(text.splitlines()) < 300
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom | ast.Import)]
    names = [name for node in imports for name in ([node.module] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names])]
    ours = {name for name in names if name and name.startswith("lorabook")}
    assert all(name.startswith("lorabook.adapters.") or name == "lorabook.low_rank" for name in ours)
    assert {name.partition(".")[0] for name in names if name} - {"lorabook", "__future__"} <= {
        *(
            "torch",
            "safetensors",
            "collections",
            "contextlib",
            "copy",
            "dataclasses",
            "functools",
            "hashlib",
            "inspect",
            "json",
            "math",
            "numbers",
        ),
        *("os", "pathlib", "re", "typing", "warnings", "weakref"),
    }


def public_objects():
    """Functions and classes of the wing's modules whose names do not begin with an underscore."""
    for file in FILES:
        module = importlib.import_module(f"{adapters.__name__}.{file.stem}" if file.stem != "__init__" else adapters.__name__)
        for name, found in vars(module).items():
            if getattr(found, "__module__", None) == module.__name__ and not name.startswith("_") and callable(found):
                yield pytest.param(found, id=f"{file.stem}.{name}")


@pytest.mark.parametrize("found", list(public_objects()))
def test_every_public_function_and_class_of_the_wing_has_an_example_that_runs(found):
    examples = doctest.DocTestParser().get_examples(found.__doc__ or "")
    assert examples, "no example"


def test_the_promised_names_are_public():
    promised = "LoRALinear LoRAConfig add_lora merge_lora unmerge_lora remove_lora adapter_disabled use_adapter mixed_batch"
    assert {*promised.split(), "save_adapter", "load_adapter", "lora_parameters", "AdapterError"} <= set(PUBLIC)
