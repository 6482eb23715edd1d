"""A chapter whose claim has become false does not build: one quantity is falsified, and an assertion of its cells fails."""

import pytest

from tests.book.run_cells import run_cells

# Chapter, text of a cell, and what stands there instead.
MUTATIONS = [
    ("02-rank", "assert numerical_rank(W) == 2", "W[2, 0] = 5.0\nassert numerical_rank(W) == 2"),
    (
        "02-rank",
        "B = torch.randn(200, 5, generator=generator)\nA = torch.randn(5, 120,",
        "B = torch.randn(200, 6, generator=generator)\nA = torch.randn(6, 120,",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("chapter", "old", "new"), MUTATIONS, ids=[f"{chapter}-{index}" for index, (chapter, *_) in enumerate(MUTATIONS)])
def test_a_false_claim_stops_the_build(chapter, old, new):
    result = run_cells(chapter, ((old, new),), capture_output=True)
    assert result.returncode == 1
    assert result.stderr.rstrip().rpartition("\n")[2].startswith("AssertionError"), result.stderr


@pytest.mark.slow
def test_a_text_that_no_cell_holds_is_refused():
    with pytest.raises(ValueError, match="no cell of 02-rank"):
        run_cells("02-rank", (("no such text", ""),))
