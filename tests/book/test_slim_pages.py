"""A page asks for nothing that it does not use: the rewriting, piece by piece, and the stylesheet that is left."""

import base64
import re
import sys
from pathlib import Path

import pydata_sphinx_theme
import pytest
from fontTools.ttLib import TTFont
from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES
from sphinx.errors import ExtensionError

from tests.book.conftest import ROOT, SITE
from tests.book.test_site import CHAPTERS, PAGES, name, soup

sys.path.insert(0, str(ROOT / "_ext"))

from slim_code import looks, plain_code
from slim_pages import SCRIPT, STYLESHEET, draw_icons, drop_scripts, fold, icon_paths, slim
from slim_pictures import lift_charts, lift_pictures, share_glyphs, size_pictures
from stylesheet import Vocabulary, cut_font, drop_unused_names, fit_fonts, join, place, purge

ICONS = Path(pydata_sphinx_theme.__file__).parent / "theme/pydata_sphinx_theme/static/scripts/fontawesome.js"


def words(page="", script=""):
    vocabulary = Vocabulary()
    vocabulary.read_page(page)
    vocabulary.read_script(script)
    return vocabulary


def test_an_icon_becomes_its_own_drawing_and_keeps_its_role():
    drawn = draw_icons('<i class="theme-switch fa-solid fa-sun fa-lg" data-mode="light" title="Light"></i>', icon_paths(ICONS))
    width, height, path = icon_paths(ICONS)["sun"]
    assert drawn == (
        f'<svg class="icon theme-switch" data-mode="light" viewBox="0 0 {width} {height}" aria-hidden="true"><path d="{path}"/></svg>'
    )


def test_an_unknown_icon_is_refused():
    with pytest.raises(ExtensionError, match="solid icons, got class='fa-solid fa-no-such-thing'"):
        draw_icons('<i class="fa-solid fa-no-such-thing"></i>', icon_paths(ICONS))


def test_a_dropdown_becomes_details_whatever_it_holds():
    page = '<div class="solution dropdown admonition" id="a"><p class="admonition-title">T</p><div><div>x</div></div></div><div>after</div>'
    assert fold(page) == (
        '<details class="solution dropdown admonition" id="a"><summary class="admonition-title">T</summary>'
        "<div><div>x</div></div></details><div>after</div>"
    )


def test_scripts_of_search_stay_on_its_page_alone_and_those_of_others_everywhere():
    others = '<script src="a/vega.js"></script><script>draw()</script>'
    page = '<script src="../searchindex.js"></script>' + others + '<script defer src="x/bootstrap.js?v=1"></script>'
    assert drop_scripts(page, search=False) == others
    assert "searchindex.js" in drop_scripts(page, search=True)


def test_tabs_bring_their_script():
    script = '<script src="design-tabs.js"></script>'
    assert drop_scripts(script, search=False) == ""
    assert script in drop_scripts(script + '<div class="sd-tab-set"></div>', search=False)


def test_pictures_know_their_size_and_the_later_ones_wait(tmp_path):
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"></svg>')
    first, second = re.findall(r"<img[^>]*>", size_pictures('<img src="a.svg"><img src="a.svg">', tmp_path))
    assert 'width="30" height="20"' in first
    assert "lazy" not in first
    assert 'loading="lazy"' in second


def test_a_page_with_formulas_reads_their_letters_before_it_is_painted():
    page = '<html><head><meta charset="utf-8" /></head><body>{}</body></html>'
    with_formula, without = (
        slim(page.format(body), root="", search=False, icons=ICONS, folder=ROOT, look={}) for body in ('<span class="katex">x</span>', "x")
    )
    assert with_formula.index(STYLESHEET) < with_formula.index("document.fonts") < with_formula.index("<body")
    assert "document.fonts" not in without


