"""Sphinx extension: chapters are executed with the network cut, so that a page which needs it does not build.

Python imports the module ``sitecustomize`` when it starts; the one in ``_ext/offline`` refuses every connection but those to this
machine itself, through which a notebook and its kernel talk.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

OFFLINE = Path(__file__).parent / "offline"


def offline_environment(environment: dict[str, str]) -> dict[str, str]:
    """The environment of processes whose network is cut."""
    paths = [str(OFFLINE), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def setup(app: Any) -> dict[str, Any]:
    os.environ.update(offline_environment(dict(os.environ)))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
