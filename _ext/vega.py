"""Sphinx extension: one copy of Vega for all pages with an explorer, which fetch it when the reader comes near."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import vl_convert

from lorabook.figures.vega import SITE

BUNDLE = "vega.js"


def write(app: Any, exception: Exception | None) -> None:
    """Put Vega, Vega-Lite and Vega-Embed beside the book's own script."""
    if exception is None and app.builder.name == "html":
        static = Path(app.outdir) / "_static"
        static.mkdir(parents=True, exist_ok=True)
        bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the stub demands what has a default
        (static / BUNDLE).write_text(bundle, encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    os.environ[SITE] = "1"
    app.connect("build-finished", write, priority=950)  # after what no page asks for has gone
    return {"parallel_read_safe": True, "parallel_write_safe": True}