def test_a_header_cell_that_heads_nothing_is_no_header():
    page = '<html><head><meta charset="utf-8" /></head><body><th class="head"><p></p></th><th>x</th></body>'
    page = slim(page, root="", search=False, icons=ICONS, folder=ROOT, look={})
    assert '<td class="head"></td><th>x</th>' in page


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_large_picture_becomes_a_file_beside_the_pages_and_a_small_one_stays(tmp_path, kind):
    content = bytes(range(256)) * 8
    data = base64.b64encode(content).decode()
    explorer = f'<script type="application/json">{{"picture":"data:image/{kind};base64,{data}"}}</script>'
    page = f'<image xlink:href="data:image/{kind};base64,\n{data}"/><img src="data:image/{kind};base64,AAAA">{explorer}'
    lifted = lift_pictures(page, "../", tmp_path / "chapters")
    address = re.search(r'xlink:href="\.\./(_images/[0-9a-f]{16}\.\w+)"', lifted)[1]
    assert address.endswith(f".{kind}")
    assert (tmp_path / address).read_bytes() == content
    assert f'<img src="data:image/{kind};base64,AAAA">{explorer}' in lifted


def test_the_chart_of_an_explorer_becomes_a_script_and_other_data_stay(tmp_path):
    page = '<script type="application/json" data-chart="">{"a": "\\u003cb>"}</script><script type="application/json">{}</script>'
    lifted = lift_charts(page, "../", tmp_path / "chapters")
    address, name = re.search(r'data-chart="\.\./(_charts/([0-9a-f]{16}\.js))"></script>', lifted).groups()
    assert (tmp_path / address).read_text() == f'(window.lorabookCharts ||= {{}})["{name}"] = {{"a": "\\u003cb>"}};\n'
    assert lifted.endswith('<script type="application/json">{}</script>')
    assert lift_charts(lifted, "../", tmp_path / "chapters") == lifted


@pytest.mark.parametrize(
    ("selector", "stays"),
    [
        (".on-page", True),
        (".absent", False),
        (".on-page .absent", False),
        ("p.on-page:hover::after", True),
        ("video.on-page", False),
        (".on-page:not(.absent)", True),
        (".added-later", True),
        ("#here", True),
        ("#absent", False),
        ("[data-nothing]", False),
        ('html[data-theme="dark"] p', True),
        ("details[open] > p", False),  # no details on this page
        ("*", True),
        (r".md\:on", True),
    ],
)
def test_a_rule_stays_if_its_selector_can_meet_something(selector, stays):
    vocabulary = words('<html><p class="on-page md:on" id="here">x</p></html>', 'node.classList.add("added-later")')
    assert bool(purge(f"{selector}{{color:red}}", vocabulary)) == stays


def test_a_list_keeps_what_can_apply_and_media_go_when_empty():
    css = '@charset "utf-8"; .a,.b{color:red} @media print{.b{color:red}} @media screen{.a{color:red}}'
    assert purge(css, words('<p class="a">')) == ".a{color:red}\n@media screen{.a{color:red}}"


def test_variables_that_nothing_reads_go_with_those_that_only_they_read():
    css = ':root{--a:var(--b);--b:1;--c:url("data:;x");--d:2}\np{color:var(--c)}'
    assert drop_unused_names(css, "width:var(--d)") == ':root{--c:url("data:;x");--d:2}\np{color:var(--c)}'


def test_addresses_are_seen_from_where_the_joined_stylesheet_lies():
    assert place("a{b:url(../x/y.woff2)} c{d:url('data:x')}", "styles") == "a{b:url(x/y.woff2)} c{d:url('data:x')}"


def test_imports_are_joined_in_their_place(tmp_path):
    (tmp_path / "styles").mkdir()
    (tmp_path / "styles" / "theme.css").write_text('@import "../basic.css";\np{a:b}')
    (tmp_path / "basic.css").write_text("i{c:url(x.png)}")
    assert join(tmp_path, ["styles/theme.css", "styles/theme.css"]) == "i{c:url(x.png)}\np{a:b}"


