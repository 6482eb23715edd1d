"""The package as a whole: what importing it costs, and that every public name explains itself."""

import ast
import inspect
import json
import subprocess
import sys
import textwrap

import pytest

import lorabook

PUBLIC = [getattr(lorabook, name) for name in lorabook.__all__]
# Importing torch loads a good part of the standard library, so what counts is what comes on top.
MEASURE = """
import json, random, sys, time
start = time.process_time()
import torch
middle, before = time.process_time(), set(sys.modules)
states = random.getstate(), torch.get_rng_state().tolist()
again = time.process_time()
import lorabook
end = time.process_time()
print(json.dumps({
    "torch": middle - start,
    "lorabook": end - again,
    "added": sorted({name.partition(".")[0] for name in set(sys.modules) - before}),
    "loaded": sorted(sys.modules),
    "drew": states != (random.getstate(), torch.get_rng_state().tolist()),
}))
"""


@pytest.fixture(scope="module")
def imports():
    """Three fresh interpreters, one after the other."""
    command = [sys.executable, "-W", "error", "-c", MEASURE]
    runs = [subprocess.run(command, capture_output=True, check=True, text=True) for _ in range(3)]
    assert {run.stderr for run in runs} == {""}
    return [json.loads(run.stdout) for run in runs]


def test_importing_the_package_takes_at_most_a_tenth_of_importing_torch(imports):
    # Processor time, and of it the least, is what other work on the machine disturbs least.
    assert min(run["lorabook"] for run in imports) <= 0.1 * min(run["torch"] for run in imports)


@pytest.mark.parametrize(
    "heavy", ["matplotlib", "IPython", "sqlite3", "pandas", "scipy", "transformers", "altair", "safetensors", "ipywidgets"]
)
def test_importing_the_package_loads_nothing_heavy(imports, heavy):
    assert heavy not in imports[0]["loaded"]


def test_importing_the_package_adds_to_torch_only_itself_and_numpy(imports):
    third_party = set(imports[0]["added"]) - sys.stdlib_module_names
    assert third_party <= {"lorabook", "numpy"}


def test_importing_the_package_draws_no_random_number(imports):
    assert not any(run["drew"] for run in imports)


def test_public_names_are_sorted_and_distinct():
    assert lorabook.__all__ == sorted(set(lorabook.__all__))


@pytest.mark.parametrize("public", PUBLIC, ids=lorabook.__all__)
def test_every_public_name_explains_itself(public):
    documentation = inspect.getdoc(public) or ""
    assert len(documentation.splitlines()[0]) > 20
    assert ">>> " in documentation
    source = ast.parse(textwrap.dedent(inspect.getsource(public)))
    if any(isinstance(node, ast.Raise) for node in ast.walk(source)):
        assert "Raises:" in documentation
    if not (inspect.isclass(public) and issubclass(public, Exception)) and len(inspect.signature(public).parameters) > 1:
        assert "Args:" in documentation
        for name in inspect.signature(public).parameters:
            assert f"{name}:" in documentation


@pytest.mark.parametrize("public", PUBLIC, ids=lorabook.__all__)
def test_every_public_signature_is_typed(public):
    if inspect.isfunction(public):
        annotations = {parameter.annotation for parameter in inspect.signature(public).parameters.values()}
        assert inspect.Signature.empty not in annotations | {inspect.signature(public).return_annotation}
