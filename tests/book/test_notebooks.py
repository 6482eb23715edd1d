"""Chapters become notebooks in which everything is resolved: tried on a small book of its own, and on the built one."""

import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
import tokenize
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import jupytext
import nbformat
import pytest
from bs4 import BeautifulSoup

from tests.book.conftest import ROOT
from tests.book.test_fresh_execution import HEADER

sys.path.insert(0, str(ROOT / "_ext"))

from markdown_writer import code, escaped, fence, quoted
from notebooks import script_of, settle_addresses, setup_cell, site_of
from sphinx.errors import ExtensionError

ROLE = re.compile(r"\{[a-z]+(?::[a-z]+)?\}`")
DIRECTIVE = re.compile(r"^\s*(?::{3,}|`{3,})\{", re.MULTILINE)
CONFIGURATION = f"""
import sys
sys.path.insert(0, {str(ROOT / "_ext")!r})
project = html_title = "A small book"
root_doc = "chapters/index"
extensions = ["myst_nb", "sphinx_exercise", "sphinx_proof", "sphinx_design", "sphinxcontrib.bibtex", "quiz", "notebooks"]
exclude_patterns = ["_build"]
bibtex_bibfiles = ["works.bib"]
bibtex_reference_style = "author_year"
exercise_style = "solution_follow_exercise"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
nb_execution_mode = "cache"
nb_execution_cache_path = "_build/cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
numfig = True
"""
CHAPTER = (
    HEADER
    + r"""
# Ranks of $W$

Read {cite:t}`hu2022lora`, and {cite:p}`hu2022lora`; the [next chapter](second.md) too,
and [elsewhere](https://example.org/a_b). A price of \$5,
`a|b`, 1 < 2, snake_case, 2 * 3 * 4.

```{code-cell} ipython3
from myst_nb import glue

seen = ["first"]
```

```{code-cell} ipython3
:tags: [remove-cell]

seen.append("hidden")
glue("small-answer", f"{6 * 7 / 10:.1f}", display=False)
```

The answer is {glue:text}`small-answer`, by {eq}`eq-sum` and {prf:ref}`theorem-small`.

$$
s = \sum_{i=1}^{r} \sigma_i
$$ (eq-sum)

:::{prf:theorem} Small
:label: theorem-small
Every $\class{role-a}{r}$ is small:

$$
r \le \min(d, k)
$$
:::

:::{dropdown} Proof that $r < k$
Nothing *to* prove.
:::

:::{admonition} After this
:class: tip
- one thing,
  on two lines;
- another.
:::

| Symbol | Meaning |
|:--|--:|
| $\lVert W \rVert$, `a\|b` | a norm, $\|x\|$ |

```{literalinclude} ../src/small.py
:pyobject: double
```

## Exercises

```{exercise-start}
:label: exercise-small
```
**Doubling.** What is twice 21?
```{exercise-end}
```

```{solution-start} exercise-small
:class: dropdown
```
Multiply.

```{code-cell} ipython3
seen.append("solution")
assert 2 * 21 == 42
```

Then look.

```{code-cell} ipython3
:tags: [hide-input]

assert seen == ["first", "hidden", "solution"]
```
```{solution-end}
```

::::{quiz} Is $r < k$ *always* so?
:::{answer} Yes, $r < k$
No: it can be `k`.
:::
:::{answer} No
:right:
It can be equal.
:::
::::
"""
)
SECOND = f"""{HEADER}
# Files

```{{code-cell}} ipython3
from pathlib import Path

assert Path("../assets/results/one.json").read_text() == "1"
```
"""


