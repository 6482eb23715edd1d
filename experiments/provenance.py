"""Where a result comes from, written beside it. It knows no experiment."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch


def write_result(path: Path, result: Mapping[str, object], *, start: float, packages: tuple[str, ...] = ()) -> None:
    """Write a result as JSON with the command, commit, device, versions and time that it took.

    Args:
        path: of the file; its folder is made if need be.
        result: what JSON can hold.
        start: of the experiment, by ``time.perf_counter()``.
        packages: whose versions matter, beside those of Python and PyTorch.
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()  # noqa: S607
    provenance = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit,
        "device": f"cpu, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: version(package) for package in packages},
        "seconds": round(time.perf_counter() - start),
        "date": time.strftime("%Y-%m-%d"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"provenance": provenance, **result}, indent=2) + "\n", encoding="utf-8")
