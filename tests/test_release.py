"""`make release` on a repository made for it: what it writes, tags and pushes, and what it refuses."""

import datetime
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import lorabook

ROOT = Path(__file__).parents[1]
FILES = ["Makefile", "pyproject.toml", "CITATION.cff", "src/lorabook/__init__.py", ".ci/release.py"]
IDENTITY = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org"}
SCRIPT = [sys.executable, ".ci/release.py"]  # what `make release` runs
PLAIN = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}


def git(folder, *arguments):
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=PLAIN | IDENTITY).stdout.strip()


def release(folder, *command):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=PLAIN | IDENTITY)


@pytest.fixture
def repository(tmp_path):
    """The files of this repository that a release touches, committed on main, with somewhere to push to."""
    folder = tmp_path / "book"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for name in ("chapters", "assets", "_ext", "_static"):
        (folder / name).mkdir()
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch", "main", "origin.git")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "A book")
    git(folder, "remote", "add", "origin", str(tmp_path / "origin.git"))
    return folder


def test_a_release_writes_the_version_and_the_date_commits_and_tags(repository):
    result = release(repository, "make", "release", "VERSION=12.3.4")
    assert result.returncode == 0, result.stderr
    assert "git push --atomic origin main v12.3.4" in result.stdout
    assert tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"] == "12.3.4"
    assert '\n__version__ = "12.3.4"\n' in (repository / "src/lorabook/__init__.py").read_text()
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert citation["version"] == "12.3.4"
    assert datetime.datetime.now(tz=datetime.UTC).date() - citation["date-released"] <= datetime.timedelta(days=1)
    assert citation["cff-version"] == "1.2.0"
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "log", "-1", "--format=%s %D") == "Release 12.3.4 HEAD -> main, tag: v12.3.4"
    assert git(repository, "ls-remote", "origin") == ""
    changed = git(repository, "diff", "--numstat", "HEAD~").splitlines()
    assert sorted(changed) == ["1\t1\tpyproject.toml", "1\t1\tsrc/lorabook/__init__.py", "2\t2\tCITATION.cff"]


def test_a_release_pushes_main_and_tag_where_it_is_told_to(repository):
    result = release(repository, "make", "release", "VERSION=12.3.4", "PUSH=1")
    assert result.returncode == 0, result.stderr
    pushed = git(repository, "ls-remote", "origin", "refs/heads/main", "refs/tags/v12.3.4^{}").split()
    assert pushed == [git(repository, "rev-parse", "HEAD"), "refs/heads/main", git(repository, "rev-parse", "HEAD"), "refs/tags/v12.3.4^{}"]


def test_a_push_that_fails_is_heard_of(repository):
    git(repository, "remote", "set-url", "origin", str(repository / "nowhere"))
    result = release(repository, "make", "release", "VERSION=12.3.4", "PUSH=1")
    assert result.returncode != 0
    assert "git push --atomic origin main v12.3.4 failed" in result.stderr


@pytest.mark.parametrize("version", ["", "1.2", "v1.2.3", "1.2.3.4", "01.2.3", "1.2.3rc1"])
def test_a_version_is_three_numbers(version, repository):
    refused(repository, version, "VERSION must be three numbers")


@pytest.mark.parametrize("version", ["0.9.1", "0.10.0", "0.2.30"])
def test_a_version_is_above_every_release(version, repository):
    for tag in ("v0.9.1", "v0.10.0", "another"):
        git(repository, "tag", tag)
    refused(repository, version, "VERSION must be above every release")
    assert release(repository, *SCRIPT, "0.10.1").returncode == 0


def test_a_release_is_made_on_main(repository):
    git(repository, "switch", "--quiet", "--create", "work")
    refused(repository, "12.3.4", "a release is made on main")


@pytest.mark.parametrize("name", ["CITATION.cff", "new.txt"])
def test_a_release_is_made_of_what_is_committed(name, repository):
    with (repository / name).open("a") as file:
        file.write("\n")
    refused(repository, "12.3.4", "there are changes")


def test_a_file_that_names_no_version_stops_the_release_before_anything_is_written(repository):
    path = repository / "CITATION.cff"
    path.write_text(path.read_text().replace("\nversion:", "\nedition:"))
    git(repository, "commit", "--quiet", "--all", "--message", "No version")
    refused(repository, "12.3.4", "CITATION.cff must have one line that begins with 'version: '")


def refused(repository, version, reason):
    before = git(repository, "status", "--porcelain"), git(repository, "rev-parse", "HEAD"), git(repository, "tag")
    result = release(repository, *SCRIPT, version)
    assert result.returncode != 0
    assert reason in result.stderr
    assert (git(repository, "status", "--porcelain"), git(repository, "rev-parse", "HEAD"), git(repository, "tag")) == before


def test_the_version_is_one_in_all_three_places():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert lorabook.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
