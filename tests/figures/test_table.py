"""Tables as a page gets them, and as text."""

import pytest
from bs4 import BeautifulSoup

from lorabook.figures.notebook import Table

TABLE = Table(("what", "count"), [("a < b", 1234567), ("both", 5)])


def test_on_a_page_it_is_a_table_with_escaped_cells():
    rows = BeautifulSoup(TABLE._repr_html_(), "html.parser").select("tr")
    assert [[cell.text for cell in row.select("th, td")] for row in rows] == [["what", "count"], ["a < b", "1,234,567"], ["both", "5"]]
    assert ["right" in cell.get("style") for cell in rows[0].select("th")] == [False, True]


def test_a_table_has_a_name_and_scrolls_by_keyboard():
    box = BeautifulSoup(Table(("what",), [("a",)], "Two <things>")._repr_html_(), "html.parser").div
    assert (box["role"], box["tabindex"], box["aria-label"]) == ("region", "0", "Table: Two <things>")
    assert box.caption.text == "Two <things>"


def test_as_text_its_columns_are_aligned():
    assert repr(TABLE).splitlines() == ["what       count", "a < b  1,234,567", "both           5"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells"):
        Table(("what", "count"), [("a",)])


def test_without_rows_the_header_remains():
    assert repr(Table(("what", "count"), [])) == "what  count"
    assert "what" in Table(("what", "count"), [])._repr_html_()
