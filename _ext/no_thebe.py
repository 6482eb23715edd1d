"""Sphinx extension: take sphinx-thebe out again, which Jupyter Book always loads.

Even when it is off it puts another host's address and a JavaScript error on every page.
"""

from __future__ import annotations

from typing import Any


def disconnect(app: Any, config: Any) -> None:
    for listeners in app.events.listeners.values():
        listeners[:] = [listener for listener in listeners if listener.handler.__module__.partition(".")[0] != "sphinx_thebe"]


def setup(app: Any) -> dict[str, Any]:
    app.connect("config-inited", disconnect, priority=0)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
