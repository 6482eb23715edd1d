"""Every notebook of the built book runs from top to bottom where there is only what a reader has, with the network cut.

A reader has the published wheel, unpacked, the package's runtime dependencies, altair, ipykernel, and the book's files. The environment is
a new one; of the packages installed here it sees exactly those, by links to their files.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from tests.book.conftest import ROOT, SITE
from tests.book.run_notebook import TIMEOUT_SECONDS
from tests.book.test_execution import EXECUTED

sys.path.insert(0, str(ROOT / "_ext"))

from cut_network import OFFLINE
from notebooks import ARCHIVE, wheel_of

NOTEBOOKS = sorted((SITE / "notebooks").glob("*.ipynb"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIMEOUT_SECONDS + 60)]


def allowed():
    """Distributions that a notebook may use: what the package's runtime dependencies, altair and ipykernel need, however indirectly."""
    own = [Requirement(one) for one in importlib.metadata.requires("lorabook")]
    waiting = [one.name for one in own if one.marker is None] + ["altair", "ipykernel"]
    found = {}
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        needs = map(Requirement, found[name].requires or [])
        waiting += [one.name for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def link(distributions, folder):
    """Links to the distributions' files, and to no other file."""
    tops = {}
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or []:
            tops.setdefault(file.parts[0], set()).add(distribution.name)
    names = {distribution.name for distribution in distributions}
    for distribution in distributions:
        for file in distribution.files:
            top = file.parts[0]
            if top in ("..", "__pycache__"):
                continue
            shared = not tops[top] <= names  # a folder that also holds what is not allowed is linked file by file
            target = folder.joinpath(*(file.parts if shared else [top]))
            target.parent.mkdir(parents=True, exist_ok=True)
            source = Path(distribution.locate_file(file if shared else top))
            if not target.is_symlink() and source.exists():
                target.symlink_to(source)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """The environment's interpreter, its variables, and the folder in which notebooks lie."""
    root = tmp_path_factory.mktemp("fresh")
    venv.create(root / "venv")
    link(allowed().values(), root / "packages")
    zipfile.ZipFile(SITE / "wheels" / wheel_of(ROOT)).extractall(root / "lorabook")
    zipfile.ZipFile(SITE / "notebooks" / ARCHIVE).extractall(root / "book")
    variables = {
        "PYTHONPATH": os.pathsep.join(map(str, [OFFLINE, root / "lorabook", root / "packages"])),
        "IPYTHONDIR": str(root / "ipython"),
        "TQDM_DISABLE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    python = root / "venv" / "bin" / "python"
    kernel = {"argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "Fresh", "language": "python"}
    (root / "kernels" / "fresh").mkdir(parents=True)
    (root / "kernels" / "fresh" / "kernel.json").write_text(json.dumps(kernel | {"env": variables}))
    return python, variables, root


def test_the_environment_holds_what_is_allowed_and_nothing_else(fresh):
    python, variables, root = fresh
    script = (
        "import importlib.metadata, importlib.util, json, socket, lorabook\n"
        "import torch, numpy, matplotlib, safetensors, tqdm, altair, ipykernel\n"
        "names = sorted({one.name.lower().replace('_', '-') for one in importlib.metadata.distributions()})\n"
        "stray = [name for name in ('myst_nb', 'sphinx', 'pytest', 'transformers', 'peft') if importlib.util.find_spec(name)]\n"
        "try:\n    socket.create_connection(('192.0.2.1', 80), timeout=1)\nexcept OSError as error:\n    cut = str(error)\n"
        "print(json.dumps([names, stray, lorabook.__file__, cut]))\n"
    )
    environment = os.environ | variables
    result = subprocess.run([python, "-c", script], env=environment, cwd=root, capture_output=True, text=True, check=True)
    names, stray, file, cut = json.loads(result.stdout)
    assert set(names) == set(allowed()) | {"lorabook"}
    assert stray == []
    assert Path(file).is_relative_to(root)
    assert "the network is cut" in cut


def test_there_is_a_notebook_for_every_executed_chapter():
    listed = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    expected = {path.stem for path in EXECUTED if f"chapters/{path.stem}\n" in listed} - {"index"}
    assert {path.stem for path in NOTEBOOKS} == expected


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, fresh):
    root = fresh[2]
    command = [sys.executable, "-m", "tests.book.run_notebook", path, root / "book" / "chapters", root / "kernels"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    assert result.returncode == 0, result.stderr[-4000:]
    ran = json.loads(result.stdout)
    assert ran == list(range(1, len(ran) + 1))


def test_a_notebook_that_fails_is_heard_of(tmp_path, fresh):
    root = fresh[2]
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import myst_nb")])
    nbformat.write(broken, tmp_path / "broken.ipynb")
    command = [sys.executable, "-m", "tests.book.run_notebook", tmp_path / "broken.ipynb", tmp_path, root / "kernels"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "No module named 'myst_nb'" in result.stderr
