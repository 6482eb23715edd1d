"""Makes a release: `make release VERSION=X.Y.Z` writes the version and the date, commits and tags; with PUSH=1 it pushes both.

The tag, once pushed, starts .github/workflows/release.yml, which tests, builds and publishes what it names.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

_NUMBER = re.compile(r"v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


def git(*arguments: str) -> str:
    """Run git; what it prints."""
    return subprocess.run(["git", *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()  # noqa: S603, S607


def number(version: str) -> tuple[int, ...]:
    """The three numbers of a version or of its tag; none where it is neither."""
    match = _NUMBER.fullmatch(version)
    return tuple(map(int, match.groups())) if match else ()


def check(version: str) -> None:
    """Stop with a sentence where the version or the state of the repository does not allow a release."""
    if not number(version) or version.startswith("v"):
        sys.exit(f"VERSION must be three numbers, got {version!r}: make release VERSION=X.Y.Z")
    if git("branch", "--show-current") != "main":
        sys.exit("a release is made on main, and this is another branch: git switch main")
    if git("status", "--porcelain"):
        sys.exit("a release is made of what is committed, and there are changes: git status lists them")
    above = [tag for tag in git("tag").split() if number(tag) >= number(version)]
    if above:
        sys.exit(f"VERSION must be above every release, got {version}, and there is {above[-1]}")


def write(version: str) -> list[str]:
    """Write the version and today's date where they stand; the files."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    lines = [
        ("pyproject.toml", "version = ", f'"{version}"'),
        ("src/lorabook/__init__.py", "__version__ = ", f'"{version}"'),
        ("CITATION.cff", "version: ", version),
        ("CITATION.cff", "date-released: ", today),
    ]
    texts = {file: Path(file).read_text(encoding="utf-8") for file, _, _ in lines}
    for file, start, value in lines:
        texts[file], count = re.subn(rf"(?m)^{start}.*$", start + value, texts[file])
        if count != 1:
            sys.exit(f"{file} must have one line that begins with {start!r}, and has {count}")
    for file, text in texts.items():
        Path(file).write_text(text, encoding="utf-8")
    return list(texts)


def main(version: str, push: bool) -> None:
    """Release, or stop before anything is changed."""
    check(version)
    files = write(version)
    tag = f"v{version}"
    git("commit", "--allow-empty", "--message", f"Release {version}", "--", *files)
    git("tag", "--annotate", tag, "--message", f"Release {version}")
    command = ["push", "--atomic", "origin", "main", tag]
    if push:
        git(*command)
    else:
        print(f"{tag} is committed and tagged here. To publish it: git {' '.join(command)}")  # noqa: T201


if __name__ == "__main__":
    try:
        main(sys.argv[1], push="--push" in sys.argv[2:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd)} failed: the lines above say why")
