"""Sphinx extension: one stylesheet for the book, which holds the rules that its pages can use and no others.

When all pages are written, the theme's and the extensions' stylesheets are joined in their order. A rule stays if every class, id,
element and attribute of its selector is on a page, or is a word of a script that the book serves; what a script adds later
("active", "hidden") is such a word. Fonts that the remaining rules ask for are cut down to the glyphs that the book shows and put
into the stylesheet itself, so that math never changes its shape, and its place, while a page loads.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tinycss2
from fontTools import subset
from fontTools.ttLib import TTFont
from slim_pages import STYLESHEET

_INLINE_BYTES = 16_000  # a larger font stays a file

# Written by the browser or by a reader's settings rather than by a page.
_ALWAYS = {
    "data-theme",
    "data-mode",
    "open",
    "html",
    "body",
    "active",
    "tabindex",
    "hidden",
    "show",
    "dialog",
    "data-default-mode",
    "scope",
    "data-laid-out",
}

_READ = re.compile(r"var\(\s*(--[\w-]+)")
_NESTED = r"\((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*\)"
_VARIABLE = re.compile(rf"""(?<=[{{;])\s*(--[\w-]+)\s*:(?:"[^"]*"|{_NESTED}|[^;{{}}"()])*(?:;|(?=\}}))""")


@dataclass
class Vocabulary:
    """The names that selectors can meet in the book."""

    names: set[str] = field(default_factory=lambda: set(_ALWAYS))
    letters: dict[str, set[str]] = field(default_factory=dict)  # the characters that stand in elements of each class of formulas
    styles: str = ""

    def read_page(self, page: str) -> None:
        """Elements, attributes, classes and ids of a page; words of its scripts; the characters of its formulas."""
        for code in re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL):
            self.read_script(code)
        for tag, attributes in re.findall(r'<([a-zA-Z][\w-]*)((?:\s+[^\s"=<>/]+(?:\s*=\s*(?:"[^"]*"|\'[^\']*\'))?)*)', page):
            self.names.add(tag.lower())
            for name, value in re.findall(r'([^\s"=<>/]+)\s*=\s*["\']([^"\']*)', attributes):
                self.names.add(name.lower())
                if name in ("class", "id"):
                    self.names.update(value.split())
                elif name == "style":
                    self.styles += value + ";"
        self.styles += "".join(re.findall(r"var\([^)]*\)", page))
        for start in re.finditer(r'<span class="katex-html"', page):
            self.read_formula(page[start.start() : _end(page, start.start())])

    def read_formula(self, formula: str) -> None:
        """Which characters stand in elements of which class, however deep."""
        around: list[list[str]] = [["katex"]]
        for part in re.finditer(r'<span(?: [^>]*?class="(?P<classes>[^"]*)")?[^>]*>|(?P<end></span>)|<[^>]*>|(?P<text>[^<]+)', formula):
            if part["text"]:
                for name in (name for classes in around for name in classes):
                    self.letters.setdefault(name, set()).update(html.unescape(part["text"]))
            elif part["end"]:
                around.pop()
            elif part[0].startswith("<span"):
                around.append((part["classes"] or "").split())

    def read_script(self, code: str) -> None:
        """Words between quotes: a script names what it makes."""
        for quoted in re.findall(r'"([^"\n]*)"|\'([^\'\n]*)\'|`([^`]*)`', code):
            self.names.update(re.findall(r"[A-Za-z_][\w-]*", " ".join(quoted)))

    def knows(self, selector: str) -> bool:
        """Whether an element that the selector describes can occur."""
        previous = None
        while previous != selector:  # what must not be there, or may, does not count
            previous, selector = selector, re.sub(r":(?:not|is|where|has|host|nth-[\w-]+|lang|dir)\([^()]*\)", "", selector)
        values = r"\[\s*([\w-]+)[^\]]*\]"
        attributes = re.findall(values, selector)
        selector = re.sub(values, "", selector)
        selector = re.sub(r"(?<!\\)::?[\w-]+(?:\([^)]*\))?", "", selector)
        classes = [re.sub(r"\\(.)", r"\1", one) for one in re.findall(r"[.#]((?:\\.|[\w-])+)", selector)]
        elements = re.findall(r"(?:^|[\s>+~])([a-zA-Z][\w-]*)", re.sub(r"[.#](?:\\.|[\w-])+", "", selector))
        return all(name in self.names for name in (*classes, *attributes, *(one.lower() for one in elements)))


def _end(page: str, start: int) -> int:
    """Where the span that starts here ends."""
    depth = 0
    for match in re.compile(r"<(/?)span\b").finditer(page, start):
        depth += -1 if match[1] else 1
        if depth == 0:
            return match.start()
    return len(page)


def _split(tokens: Iterable[Any]) -> Iterator[str]:
    """The selectors of a list, at commas outside of brackets."""
    current: list[Any] = []
    for token in tokens:
        if token.type == "literal" and token.value == ",":
            yield tinycss2.serialize(current).strip()
            current = []
        else:
            current.append(token)
    yield tinycss2.serialize(current).strip()


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)).strip()


def purge(css: str, words: Vocabulary) -> str:
    """The rules that can apply, in their order."""
    return _purge(tinycss2.parse_stylesheet(css, skip_comments=True, skip_whitespace=True), words)


def _purge(rules: Iterable[Any], words: Vocabulary) -> str:
    kept = []
    for rule in rules:
        if rule.type == "qualified-rule":
            selectors = [one for one in _split(rule.prelude) if words.knows(one)]
            body = _squeeze(tinycss2.serialize(rule.content))
            if selectors and body:
                kept.append(f"{_squeeze(','.join(selectors))}{{{body}}}")
        elif rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports", "layer", "container") and rule.content:
            inner = _purge(tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True), words)
            if inner:
                kept.append(f"@{rule.at_keyword} {_squeeze(tinycss2.serialize(rule.prelude))}{{{inner}}}")
        elif rule.type == "at-rule" and rule.lower_at_keyword != "charset" and rule.content is not None:
            prelude = _squeeze(tinycss2.serialize(rule.prelude))
            kept.append(f"@{rule.at_keyword}{' ' + prelude if prelude else ''}{{{_squeeze(tinycss2.serialize(rule.content))}}}")
    return "\n".join(kept)


def drop_unused_names(css: str, styles: str) -> str:
    """Without variables that nothing reads, those that only such read included, and animations that nothing plays."""
    before = ""
    while before != css:
        before = css
        css = _drop_variables(css, set(_READ.findall(css + styles)))
        css = re.sub(r"(?m)^[^@{}\n][^{}\n]*\{\s*\}\n?", "", css)
    for name in re.findall(r"@(?:-webkit-)?keyframes ([\w-]+)", css):
        if not re.search(rf"animation[\w-]*\s*:[^;}}]*{name}", css + styles):
            css = re.sub(rf"@(?:-webkit-)?keyframes {name}\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}\n?", "", css)
    return css


def _drop_variables(css: str, read: set[str]) -> str:
    return _VARIABLE.sub(lambda match: match[0] if match[1] in read else "", css)


def place(css: str, folder: str) -> str:
    """Addresses of a stylesheet in ``folder`` as seen from where the joined one lies."""
    moved = lambda match: f"url({match[1]}{posixpath.normpath(posixpath.join(folder, match[2]))}{match[1]})"  # noqa: E731
    return re.sub(r"url\(\s*([\"']?)(?!data:|#|[a-z]+:)([^\"')]+)\1\s*\)", moved, css)


def cut_font(path: Path, characters: Iterable[str]) -> bytes:
    """A font with the glyphs of these characters alone, as WOFF2."""
    options = subset.Options(flavor="woff2", hinting=False, notdef_outline=True)
    font = TTFont(path, recalcTimestamp=False)
    cutter = subset.Subsetter(options)
    cutter.populate(text="".join(sorted(characters)))
    cutter.subset(font)
    font.flavor = "woff2"
    out = io.BytesIO()
    font.save(out)
    return out.getvalue()


def _variant(rule: str) -> tuple[bool, bool]:
    """Whether a rule or a face is bold, and whether it is italic."""
    return bool(re.search(r"font-weight:\s*(?:700|bold)", rule)), bool(re.search(r"font-style:\s*italic", rule))


def _faces(css: str) -> Iterator[tuple[str, str, bool, bool]]:
    for face in re.findall(r"@font-face\{[^}]*\}\n?", css):
        family = re.search(r"font-family:\s*([^;}]+)", face)
        name = re.sub(r"[\"'\\]", "", family[1]).strip() if family else ""
        yield face, name, *_variant(face)


def _asks(rule: str, family: str) -> bool:
    """Whether a rule can put text into this family; one for formulas that names no family leaves them in KaTeX_Main."""
    named = re.findall(r"KaTeX_\w+", rule) or (["KaTeX_Main"] if ".katex" in rule else [])
    return family in (named if family.startswith("KaTeX") else rule)


def fit_fonts(css: str, static: Path, letters: dict[str, set[str]]) -> str:
    """Drop faces that no rule asks for; cut the others to what the book shows in them, and put them into the stylesheet.

    Args:
        css: the rules that can apply.
        static: where the stylesheet lies.
        letters: the characters that stand in elements of each class of formulas, all of them in "katex".
    """
    rules = re.findall(r"[^{}]*\{[^{}]*\}", re.sub(r"@font-face\{[^}]*\}", "", css))
    icons = set(re.findall("[\ue000-\uf8ff]", css)) | {chr(int(code, 16)) for code in re.findall(r'"\\([ef][0-9a-f]{3})"', css)}
    for face, family, bold, italic in _faces(css):
        asking = [rule for rule in rules if _asks(rule.replace("\\", ""), family)]
        wanted = icons
        if family.startswith("KaTeX"):
            asking = [rule for rule in asking if _variant(rule) == (bold, italic)]
            selectors = ",".join(rule.partition("{")[0] for rule in asking).split(",")
            classes = {name for one in selectors for name in re.findall(r"\.([\w-]+)", one.replace(".katex ", ""))}
            wanted = set().union(*(letters.get(name, set()) for name in classes))
        source = re.search(r"url\([\"']?([^\"')]+\.woff2)", face)
        if not asking or not source or (family.startswith("Font Awesome") and (not icons or "fa-solid" not in source[1])):
            css = css.replace(face, "")
            continue
        data = cut_font(static / source[1], wanted)
        address = source[1] if len(data) > _INLINE_BYTES else "data:font/woff2;base64," + base64.b64encode(data).decode()
        style = re.sub(r"(?:src|font-display):(?:[^;}\"']|\"[^\"]*\")*;?", "", face.strip().removesuffix("}")).rstrip(";")
        css = css.replace(face, f'{style};font-display:swap;src:url({address}) format("woff2")}}\n')
    return css


def join(static: Path, sheets: Iterable[str]) -> str:
    """The stylesheets in their order, as one text."""

    def read(sheet: str) -> str:
        folder = posixpath.dirname(sheet)
        css = place((static / sheet).read_text(encoding="utf-8"), folder)
        return re.sub(r"@import\s+[\"']([^\"']+)[\"']\s*;", lambda match: read(posixpath.normpath(posixpath.join(folder, match[1]))), css)

    return "\n".join(map(read, dict.fromkeys(sheets)))


def write(app: Any, exception: Exception | None) -> None:
    """Write the stylesheet from all pages that stand, and let every page ask for this version of it."""
    if exception or not getattr(app, "book_stylesheets", None):
        return
    outdir = Path(app.outdir)
    static = outdir / "_static"
    pages = sorted(path for path in outdir.rglob("*.html") if static not in path.parents)
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    words = Vocabulary()
    for text in texts.values():
        words.read_page(text)
    served = {name for text in texts.values() for name in re.findall(r'<script[^>]*src="(?:[^"]*/)?([^"/?]+)', text)}
    for script in static.rglob("*.js"):
        if script.name in served and "vega" not in script.name:
            words.read_script(script.read_text(encoding="utf-8"))
    css = drop_unused_names(purge(join(static, app.book_stylesheets), words), words.styles)
    css = drop_unused_names(fit_fonts(css, static, words.letters), words.styles)
    css = '@charset "utf-8";\n' + css
    (static / STYLESHEET).write_text(css, encoding="utf-8")
    version = hashlib.sha256(css.encode()).hexdigest()[:8]
    for path, text in texts.items():
        named = re.sub(rf'{re.escape(STYLESHEET)}(?:\?v=\w+)?"', f'{STYLESHEET}?v={version}"', text)
        if named != text:
            path.write_text(named, encoding="utf-8")
    clear(static, served, set(re.findall(r"url\([\"']?(?!data:)([^\"')]+)", css)))


def clear(static: Path, served: set[str], asked: set[str]) -> None:
    """Remove what the theme copied and no page asks for; the next build copies it again."""
    for path in [*static.rglob("*.map"), *static.rglob("*.css"), *static.rglob("*.js"), *static.rglob("*.woff2"), *static.rglob("*.ttf")]:
        if path.name not in served | {STYLESHEET} and path.relative_to(static).as_posix() not in asked:
            path.unlink()


def setup(app: Any) -> dict[str, Any]:
    app.connect("build-finished", write, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
