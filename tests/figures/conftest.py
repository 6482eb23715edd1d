"""Every figure is drawn in the book's style, and closed."""

import matplotlib.pyplot as plt
import pytest

from lorabook.figures.style import use_book_style


@pytest.fixture(autouse=True)
def book_style():
    with plt.rc_context():
        use_book_style()
        yield
    plt.close("all")
