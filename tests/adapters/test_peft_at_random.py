"""Random configurations against PEFT, and random damage to directories: slices of what two commands in experiments/ run at length."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import fuzz_adapters
import peft_agreement


def test_a_slice_of_the_thousand_random_configurations_agrees_with_peft_to_1e_5():
    assert max(peft_agreement.compare(seed) for seed in range(2000, 2060)) < 1e-5


def test_2000_mutated_directories_load_right_or_are_refused_with_the_model_untouched():
    outcomes = fuzz_adapters.fuzz(2000, 1_000_000)
    assert outcomes["loaded"] + outcomes["refused"] == 2000
    assert outcomes["loaded"] >= 50
    assert outcomes["refused"] >= 1000
