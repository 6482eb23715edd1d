"""Sphinx extension: take sphinx-thebe out again, which Jupyter Book always loads.

Even when it is off it puts another host's address and a JavaScript error on every page.
"""

from __future__ import annotations

from typing import Any


def disconnect(app: Any, config: Any) -> None:
    for listeners in app.events.listeners.values():
        listeners[:] = [listener for listener in listeners if listener.handler.__module__.partition(".")[0] != "sphinx_thebe"]


def drop_stylesheet(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Its static folder is gone, and with it the stylesheet that every page would still ask for."""
    context["css_files"][:] = [css for css in context["css_files"] if "sphinx-thebe" not in str(getattr(css, "filename", css))]


def setup(app: Any) -> dict[str, Any]:
    app.connect("config-inited", disconnect, priority=0)
    app.connect("html-page-context", drop_stylesheet)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
