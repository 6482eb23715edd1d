"""How high a section will be is guessed from what it holds: near enough for a steady page, and rather too high than too low."""

import sys

import pytest

from tests.book.conftest import ROOT
from tests.book.test_site import CHAPTERS, name

sys.path.insert(0, str(ROOT / "_ext"))

from slim_sections import closing, guess_heights, weigh

HEIGHTS = """laidOut => [...document.querySelectorAll('.bd-article > section > section')].map(one => {
    const guess = parseFloat(getComputedStyle(one).containIntrinsicBlockSize.replace('auto', ''));
    document.documentElement.dataset.laidOut = 'whole';
    return [guess, one.getBoundingClientRect().height];
})"""


def test_an_element_ends_where_its_own_end_stands():
    page = "<section>a<section>b</section>c</section>d"
    assert page[closing(page, 0, "section") :] == "d"


def test_sections_of_the_first_level_know_what_they_hold_and_others_are_left_alone():
    inner = '<section id="inner"><p>four</p></section>'
    first = f'<section id="one"><p>ab</p>{inner}</section>'
    page = f'<article class="a"><section id="all"><h1>T</h1>{first}<section id="two"></section></section></article>'
    guessed = guess_heights(page)
    assert '<section id="all"><h1>' in guessed
    assert '<section id="one" style="--letters: 6; --rest: 36">' in guessed
    assert inner in guessed
    assert '<section id="two" style="--letters: 0; --rest: 0">' in guessed
    assert guess_heights("<main><p>no article</p></main>") == "<main><p>no article</p></main>"


def test_what_is_folded_heard_or_run_takes_no_room():
    shown = "<p>abc</p>"
    hidden = '<script>long</script><span class="katex-mathml"><math>x</math></span>'
    folded = "<details><summary>ab</summary><p>not shown</p></details>"
    assert weigh(shown + hidden) == weigh(shown)
    assert weigh(folded) == weigh("<details><summary>ab</summary></details>")
    assert weigh(folded.replace("<details>", "<details open>"))[0] > weigh(folded)[0]


def test_pictures_and_lines_of_code_take_their_room():
    assert weigh('<svg width="700" height="300"><text>label</text></svg>') == (0, 270)
    assert weigh('<svg width="20" height="20"></svg>') == (0, 0)
    assert weigh("<pre>a\nb\n</pre>")[1] - weigh("<pre>a\n</pre>")[1] == weigh("<pre>\n\n\n</pre>")[1] - weigh("<pre>\n\n</pre>")[1] > 10


@pytest.mark.parametrize("width", [412, 1280])
@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_the_guess_is_near_the_height_in_a_browser(visit, path, width):
    found = visit(path, width=width).page.evaluate(HEIGHTS)
    for guess, height in found:
        assert height / 2 < guess < 2 * height
    if path.name[0].isdigit():  # pages that are mostly tables are guessed less well
        guessed, real = (sum(numbers) for numbers in zip(*found, strict=True))
        assert 0.85 * real <= guessed <= 1.5 * real
