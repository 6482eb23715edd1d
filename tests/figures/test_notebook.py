"""Figures as a page gets them."""

import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import vl_convert
from PIL import Image

from lorabook.figures.notebook import glue, picture
from lorabook.figures.slider import Frame, PictureSlider
from lorabook.figures.style import COLORS, INK, use_book_style


@pytest.fixture(autouse=True)
def book_style():
    with plt.rc_context():
        use_book_style()
        yield


def drawing(**line):
    figure, axis = plt.subplots()
    axis.plot([1, 2, 3], [1, 3, 2], marker="o", **line)
    axis.fill_between([1, 2], [1, 2], color=COLORS["A"])
    axis.set_xlabel("steps")
    return figure


def rendered(svg):
    """Pixels of a drawing (height, width, 4), each the mean of 64."""
    pixels = np.asarray(Image.open(io.BytesIO(vl_convert.svg_to_png(svg, scale=8))), dtype=float)
    return pixels.reshape(pixels.shape[0] // 8, 8, -1, 8, 4).mean((1, 3))


def test_text_takes_the_colour_of_the_page_and_roles_keep_theirs():
    svg = picture(drawing(color=COLORS["W"]), "A line").svg
    assert INK not in svg
    assert "currentColor" in svg
    assert f"var(--lora-w, {COLORS['W'].lower()})" in svg
    assert f"var(--lora-a, {COLORS['A'].lower()})" in svg
    assert not re.search(r"#f[0-9a-f]{8}-", svg.replace("url(", "").replace('"#', ""))


def test_alt_text_is_required_and_stands_in_the_drawing():
    assert 'role="img" aria-label="A &quot;quoted&quot; &lt;line&gt;"' in picture(drawing(), 'A "quoted"\n <line>').svg
    with pytest.raises(ValueError, match="alt text"):
        picture(drawing(), " ")


def test_two_drawings_on_a_page_share_no_id_and_refer_to_their_own():
    first, second = picture(drawing(), "One").svg, picture(drawing(), "Two").svg
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= own


def test_a_drawing_says_nothing_twice_and_looks_the_same():
    """Rendered by another program, the drawing that Matplotlib wrote and the shorter one differ by no more than rounding."""
    stream = io.StringIO()
    figure = drawing()
    figure.savefig(stream, format="svg")
    long = re.sub(r'<svg([^>]*?) width="[^"]*" height="[^"]*"', r'<svg\1 width="700" height="340"', stream.getvalue())
    short = picture(figure, "A line").svg
    assert len(short) < 0.8 * len(long)
    assert "<g>" not in short
    assert short.count("<g") == short.count("</g>") > 0
    assert "\n" not in short
    short = re.sub(r"var\(--[\w-]+, (#\w+)\)", r"\1", short).replace("currentColor", INK)
    before, after = map(rendered, (long, short))
    assert np.abs(before - after).max() < 16  # of 255, where the edge of a line crosses a pixel
    assert before.std() > 10


def test_the_figure_is_closed():
    before = plt.get_fignums()
    picture(drawing(), "A line")
    assert plt.get_fignums() == before


def test_glue_outside_a_notebook_does_no_harm():
    glue("a-number", 7)


def test_an_explorer_without_scripts_shows_its_start():
    frames = [Frame([[0.0, 1.0]], f"position {index}", f"picture {index}") for index in range(3)]
    page = PictureSlider(frames, "Position <b>", start=1)._repr_html_()
    assert 'alt="picture 1" width="2" height="1"' in page
    assert "<output>position 1</output>" in page
    assert "Position &lt;b&gt;" in page
    assert 'class="controls" hidden' in page


def test_a_text_cannot_close_the_script_that_holds_it():
    page = PictureSlider([Frame([[0.0]], "</script><b>", "x")], "Position")._repr_html_()
    assert page.count("</script>") == 2
    with pytest.raises(ValueError, match=r"start must be 0..0, got 1"):
        PictureSlider([Frame([[0.0]], "x", "x")], "Position", start=1)
