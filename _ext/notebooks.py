"""Sphinx extension: every executed page as a notebook that runs anywhere, and a row of links under its title.

``notebooks/NAME.ipynb`` holds the page with everything resolved to text and no outputs, ``NAME.py`` the same in percent format,
``NAME.md`` the source. Beside them lies ``book-files.zip`` with the files that cells read by relative paths. One setting,
``book_repository``, gives the address of the book's repository; the environment variable ``BOOK_REPOSITORY`` sets it for one build.
From it follow the links to Colab and to the source, and the site's own address (``html_baseurl``, unless that is set too), from which
a notebook in Colab takes the package's wheel and the book's files. Without it the book makes no link to another host, and a notebook
says what to install.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import tomllib
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import jupytext
import nbformat
from docutils import nodes
from markdown_writer import Cell, NotebookWriter
from myst_nb.core.read import is_myst_markdown_notebook, read_myst_markdown_notebook
from sphinx.errors import ExtensionError
from sphinx.util import logging

FOLDER = "notebooks"
ARCHIVE = "book-files.zip"
BRANCH = "notebooks"  # of the repository: Colab opens no other address than a repository's
# The backbone's weights come with the wheel; its card and tokenizer are read by path as well.
FILES = ("assets/results/**/*", "assets/adapters/**/*", "assets/weights/*.json", "experiments/*.py", "chapters/*.md")
_READS_FILES = re.compile(r"""["']\.\.?/|Path\(["']\.""")
_GITHUB = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+?)/?")

logger = logging.getLogger(__name__)

_PLAIN = """\
# Setup: does nothing where the package lorabook is installed{and_files}.
from importlib.util import find_spec
{imports}
if find_spec("lorabook") is None:
    raise ModuleNotFoundError(
        "this notebook runs the package lorabook: in a copy of the book's repository, "
        "run `pip install --no-deps .`, or open the chapter with `make lab`"
    )
"""
_PLAIN_FILES = """\
if not Path("../assets").is_dir():
    raise FileNotFoundError(
        "this notebook reads the book's files: open it in the folder chapters/ of the "
        "book's repository, or of the unpacked {archive}"
    )
"""
_PUBLISHED = """\
# Setup: does nothing where the package lorabook is installed{and_files}.
# In Colab it installs the package and nothing else, so that Colab's own PyTorch stays.
{imports}
from importlib.util import find_spec
{pathlib}
SITE = "{site}"
COLAB = "google.colab" in sys.modules

if find_spec("lorabook") is None:
    wheel = f"{{SITE}}wheels/{wheel}"
    if not COLAB:
        raise ModuleNotFoundError(f"run `pip install {{wheel}}`, then this cell again")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True)
    importlib.invalidate_caches()
"""
_PUBLISHED_FILES = """\
if not Path("../assets").is_dir():
    archive = f"{{SITE}}{folder}/{archive}"
    if COLAB and not Path("book").is_dir():
        path, _ = urllib.request.urlretrieve(archive)
        zipfile.ZipFile(path).extractall("book")
    if not Path("book/assets").is_dir():
        raise FileNotFoundError(f"unpack {{archive}} into a folder `book` here")
    os.chdir("book/chapters")
"""


def site_of(repository: str, baseurl: str = "") -> str:
    """Where the book is published: as its configuration says, or on GitHub's pages of the repository; empty with no repository."""
    if not repository:
        return ""
    match = _GITHUB.fullmatch(repository)
    if match is None:
        raise ExtensionError(f"book_repository must be empty or https://github.com/OWNER/NAME, got {repository!r}")
    return baseurl.rstrip("/") + "/" if baseurl else f"https://{match[1].lower()}.github.io/{match[2]}/"


def settle_addresses(app: Any, config: Any) -> None:
    """The repository as the environment names it, or else the configuration; and the site's address, which follows from it."""
    config.book_repository = os.environ.get("BOOK_REPOSITORY") or config.book_repository
    config.html_baseurl = site_of(config.book_repository, config.html_baseurl) or config.html_baseurl