def test_a_font_is_cut_to_what_is_shown_and_goes_when_no_rule_asks(tmp_path):
    fonts = ROOT / "node_modules/katex/dist"
    file = fonts / "fonts/KaTeX_Math-Italic.woff2"
    whole, data = file.read_bytes(), cut_font(file, "Wα")
    (tmp_path / "cut.woff2").write_bytes(data)
    assert {ord("W"), ord("α")} <= set(TTFont(tmp_path / "cut.woff2").getBestCmap()) < set(TTFont(file).getBestCmap())
    assert len(data) < len(whole) / 4
    face = '@font-face{font-family:KaTeX_Math;font-style:italic;src:url(fonts/KaTeX_Math-Italic.woff2) format("woff2")}\n'
    asked = fit_fonts(face + ".katex .mathnormal{font-family:KaTeX_Math;font-style:italic}", fonts, {"mathnormal": {"W"}})
    assert "src:url(data:font/woff2;base64," in asked
    assert "@font-face" not in fit_fonts(face + ".katex{font:1em KaTeX_Main}", fonts, {"katex": {"W"}})


def test_a_font_holds_the_letters_that_stand_in_its_classes_however_deep(tmp_path):
    fonts = ROOT / "node_modules/katex/dist"
    nested = '<span class="mord mathnormal">W<span class="mtight">r</span></span>'
    letters = words(f'<span class="katex-html"><span>{nested}</span><span style="" class="mord">1&amp;</span></span>').letters
    assert letters["mathnormal"] == {"W", "r"}
    assert letters["katex"] == {"W", "r", "1", "&"}
    faces = "".join(
        f'@font-face{{font-family:{family};font-style:{style};src:url(fonts/{family}-{variant}.woff2) format("woff2")}}\n'
        for family, style, variant in (
            ("KaTeX_Math", "italic", "Italic"),
            ("KaTeX_Main", "normal", "Regular"),
            ("KaTeX_Main", "italic", "Italic"),
        )
    )
    rules = ".katex{font:1em KaTeX_Main}\n.katex .mathnormal{font-family:KaTeX_Math;font-style:italic}\n.katex .mathrm{font-style:normal}"
    held = {}
    for face in re.findall(r"@font-face\{[^}]*\}", fit_fonts(faces + rules, fonts, letters)):
        (tmp_path / "font.woff2").write_bytes(base64.b64decode(re.search(r"base64,([^)]*)", face)[1]))
        held[re.search(r"font-family:(\w+)", face)[1]] = {chr(code) for code in TTFont(tmp_path / "font.woff2").getBestCmap()}
    assert held == {"KaTeX_Math": {"W", "r"}, "KaTeX_Main": {"W", "r", "1", "&"}}


LOOK = looks(("a11y-high-contrast-light", "a11y-high-contrast-dark"))


def test_code_keeps_its_colours_in_fewer_elements():
    code = (
        '<div class="highlight"><pre><span></span><span class="n">x</span> <span class="o">=</span> <span class="s2">"a"</span>'
        '<span class="p">,</span> <span class="mi">1</span>\n</pre></div>'
    )
    assert plain_code(code, LOOK) == (
        f'<div class="highlight"><pre>x <span class="{LOOK["o"]}">= "a"</span>, <span class="{LOOK["mi"]}">1</span>\n</pre></div>'
    )
    prompt = '<div class="highlight"><pre><span class="gp">$ </span>make book\n</pre></div>'
    assert plain_code(prompt, LOOK) == prompt
    assert plain_code('<p><span class="n">x</span></p>', LOOK) == '<p><span class="n">x</span></p>'


@pytest.mark.parametrize("style", ["a11y-high-contrast-light", "a11y-high-contrast-dark"])
def test_classes_that_stand_for_each_other_look_the_same(style):
    looked = {short: get_style_by_name(style).style_for_token(token) for token, short in STANDARD_TYPES.items()}
    assert LOOK["k"] not in ("", LOOK["o"])
    for one, other in LOOK.items():
        assert looked[one] == looked[other]


