"""Sphinx extension: chapters and the API reference point to each other.

In a docstring, "Chapter: Rank." becomes a link to the chapter of that title. In a chapter, the first time that a public name of the
package stands in code letters, it becomes a link to its entry in the reference.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes

_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
_CHAPTER = re.compile(r"^(\s*)Chapter: (.+?)\.?$")


@cache
def chapters(folder: Path) -> dict[str, str]:
    """The document of each title; code letters in a title do not count."""
    found = {}
    for path in sorted(folder.glob("*.md")):
        title = _TITLE.search(path.read_text(encoding="utf-8").partition("\n---\n")[2] or path.read_text(encoding="utf-8"))
        if title:
            found[re.sub(r"[`$\\]", "", title[1])] = path.stem
    return found


def link_chapters(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """In a docstring: the chapter's title as a link; a chapter that is not in the book stays text."""
    known = chapters(Path(app.srcdir) / "chapters")
    for index, line in enumerate(lines):
        match = _CHAPTER.match(line)
        if match and match[2] in known:
            lines[index] = f"{match[1]}Chapter: :doc:`{match[2]} </chapters/{known[match[2]]}>`."


def public_names(objects: dict[str, Any]) -> dict[str, str]:
    """Full names of the reference by what a chapter would write: the last part where it is unique, and the full name."""
    found: dict[str, str] = {}
    ambiguous = set()
    for full, entry in objects.items():
        short = full.rpartition(".")[2]
        if entry.objtype in {"module", "attribute", "property", "method", "data"}:
            found[full] = full
            continue
        if short in found and found[short] != full:
            ambiguous.add(short)
        found[short] = found[full] = full
    return {name: full for name, full in found.items() if name not in ambiguous}


def link_names(app: Any, doctree: nodes.document, docname: str) -> None:
    """In a chapter: the first mention of a public name as a link."""
    if docname.startswith("chapters/api") or app.builder.format != "html":
        return
    domain = app.env.get_domain("py")
    names = public_names(domain.objects)
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removesuffix("()")
        unlinked = not any(isinstance(above, (nodes.reference, nodes.title)) for above in _above(literal))
        if name in names and unlinked:
            full = names.pop(name)
            entry = domain.objects[full]
            address = app.builder.get_relative_uri(docname, entry.docname) + "#" + entry.node_id
            link = nodes.reference("", "", internal=True, refuri=address, reftitle=full, classes=["api-link"])
            literal.replace_self(link)
            link += literal


def _above(node: nodes.Node) -> Any:
    while node.parent is not None:
        node = node.parent
        yield node


def setup(app: Any) -> dict[str, Any]:
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("autodoc-process-docstring", link_chapters, priority=100)
    app.connect("doctree-resolved", link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