def setup_cell(site: str, wheel: str, reads_files: bool) -> str:
    """The first code cell of a notebook."""
    words = {"and_files": " and the book's files lie in ../assets" if reads_files else "", "archive": ARCHIVE, "folder": FOLDER}
    if not site:
        text = _PLAIN.format(imports="from pathlib import Path\n" if reads_files else "", **words)
        return (text + (_PLAIN_FILES.format(**words) if reads_files else "")).rstrip()
    modules = ["importlib", "subprocess", "sys"] + (["os", "urllib.request", "zipfile"] if reads_files else [])
    imports = "\n".join(f"import {name}" for name in sorted(modules))
    text = _PUBLISHED.format(imports=imports, site=site, wheel=wheel, pathlib="from pathlib import Path\n" if reads_files else "", **words)
    return (text + ("\n" + _PUBLISHED_FILES.format(**words) if reads_files else "")).rstrip()


def wheel_of(root: Path) -> str:
    """File name of the package's wheel, which the Makefile puts beside the pages."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return f"{project['name']}-{project['version']}-py3-none-any.whl"


def source_cells(path: Path) -> list[tuple[int, int, str, tuple[str, ...]]]:
    """The code cells of a page in order: position, first line, source and tags; none for a page that is not executed."""
    text = path.read_text(encoding="utf-8") if path.suffix == ".md" else ""
    if not is_myst_markdown_notebook(text):
        return []
    book = read_myst_markdown_notebook(text, add_source_map=True, path=path)
    cells = enumerate(zip(book.cells, book.metadata["source_map"], strict=True))
    return [(index, line, cell.source, tuple(cell.metadata.get("tags", []))) for index, (cell, line) in cells if cell.cell_type == "code"]


def name_of(docname: str) -> str:
    return docname.rpartition("/")[2]


def script_of(name: str) -> str:
    """File name of a page's script: never one that Python would import, as a numbers.py in place of its own."""
    return f"{name}-page.py" if name.isidentifier() else f"{name}.py"