def make_book(folder, configuration=""):
    files = {
        "conf.py": CONFIGURATION + configuration,
        "pyproject.toml": '[project]\nname = "small"\nversion = "1.2"\n',
        "works.bib": "@article{hu2022lora, author={Hu, Edward J. and Shen, Yelong}, title={LoRA}, journal={ICLR}, year={2022}}\n",
        "src/small.py": "def double(x):\n    return 2 * x\n",
        "assets/results/one.json": "1",
        "chapters/index.md": "# Index\n\n```{toctree}\n:numbered:\nfirst\nsecond\nplain\nworks\n```\n",
        "chapters/first.md": CHAPTER,
        "chapters/second.md": SECOND,
        "chapters/plain.md": "# Not executed\n\nWords.\n",
        "chapters/works.md": "# Works\n\n```{bibliography}\n```\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def build(folder):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-b", "html", str(folder), str(folder / "_build" / "html")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build(make_book(tmp_path_factory.mktemp("book")))


@pytest.fixture(scope="module")
def notebook(site):
    return nbformat.read(site / "notebooks" / "first.ipynb", as_version=4)


@pytest.fixture(scope="module")
def page(site):
    return BeautifulSoup((site / "chapters" / "first.html").read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def text(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_only_executed_pages_become_notebooks_and_the_welcome_page_does_not(site):
    names = {path.name for path in (site / "notebooks").iterdir()}
    assert names == {f"{name}{kind}" for name in ("first", "second") for kind in (".ipynb", "-page.py", ".md")} | {"book-files.zip"}


def test_a_notebook_is_valid_without_outputs_and_begins_with_title_and_setup(notebook):
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# Ranks of $W$\n")
    assert notebook.cells[1].cell_type == "code"
    assert 'find_spec("lorabook")' in notebook.cells[1].source
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_no_role_and_no_directive_is_left(text):
    assert not ROLE.search(text)
    assert not DIRECTIVE.search(text)


def test_every_cell_is_there_once_in_order_those_that_the_page_hides_too(notebook):
    sources = [re.sub(r"\A# @title.*\n", "", cell.source) for cell in notebook.cells[2:] if cell.cell_type == "code"]
    assert sources == [cell.strip() for cell in cells_of(CHAPTER)]


def cells_of(text):
    return [re.sub(r"\A(?::[^\n]*\n)*\n?", "", one) for one in re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", text, re.M | re.S)]


def test_references_citations_and_glued_numbers_read_as_on_the_page(text, page):
    sentence = next(p.get_text() for p in page.select("p") if p.get_text().startswith("The answer"))
    assert sentence == "The answer is 4.2, by (1.1) and Theorem 1.1."
    assert sentence in text
    cited = next(p.get_text() for p in page.select("p") if p.get_text().startswith("Read "))
    assert "Hu and Shen [2022]" in cited
    assert "Read Hu and Shen [2022], and [Hu and Shen, 2022]; the next chapter too, and [elsewhere](https://example.org/a_b)" in text
    assert "## Works cited\n\n- Edward\N{NO-BREAK SPACE}J. Hu and Yelong Shen. Lora. *ICLR*, 2022." in text


def test_numbers_of_equations_theorems_and_exercises_are_those_of_the_page(text, page):
    number = page.select_one("div.math .eqno").get_text().strip("()¶")
    assert f"\\tag{{{number}}}\n$$" in text
    titles = [one.get_text() for one in page.select(".admonition-title")]
    assert any(title.startswith("Theorem 1.1") for title in titles)
    assert "> **Theorem 1.1 (Small)**" in text
    assert any(title.startswith("Exercise 1.1") for title in titles)
    assert "**Exercise 1.1**" in text


def test_a_formula_in_a_quotation_stands_on_one_line(text):
    assert "\n> $$ r \\le \\min(d, k) $$" in text


def test_a_formula_comes_without_the_colours_of_the_page(text, page):
    assert r"\class{role-a}{r}" in page.get_text()
    assert "Every ${r}$ is small:" in text


def test_a_solution_is_folded_its_text_in_markdown_and_its_code_by_metadata(notebook):
    start = next(index for index, cell in enumerate(notebook.cells) if "Solution to exercise" in cell.source)
    first, run, then, look = notebook.cells[start : start + 4]
    assert first.source == "<details>\n<summary>Solution to exercise 1.1</summary>\n\nMultiply.\n\n</details>"
    assert then.source.startswith("<details>\n<summary>Solution to exercise 1.1, continued</summary>\n\nThen look.")
    for cell in (run, look):
        assert cell.source.startswith("# @title Solution to exercise 1.1\n")
        assert cell.metadata["jupyter"]["source_hidden"]
        assert cell.metadata["cellView"] == "form"


def test_quizzes_and_proofs_open_answer_by_answer(text):
    assert "**1.** Is $r < k$ *always* so?" in text
    assert "<summary>A. Yes, $r \\lt k$</summary>\n\n**Not quite.** No: it can be `k`." in text
    assert "<summary>B. No</summary>\n\n**Right.** It can be equal." in text
    assert "<summary>Proof that $r \\lt k$</summary>\n\nNothing *to* prove." in text
    assert text.count("<details>") == text.count("</details>") == 5


def test_lists_tables_listings_and_signs_survive(text):
    assert "> **After this**\n>\n> - one thing, on two lines;\n> - another." in text
    assert "| :-- | --: |\n| $\\lVert W \\rVert$, `a\\|b` | a norm, $\\vert x\\vert $ |" in text
    assert "```python\ndef double(x):\n    return 2 * x\n```" in text
    assert "<span>&#36;</span>5, `a|b`, 1 &lt; 2, snake_case, 2 \\* 3 \\* 4." in text


def test_the_script_and_the_source_are_the_same_chapter(site, notebook):
    script = jupytext.reads((site / "notebooks" / "first-page.py").read_text(encoding="utf-8"), fmt="py:percent")
    assert [(cell.cell_type, cell.source) for cell in script.cells] == [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert (site / "notebooks" / "first.md").read_text(encoding="utf-8") == CHAPTER


def test_a_script_takes_no_modules_name():
    assert script_of("numbers") == "numbers-page.py"
    assert script_of("02-rank") == "02-rank.py"


def test_without_an_address_the_links_are_the_downloads_alone(page, site):
    row = page.select_one("h1 + nav.run-links")
    assert [link["href"] for link in row.select("a")] == [f"../notebooks/first{kind}" for kind in (".ipynb", "-page.py", ".md")]
    assert all((site / "chapters" / link["href"]).resolve().is_file() for link in row.select("a"))
    assert row["aria-label"]
    plain = BeautifulSoup((site / "chapters" / "plain.html").read_text(encoding="utf-8"), "html.parser")
    assert plain.select(".run-links") == []


def test_with_an_address_colab_source_and_page_are_linked(tmp_path, monkeypatch):
    monkeypatch.setenv("BOOK_REPOSITORY", "https://github.com/Owner/name")
    site = build(make_book(tmp_path))
    page = BeautifulSoup((site / "chapters" / "first.html").read_text(encoding="utf-8"), "html.parser")
    found = {link.get_text(): link["href"] for link in page.select(".run-links a")}
    assert found["Run in Colab"] == "https://colab.research.google.com/github/Owner/name/blob/notebooks/first.ipynb"
    assert found["Source"] == "https://github.com/Owner/name/blob/main/chapters/first.md"
    assert page.find("link", rel="canonical")["href"] == "https://owner.github.io/name/chapters/first.html"
    notebook = nbformat.read(site / "notebooks" / "first.ipynb", as_version=4)
    assert "[A chapter](https://owner.github.io/name/chapters/first.html)" in notebook.cells[0].source
    assert "[next chapter](https://owner.github.io/name/chapters/second.html)" in "".join(cell.source for cell in notebook.cells)
    assert "https://owner.github.io/name/" in notebook.cells[1].source


def test_a_construct_that_has_no_form_in_a_notebook_stops_the_build(tmp_path):
    book = make_book(tmp_path)
    (book / "chapters" / "second.md").write_text(SECOND + "\nA note.[^one]\n\n[^one]: It would be lost.\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="a notebook has no form for a footnote"):
        build(book)


@pytest.mark.parametrize("address", ["http://github.com/a/b", "github.com/a/b", "https://github.com/a"])
def test_an_address_that_is_no_repository_is_refused(address):
    with pytest.raises(ExtensionError, match=r"book_repository must be empty or https://github\.com/OWNER/NAME"):
        site_of(address)
    assert site_of("https://github.com/a/b/", "https://book.example/x") == "https://book.example/x/"


@pytest.mark.parametrize(
    ("environment", "configured", "baseurl", "expected"),
    [
        ("", "", "", ("", "")),
        ("", "", "https://book.example/", ("", "https://book.example/")),
        ("", "https://github.com/A/b", "", ("https://github.com/A/b", "https://a.github.io/b/")),
        ("https://github.com/A/b", "", "", ("https://github.com/A/b", "https://a.github.io/b/")),
        ("https://github.com/fork/b", "https://github.com/A/b", "", ("https://github.com/fork/b", "https://fork.github.io/b/")),
        ("https://github.com/A/b", "", "https://book.example", ("https://github.com/A/b", "https://book.example/")),
    ],
)
def test_the_sites_address_follows_from_the_repository(environment, configured, baseurl, expected, monkeypatch):
    monkeypatch.setenv("BOOK_REPOSITORY", environment)
    config = SimpleNamespace(book_repository=configured, html_baseurl=baseurl)
    settle_addresses(None, config)
    assert (config.book_repository, config.html_baseurl) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a*b", r"a\*b"),
        ("_a b_", r"\_a b\_"),
        ("a_b", "a_b"),
        ("&lt;", "&amp;lt;"),
        ("R&D", "R&D"),
        ("[a](b)", r"[a]\(b)"),
        ("a\n b", "a b"),
    ],
)
def test_text_means_the_same_in_markdown(given, expected):
    assert escaped(given) == expected


def test_code_that_holds_backticks_is_fenced_by_more_of_them():
    assert code("a`b") == "``a`b``"
    assert fence("```\nx\n```", "md").startswith("````md\n```")
    assert quoted("a\n\n$$\nx\n$$") == "> a\n>\n> $$ x $$"


# The setup cell ------------------------------------------------------------------------------------------------------------------------


def run_setup(code, folder, python=sys.executable, colab=False):
    """Run a setup cell as a script, as if in Colab or not."""
    pretend = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n" if colab else ""
    after = "\nimport os\nprint(os.getcwd())\n"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_NO_INDEX")}
    command = [str(python), "-I", "-c", pretend + code + after]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An environment with pip and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A site on this machine: a wheel that needs what cannot be had, and the book's files."""
    root = tmp_path / "site"
    (root / "wheels").mkdir(parents=True)
    (root / "notebooks").mkdir()
    wheel = "lorabook-0.1-py3-none-any.whl"
    with zipfile.ZipFile(root / "wheels" / wheel, "w") as archive:
        archive.writestr("lorabook/__init__.py", "")
        about = "Metadata-Version: 2.1\nName: lorabook\nVersion: 0.1\nRequires-Dist: no-such-torch==99\n"
        archive.writestr("lorabook-0.1.dist-info/METADATA", about)
        archive.writestr("lorabook-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("lorabook-0.1.dist-info/RECORD", "")
    with zipfile.ZipFile(root / "notebooks" / "book-files.zip", "w") as archive:
        archive.writestr("assets/results/one.json", "1")
        archive.writestr("chapters/first.md", "")
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *arguments: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *arguments: handler(*arguments, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", wheel
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_in_colab_the_setup_cell_installs_the_package_alone_and_fetches_the_files(published, bare_python, tmp_path):
    cell = setup_cell(*published, reads_files=True)
    work = tmp_path / "content"
    work.mkdir()
    elsewhere = run_setup(cell, work, bare_python)
    assert "ModuleNotFoundError: run `pip install http" in elsewhere.stderr

    result = run_setup(cell, work, bare_python, colab=True)
    assert result.returncode == 0, result.stderr
    inside = Path(result.stdout.strip())
    assert inside == work / "book" / "chapters"
    assert (inside / "../assets/results/one.json").read_text() == "1"
    # Run again, with everything there, it changes nothing.
    again = run_setup(cell, inside, bare_python)
    assert (again.returncode, again.stdout.strip()) == (0, str(inside))
    names = json.loads(subprocess.check_output([bare_python, "-m", "pip", "list", "--format", "json"], text=True))
    assert {one["name"] for one in names} - {"pip", "setuptools"} == {"lorabook"}
    # Elsewhere the files are the reader's to fetch; once unpacked they are found.
    other = tmp_path / "other"
    other.mkdir()
    assert "FileNotFoundError: unpack http" in run_setup(cell, other, bare_python).stderr


def test_with_no_address_the_setup_cell_says_how_to_install_and_where_to_open(tmp_path):
    python = Path(sys._base_executable)  # the interpreter itself, in which no lorabook is installed
    result = run_setup(setup_cell("", "", reads_files=True), tmp_path, python, colab=True)
    assert "run `pip install --no-deps .`" in result.stderr
    cell = setup_cell("", "", reads_files=True)
    assert "open it in the folder chapters/" in run_setup(cell, tmp_path).stderr
    assert run_setup(setup_cell("", "", reads_files=False), tmp_path).returncode == 0


@pytest.mark.parametrize("site", ["", "https://owner.github.io/name/"])
@pytest.mark.parametrize("reads_files", [True, False])
def test_the_setup_cell_is_short_and_formatted(site, reads_files):
    cell = setup_cell(site, "lorabook-0.1.0-py3-none-any.whl", reads_files)
    names = [token.string for token in tokenize.generate_tokens(io.StringIO(cell).readline)]
    assert "http" not in cell or "SITE" in names
    for command in (["format", "--line-length", "88", "--check"], ["check", "--ignore", "S,D,T,E402,I"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--stdin-filename", "cell.py", "-"]
        result = subprocess.run(arguments, input=cell + "\n", capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
