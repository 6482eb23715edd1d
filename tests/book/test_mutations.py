"""A chapter whose claim has become false does not build: one quantity is falsified, and an assertion of its cells fails."""

import pytest

from tests.book.run_cells import run_cells

# Chapter, text of a cell, and what stands there instead.
MUTATIONS = [
    ("01-full-fine-tuning", "copy_bytes = 2 * GPT3", "copy_bytes = 4 * GPT3"),
    ("02-rank", "assert numerical_rank(W) == 2", "W[2, 0] = 5.0\nassert numerical_rank(W) == 2"),
    ("03-best-approximation", '"spectral": sigma[r]}', '"spectral": sigma[r - 1]}'),
    ("04-factorizing", "least_loss = sigma[r:].square().sum() / 2", "least_loss = sigma[r - 1 :].square().sum() / 2"),
    ("05-likelihood", "marginal(order[: t + 1]) / marginal(order[:t])", "marginal(order[: t + 1]) / marginal(())"),
    (
        "06-task",
        "prompt = both[:start] + [IGNORE] * (len(both) - start)",
        "prompt = both[: start + 1] + [IGNORE] * (len(both) - start - 1)",
    ),
    ("07-update", "G = single.blocks[0].up_proj.weight.grad", "G = single.blocks[0].up_proj.weight.detach()"),
    ("08-lora-linear", "by_parts = x @ W.T + s * (x @ A.T) @ B.T", "by_parts = x @ W.T + (x @ A.T) @ B.T"),
    ("09-counting", 'counted = count_lora(layer, ("up_proj",), rank=8)', 'counted = count_lora(layer, ("up_proj",), rank=9)'),
    ("10-alpha", 'equivalent_setting(base, p, q, "sgd"), SGD)', 'equivalent_setting(base, p, q, "adam"), SGD)'),
    ("11-fine-tuning", 'test = text_to_sql.examples("test", QUESTIONS, seed=0)', 'test = text_to_sql.examples("train", QUESTIONS, seed=0)'),
    ("12-what-it-learns", "(4, 6.91, 0.32, 21.67, 0.02)", "(4, 6.91, 0.32, 21.67, 0.32)"),
    ("13-merging", "merged.merge()\n\n\ndef flops", "\n\ndef flops"),
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