def as_notebook(cells: list[Cell], title: str, setup: str) -> Any:
    """The notebook of a page: its title, the setup, then its cells."""
    first = Cell("markdown", title)
    made = []
    for index, cell in enumerate([first, Cell("code", setup), *cells]):
        if cell.kind == "markdown":
            made.append(nbformat.v4.new_markdown_cell(cell.source, id=f"cell-{index}"))
            continue
        metadata: dict[str, Any] = {}
        source = cell.source
        if cell.folded:
            metadata["jupyter"] = {"source_hidden": True}  # folds the cell in JupyterLab,
        if cell.title:
            metadata["cellView"] = "form"  # and this in Colab, which shows the title in place of the code
            source = f"# @title {_plain(cell.title)}\n{source}"
        made.append(nbformat.v4.new_code_cell(source, id=f"cell-{index}", metadata=metadata))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def _plain(summary: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", summary))


def works_cited(app: Any, docname: str) -> list[Cell]:
    """What the page cites, in full, since a notebook has no bibliography to link to."""
    if "cite" not in app.env.domains:
        return []
    domain = app.env.get_domain("cite")
    keys = {target.key for reference in domain.citation_refs if reference.docname == docname for target in reference.targets}
    writer = NotebookWriter([], {}, lambda target: None, lambda node: None)
    lines = {}
    for citation in domain.citations:
        if citation.key in keys:
            entry = citation.formatted_entry.text.render(domain.backend)
            lines[citation.key] = "- " + "".join(writer.inline_node(node) for node in entry)
    ordered = sorted(lines.values(), key=str.casefold)
    return [Cell("markdown", "## Works cited\n\n" + "\n".join(ordered))] if ordered else []


def notebook_of(app: Any, doctree: nodes.document, docname: str, code: list[tuple[int, int, str, tuple[str, ...]]]) -> Any:
    """The notebook of one resolved page."""
    site = app.config.html_baseurl if app.config.book_repository else ""
    here = app.builder.get_target_uri(docname)

    def address(target: str) -> str | None:
        return urljoin(site + here, target) if site else None

    def unknown(node: nodes.Node) -> None:
        logger.warning("a notebook has no form for a %s: add one to _ext/markdown_writer.py", type(node).__name__, location=node)

    numbers = app.env.toc_fignumbers.get(docname, {})
    cells = NotebookWriter(list(code), numbers, address, unknown).write(doctree)
    # The title stands above the setup cell, the first section's text below it.
    title, _, rest = cells[0].source.partition("\n\n")
    cells[:1] = [Cell("markdown", rest)] if rest else []
    page = f"[A chapter]({site}{here})" if site else "A chapter"
    title += f"\n\n{page} of *{app.config.html_title}*, as a notebook. Run the next cell first."
    first = setup_cell(site, wheel_of(Path(app.confdir)) if site else "", any(_READS_FILES.search(source) for _, _, source, _ in code))
    return as_notebook([*cells, *works_cited(app, docname)], title, first)


def links(app: Any, docname: str, suffix: str = ".md") -> str:
    """The row of links under a title, which needs no script."""
    name = name_of(docname)
    base = "../" * docname.count("/") + FOLDER
    repository = app.config.book_repository.rstrip("/")
    colab = f"https://colab.research.google.com/github{urlsplit(repository).path}/blob/{BRANCH}/{name}.ipynb"
    found = [f'<a href="{colab}">Run in Colab</a>'] if repository else []
    found.append(f'<a href="{base}/{name}.ipynb" download>Download .ipynb</a>')
    for file, ending, what in ((script_of(name), ".py", "Python script"), (name + suffix, suffix, "MyST source")):
        found.append(f'<a href="{base}/{file}" download aria-label="{ending}: download the {what}">{ending}</a>')
    if repository:
        found.append(f'<a href="{html.escape(repository)}/blob/main/{docname}{suffix}">Source</a>')
    items = "".join(f"<li>{one}</li>" for one in found)
    return f'<nav class="run-links" aria-label="Run or download this chapter"><ul>{items}</ul></nav>'


def write(app: Any, doctree: nodes.document, docname: str) -> None:
    """Write a page's notebook, and put the links under its title."""
    if app.builder.name != "html" or docname == app.config.root_doc:
        return
    path = Path(app.env.doc2path(docname))
    code = source_cells(path)
    if not code:
        return
    folder = Path(app.outdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    notebook = notebook_of(app, doctree, docname, code)
    nbformat.validate(notebook)
    name = name_of(docname)
    (folder / f"{name}.ipynb").write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    (folder / script_of(name)).write_text(jupytext.writes(notebook, fmt="py:percent"), encoding="utf-8")
    shutil.copyfile(path, folder / path.name)
    title = next(doctree.findall(nodes.title))
    title.parent.insert(title.parent.index(title) + 1, nodes.raw("", links(app, docname), format="html"))


def finish(app: Any, exception: Exception | None) -> None:
    """Pack the files that cells read, and take away the notebooks of pages that are gone."""
    folder = Path(app.outdir) / FOLDER
    if exception is not None or not folder.is_dir():
        return
    names = {name_of(docname) for docname in app.env.found_docs}
    kept = {ARCHIVE, *(file for name in names for file in (f"{name}.ipynb", f"{name}.md", script_of(name)))}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    root = Path(app.confdir)
    files = sorted({path for pattern in FILES for path in root.glob(pattern) if path.is_file()})
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            entry = zipfile.ZipInfo(path.relative_to(root).as_posix())  # with no date: the same files make the same archive
            archive.writestr(entry, path.read_bytes(), compress_type=zipfile.ZIP_DEFLATED)


def setup(app: Any) -> dict[str, Any]:
    app.add_config_value("book_repository", "", "html", [str])
    app.connect("config-inited", settle_addresses, priority=50)  # before what reads html_baseurl
    app.connect("doctree-resolved", write, priority=900)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
