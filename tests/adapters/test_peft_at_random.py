"""Random configurations against PEFT, and random damage to directories: slices of what two commands in experiments/ run at length."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import fuzz_adapters
import peft_agreement
from random_adapters import KINDS

save = peft_agreement.save_adapter


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_a_slice_of_the_thousand_random_configurations_computes_what_peft_does(name):
    errors = {seed: peft_agreement.compare(seed, KINDS[name]) for seed in range(90_000, 90_030)}
    assert peft_agreement.failures(errors, KINDS[name]) == []


@pytest.mark.slow
def test_the_command_fails_where_the_libraries_disagree(monkeypatch, tmp_path):
    move = peft_agreement.move_adapter
    monkeypatch.setattr(peft_agreement, "save_adapter", lambda model, folder: (save(model, folder), move(model, 1e-4)))
    monkeypatch.setattr(sys, "argv", ["experiments/peft_agreement.py", "--number", "2", "--out", str(tmp_path / "x.json")])
    with pytest.raises(SystemExit, match="do not agree"):
        peft_agreement.main()
    assert json.loads((tmp_path / "x.json").read_text())["draws"]["harsh"]["0"]["failures"] == [0, 1]


def test_the_committed_results_are_those_of_a_thousand_configurations_of_each_draw_and_none_failed():
    draws = json.loads((Path(__file__).parents[2] / "assets/results/peft_agreement.json").read_text())["draws"]
    assert draws.keys() == KINDS.keys()
    for name, runs in draws.items():
        assert len(runs) == 3
        for run in runs.values():
            assert run["configurations"] == 1000
            assert run["failures"] == []
            assert run["float64_worst"] <= 1e-10
            assert run["float32_worst"] <= (1e-5 if KINDS[name].as_in_training else 1e-3)


@pytest.mark.slow
def test_2000_mutated_directories_load_right_or_are_refused_with_the_model_untouched():
    outcomes = fuzz_adapters.fuzz(2000, 1_000_000)
    assert outcomes["loaded"] + outcomes["refused"] == 2000
    assert outcomes["loaded"] >= 50
    assert outcomes["refused"] >= 1000
