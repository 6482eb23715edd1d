"""What the runs of an experiment say together."""

import forgetting
import intrinsic_dimension
import pytest


def subspace(start, dimension, *scores, stage="test"):
    arm = {"start": start, "dimension": dimension, "stage": stage}
    return [{**arm, "test": {"accuracy": score}} for score in scores]


def test_the_intrinsic_dimension_is_the_smallest_whose_mean_reaches_90_percent():
    runs = [
        *subspace("pre-trained", 10, 0.1),
        *subspace("pre-trained", 100, 0.95, 0.75),  # one seed alone does not count
        *subspace("pre-trained", 1000, 0.91, 0.89),
        *subspace("pre-trained", 3000, 0.99, 0.99),
    ]
    found = intrinsic_dimension.summarize(runs, 1.0)
    assert found["pre-trained"] == {"full": 1.0, "dimension": 1000}


def test_random_weights_are_held_to_training_from_scratch():
    runs = [*subspace("random", 1000, 0.1), *subspace("random", 10_000, 0.28), *subspace("random", None, 0.3)]
    assert intrinsic_dimension.summarize(runs, 1.0)["random"] == {"full": 0.3, "dimension": 10_000}


def test_where_no_dimension_reaches_it_there_is_none():
    runs = [*subspace("random", 1000, 0.0), *subspace("random", None, 0.0), *subspace("pre-trained", 10, 0.5)]
    assert intrinsic_dimension.summarize(runs, 1.0) == {
        "pre-trained": {"full": 1.0, "dimension": None},
        "random": {"full": 0.0, "dimension": None},
    }


def fine_tuned(method, test, bits, *, tuned=True, disabled=None, arm=None):
    entry = {"method": method, "arm": arm or method, "seed": 0, "tuned": tuned, "test": {"accuracy": test}}
    entry["bits_per_byte"] = {"topics": bits, "python": bits + 1}
    return entry | ({"bits_per_byte_disabled": {"topics": disabled, "python": disabled + 1}} if disabled else {})


def test_lora_is_compared_with_the_full_fine_tuning_of_the_nearest_score():
    runs = [
        fine_tuned("untouched", 0.0, 2.0),
        fine_tuned("full fine-tuning", 0.99, 2.9),
        fine_tuned("full fine-tuning", 0.93, 2.5, tuned=False, arm="full fine-tuning, 100 steps"),
        fine_tuned("LoRA", 0.94, 2.2, disabled=2.0),
        fine_tuned("LoRA", 0.5, 2.1, disabled=2.0, tuned=False),
    ]
    found = forgetting.summarize(runs)
    assert found["disabled_equals_backbone"]
    assert found["before"] == 2.5
    (pair,) = found["matched"]
    assert pair["full"]["arm"] == "full fine-tuning, 100 steps"
    assert pair["lora"]["bits_per_byte_lost"] == pytest.approx(0.2)
    assert pair["full"]["bits_per_byte_lost"] == pytest.approx(0.5)


def test_an_adapter_that_leaves_a_trace_when_disabled_is_reported():
    runs = [fine_tuned("untouched", 0.0, 2.0), fine_tuned("full fine-tuning", 0.9, 2.9), fine_tuned("LoRA", 0.9, 2.2, disabled=2.001)]
    assert not forgetting.summarize(runs)["disabled_equals_backbone"]
