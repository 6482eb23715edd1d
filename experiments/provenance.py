"""Where a result comes from, written beside it, and what every result file must hold. It knows no experiment."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "assets" / "results"
WEIGHTS = ROOT / "assets" / "weights"

_PROVENANCE: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("command", "commit", "device", "python", "torch", "date"), str),
    "seconds": (int, float),
}
_SESSION = {key: kind for key, kind in _PROVENANCE.items() if key != "seconds"} | {"uncommitted_changes": bool}
_SWEEP: dict[str, type | tuple[type, ...]] = {
    "sessions": list,
    "runs": list,
    "settings": dict,
    "complete": bool,
    "settings_sha256": str,
    "backbone_sha256": str,
}
_SHARES = ("validation", "test", "unseen", "share")  # between 0 and 1, or a dict of such


class ResultError(ValueError):
    """A result file does not hold what it must; the message says where and what."""


def write_result(path: Path, result: Mapping[str, object], *, start: float, packages: tuple[str, ...] = ()) -> None:
    """Write a result as JSON with the command, commit, device, versions and time that it took.

    Args:
        path: of the file; its folder is made if need be.
        result: what JSON can hold.
        start: of the experiment, by ``time.perf_counter()``.
        packages: whose versions matter, beside those of Python and PyTorch.

    Raises:
        ResultError: the result is not what a result file must be; nothing is written.
    """
    provenance = {**environment(packages), "seconds": round(time.perf_counter() - start)}
    write_json(path, {"provenance": provenance, **result})


def environment(packages: Iterable[str] = (), *, device: str | None = None) -> dict[str, Any]:
    """What runs where: the command, commit, device, versions and date.

    Args:
        packages: whose versions matter.
        device: in words; this process's when None.
    """
    return {
        "command": shlex.join(["python", _script(), *sys.argv[1:]]),
        "commit": _COMMIT,
        "device": device or device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: version(package) for package in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def session(*, device: str | None = None) -> dict[str, Any]:
    """As :func:`environment`, and whether the code was as committed: a sweep of several sessions stores one for each."""
    changed = _git("status", "--porcelain", "--", "src", "experiments", "assets/weights")
    return {**environment(("numpy",), device=device), "uncommitted_changes": bool(changed)}


def device_name() -> str:
    """The device of this process in words: the GPU's name, or the number of threads on the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings_sha256(settings: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Check a result and write it atomically: whoever reads the file finds the old one or the new one, whole.

    Raises:
        ResultError: the result is not what a result file must be; nothing is written.
    """
    check_result(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(_one_line_lists(json.dumps(data, indent=1, allow_nan=False)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_result(data: Mapping[str, Any]) -> None:
    """Hold a result file's content to what all share.

    Every result has a provenance: a command that names a script of experiments/, a commit, the device, the versions, the date and the
    seconds. All numbers are finite. A list of runs holds each run once. A sweep's result also has its settings, the checksum of the
    backbone, and sessions; each run names its session.

    Raises:
        ResultError: with the place and what is wrong there.
    """
    provenance = data.get("provenance")
    if not isinstance(provenance, Mapping):
        raise ResultError("a result needs a 'provenance' with the command, commit, device, versions, seconds and date")
    _check_fields("provenance", provenance, _PROVENANCE)
    _check_origin("provenance", provenance)
    if provenance["seconds"] < 0:
        raise ResultError(f"provenance.seconds must be at least 0, got {provenance['seconds']}")
    if len(data) < 2:
        raise ResultError("the result holds nothing beside its provenance")
    _check_finite("result", data)
    runs = data.get("runs")
    if runs is not None:
        _check_runs(runs)
    if "sessions" in data:
        _check_sweep(data)


def script_of(command: str) -> str:
    """The script that a command runs, such as ``experiments/methods.py``.

    Raises:
        ResultError: the command runs none of experiments/.
    """
    found = re.match(r"python (experiments/\w+\.py)( |$)", command)
    if not found:
        raise ResultError(f"provenance.command must be 'python experiments/<script>.py ...', got {command!r}")
    return found[1]


def _check_fields(place: str, found: Mapping[str, Any], wanted: Mapping[str, type | tuple[type, ...]]) -> None:
    for key, kind in wanted.items():
        if key not in found:
            raise ResultError(f"{place}.{key} is missing; there are {', '.join(found)}")
        if not isinstance(found[key], kind) or (isinstance(found[key], bool) and kind is not bool):
            raise ResultError(f"{place}.{key} must be {_kind_name(kind)}, got {found[key]!r}")


def _check_origin(place: str, found: Mapping[str, Any]) -> None:
    if not re.fullmatch(r"[0-9a-f]{7,40}", found["commit"]):
        raise ResultError(f"{place}.commit must be an abbreviated commit, got {found['commit']!r}")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"]):
        raise ResultError(f"{place}.date must be like 2026-01-31, got {found['date']!r}")
    if place == "provenance":
        script_of(found["command"])


def _check_finite(place: str, value: object) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ResultError(f"{place} must be a finite number, got {value}")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_finite(f"{place}.{key}", inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(value):
            _check_finite(f"{place}[{index}]", inner)


def _check_runs(runs: object) -> None:
    if not isinstance(runs, Sequence) or not runs or not all(isinstance(run, Mapping) for run in runs):
        raise ResultError("runs must be a list of objects, at least one")
    keys = [json.dumps({key: value for key, value in run.items() if key not in ("seconds", "session")}, sort_keys=True) for run in runs]
    for index, (run, key) in enumerate(zip(runs, keys, strict=True)):
        place = f"runs[{index}]"
        _check_fields(place, run, {"seconds": (int, float)})
        for name in _SHARES:
            scores = run.get(name)
            for score in scores.values() if isinstance(scores, Mapping) else (scores,):
                if score is not None and not 0 <= score <= 1:
                    raise ResultError(f"{place}.{name} must lie between 0 and 1, got {score}")
        if key in keys[:index]:
            raise ResultError(f"{place} stands twice: {key}")


def _check_sweep(data: Mapping[str, Any]) -> None:
    _check_fields("result", data, _SWEEP)
    for index, found in enumerate(data["sessions"]):
        _check_fields(f"sessions[{index}]", found, _SESSION)
        _check_origin(f"sessions[{index}]", found)
    if data["settings_sha256"] != settings_sha256(data["settings"]):
        raise ResultError(f"settings_sha256 must be the checksum of the settings, {settings_sha256(data['settings'])}")
    for index, run in enumerate(data["runs"]):
        _check_fields(f"runs[{index}]", run, {"session": int})
        if not 0 <= run["session"] < len(data["sessions"]):
            raise ResultError(f"runs[{index}].session must be one of the {len(data['sessions'])} sessions, got {run['session']}")


def _kind_name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))


def _one_line_lists(text: str) -> str:
    """Put every list of numbers or words on one line."""
    return re.sub(r"\[[^][{}]*\]", lambda found: re.sub(r"\s*\n\s*", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text)


def _script() -> str:
    """The running script, as one names it from the repository's root."""
    path = Path(sys.argv[0]).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()  # noqa: S603, S607


_COMMIT = _git("rev-parse", "--short", "HEAD")  # of the code that is running, whatever is committed while it does
