"""Every experiment still runs, in its tiny version, and writes nothing into the book."""

import os
import subprocess
import sys

import pytest
from provenance import RESULTS, ROOT


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_experiment_runs_in_its_quick_version():
    before = {path.name: path.read_bytes() for path in RESULTS.iterdir()}
    result = subprocess.run(
        [sys.executable, "-m", "experiments.all", "--quick"],
        cwd=ROOT,
        env=os.environ | {"TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert {path.name: path.read_bytes() for path in RESULTS.iterdir()} == before


@pytest.mark.parametrize("script", ["gpu.py", "gpu_tasks.py"])
def test_a_gpu_experiment_says_in_one_line_that_it_needs_a_gpu(script):
    result = subprocess.run(
        [sys.executable, f"experiments/{script}"],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"{script}: needs a GPU")
    assert result.stderr.count("\n") == 1