def test_letters_that_two_drawings_share_are_drawn_once():
    def letter(figure, name, path):
        return f'<path id="{figure}-DejaVuSans-{name}" d="{path}" transform="scale(0.015625)"/>'

    one, two = "f00000001", "f00000002"
    page = (
        f'<svg><defs>{letter(one, "a", "M1 2")}</defs><use xlink:href="#{one}-DejaVuSans-a"/></svg>'
        f'<svg><defs>{letter(two, "a", "M1 2")}{letter(two, "b", "M3 4")}</defs><use xlink:href="#{two}-DejaVuSans-a"/></svg>'
        f'<svg><defs>{letter("f00000003", "a", "M1 2")}</defs><use xlink:href="#f00000003-DejaVuSans-a"/><use xlink:href="#own"/></svg>'
    )
    assert share_glyphs(page) == (
        f'<svg><defs>{letter(one, "a", "M1 2")}</defs><use xlink:href="#{one}-DejaVuSans-a"/></svg>'
        f'<svg><defs>{letter(two, "b", "M3 4")}</defs><use xlink:href="#{one}-DejaVuSans-a"/></svg>'
        f'<svg><use xlink:href="#{one}-DejaVuSans-a"/><use xlink:href="#own"/></svg>'
    )


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_a_page_asks_for_one_stylesheet_and_no_script_that_it_does_not_use(path):
    page = soup(path)
    assert [Path(link["href"].partition("?")[0]).name for link in page.select("link[rel=stylesheet]")] == [STYLESHEET]
    scripts = [Path(script["src"].partition("?")[0]).name for script in page.select("script[src]")]
    if path.name == "search.html":
        assert "searchindex.js" in scripts
    else:
        assert set(scripts) <= {SCRIPT, "design-tabs.js", "vega.js"}
    assert scripts.count(SCRIPT) == 1
    assert page.select("[class*=fa-]") == []


def test_no_icon_font_icon_script_or_source_map_is_left():
    left = [path.name for path in SITE.rglob("*") if re.search(r"(?:fontawesome|bootstrap)\.js$|fa-\w+-\d+\.|\.map$", path.name)]
    assert left == []


@pytest.mark.parametrize("path", [SITE / "chapters" / "02-rank.html", SITE / "chapters" / "notation.html"], ids=name)
def test_every_formula_has_its_glyphs(visit, path):
    """The fonts in the stylesheet are enough: a glyph that they lack would come from another font, and the whole font too."""
    css = (SITE / "_static" / STYLESHEET).read_text(encoding="utf-8")
    assert css.count("data:font/woff2") >= 4
    page = visit(path).page
    assert page.evaluate("[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family)").count("KaTeX_Main") >= 1


def test_the_search_dialog_opens_by_keyboard_and_leads_to_results(visit):
    page = visit(CHAPTERS[0]).page
    page.keyboard.press("Control+k")
    page.locator("#pst-search-dialog input").fill("rank")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=rank")
    page.locator("#search-results li a").first.wait_for()


def test_the_colours_change_and_stay_changed(visit):
    page = visit(CHAPTERS[0]).page
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "light"
    page.locator(".theme-switch-button").press("Enter")  # from the system's light to light
    page.locator(".theme-switch-button").press("Enter")
    while page.evaluate("document.documentElement.dataset.mode") != "dark":
        page.locator(".theme-switch-button").press("Enter")
    assert page.evaluate(theme) == "dark"
    page.reload()
    assert page.evaluate(theme) == "dark"


def test_on_a_phone_the_contents_open_and_close_by_keyboard(visit):
    page = visit(CHAPTERS[0], width=375).page
    entry = page.locator(".bd-links a").first
    assert not entry.is_visible()
    page.locator(".primary-toggle").press("Enter")
    entry.wait_for(state="visible")
    page.keyboard.press("Escape")
    entry.wait_for(state="hidden")
    assert page.evaluate("document.activeElement.matches('.primary-toggle')")


def test_a_solution_opens_by_keyboard_and_without_scripts(visit):
    for scripts in (True, False):
        page = visit(SITE / "chapters" / "02-rank.html", scripts=scripts).page
        solution = page.locator("details.solution").first
        assert not solution.locator("section").is_visible()
        solution.locator("summary").press("Enter")
        assert solution.locator("section").is_visible()


def test_paper_shows_every_solution_and_cuts_no_line_of_code(visit):
    page = visit(SITE / "chapters" / "02-rank.html", width=720).page
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every(one => one.open)")
    assert not page.locator(".bd-sidebar-primary").is_visible()
    assert page.locator("article h1").is_visible()
    cut = "[...document.querySelectorAll('pre')].filter(one => one.offsetParent && one.scrollWidth > one.clientWidth + 1).length"
    assert page.evaluate(cut) == 0
