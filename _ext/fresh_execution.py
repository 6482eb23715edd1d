"""Sphinx extension: a chapter is executed again when the code that it runs has changed, not only when its own text has.

The execution cache of Jupyter Book keys a chapter on its cells alone. Here each chapter gets a fingerprint of everything else that
it runs: the modules of the package that it imports, directly or through others, the files that it may read, and the lock file.
When the fingerprint changes, the cached outputs are dropped and the page counts as outdated.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jupyter_cache import get_cache

PACKAGE = "lorabook"
_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def modules_of(source: Path) -> dict[str, Path]:
    """Dotted name and file of every module of the package under ``source``."""
    found = {}
    for path in sorted((source / PACKAGE).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(code: str, modules: Iterable[str]) -> Iterator[str]:
    """Modules of the package that a piece of Python imports, the packages that hold them included."""
    known = set(modules)
    for node in ast.walk(ast.parse(code)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (prefix for end in range(1, len(parts) + 1) if (prefix := ".".join(parts[:end])) in known)


def dependencies(code: str, modules: dict[str, Path]) -> list[Path]:
    """Files of the package that run when the code runs, however indirectly it imports them, and the scripts that a module names."""
    waiting, seen, scripts = list(imported(code, modules)), set(), set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            text = modules[name].read_text(encoding="utf-8")
            waiting += imported(text, modules)
            scripts |= {script for script in modules[name].parent.glob("*.js") if f'"{script.name}"' in text}
    return [*(modules[name] for name in sorted(seen)), *sorted(scripts)]


def fingerprint(chapter: Path, root: Path) -> str:
    """One hash of what a chapter runs and reads, its own text aside."""
    text = chapter.read_text(encoding="utf-8")
    # Lines that are magics or cell options are not Python.
    cells = [re.sub(r"^\s*[:%!].*$", "", cell, flags=re.MULTILINE) for cell in _CELL.findall(text)]
    if not cells:
        return ""
    files = dependencies("\n".join(cells), modules_of(root / "src"))
    # A page that names no folder of assets and loads no backbone cannot depend on what is in it.
    reads = {folder: f"assets/{folder}" in text for folder in ("results", "adapters")}
    reads["weights"] = "assets/weights" in text or any(file.stem == "backbone" for file in files)
    folders = [root / "assets" / folder for folder, needed in reads.items() if needed]
    files += sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in (*files, root / "requirements.lock"):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def outdated(app: Any, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Drop the cached outputs of chapters whose fingerprint changed, and have Sphinx read them again."""
    cache_path = Path(app.config.nb_execution_cache_path or Path(app.outdir).parent / ".jupyter_cache")
    cache_path.mkdir(parents=True, exist_ok=True)
    ledger = cache_path / "fingerprints.json"
    known: dict[str, str] = json.loads(ledger.read_text(encoding="utf-8")) if ledger.exists() else {}
    current = {name: fingerprint(path, Path(app.confdir)) for name in env.found_docs if (path := Path(env.doc2path(name))).suffix == ".md"}
    stale = [name for name, value in current.items() if known.get(name) != value]
    cache = get_cache(str(cache_path))
    for record in cache.list_cache_records():
        if any(Path(record.uri) == Path(env.doc2path(name)) for name in stale):
            cache.remove_cache(record.pk)
    ledger.write_text(json.dumps(current, indent=1), encoding="utf-8")
    return stale


def setup(app: Any) -> dict[str, Any]:
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
