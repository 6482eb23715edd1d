"""The loop's speed against a loop that does only what it must."""

import importlib.util
import statistics
import sys
from pathlib import Path

import pytest

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "bench_loop.py"


@pytest.mark.slow
def test_the_loop_keeps_95_percent_of_a_bare_loops_throughput(monkeypatch):
    """By processor time, pair by pair of neighbouring steps, and the median of the pairs, so that a busy machine does not decide it.

    With 40 pairs, medians of a quiet machine lie between 0.96 and 1.01, so near the bound that luck decides; 160 halve the spread.
    """
    spec = importlib.util.spec_from_file_location("bench_loop", EXPERIMENT)
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_loop", bench)  # where its dataclass looks for its annotations
    spec.loader.exec_module(bench)
    ratios = bench.measure(bench.backbone(128, 2), bench.prompts(200), batch_size=16, steps=163)
    assert len(ratios.cpu) == 160
    assert statistics.median(ratios.cpu) >= 0.95
