"""The straight lines of the calculator equal the package's counts at every rank."""

import pytest

from lorabook.measure.costs import costs, preset_targets
from lorabook.measure.counting import count_lora
from lorabook.measure.flops import training_flops
from lorabook.measure.memory import memory_ledger
from lorabook.measure.presets import PRESETS

SOME = ("gpt2", "roberta-base", "llama-2-7b", "llama-3-8b", "gpt3-175b")


@pytest.mark.parametrize("rank", [1, 7, 256])
@pytest.mark.parametrize("name", SOME)
def test_lines_equal_the_counts_at_every_rank(name, rank):
    shape = PRESETS[name]
    targets = preset_targets(shape)
    found = costs([shape])
    assert len(found) == 3 * 3 * 2 * 7
    for cost in found:
        settings = {"rank": rank, "targets": targets[cost.targets]}
        ledger = memory_ledger(shape, cost.method, precision=cost.precision, **settings)
        trained = shape.total if cost.method == "full" else count_lora(shape, targets[cost.targets], rank).trainable
        flops = training_flops(shape, "full" if cost.method == "full" else "lora", **settings)
        expected = {
            "weights": ledger.weights,
            "gradients": ledger.gradients,
            "optimizer": ledger.optimizer,
            "memory": ledger.total,
            "trained": trained,
            "checkpoint": trained * {"bfloat16": 2, "float32": 4}[cost.precision],
            "operations": flops.total,
        }
        assert cost.at(rank) == expected[cost.quantity]
        assert cost.per_rank == 0 or cost.method != "full"


@pytest.mark.parametrize("name", PRESETS)
def test_attention_holds_every_attention_matrix_and_no_other(name):
    shape = PRESETS[name]
    targets = preset_targets(shape)
    layers = count_lora(shape, targets["attention"]).layers
    assert len(layers) == shape.n_layer * (2 if name.startswith("gpt2") else 4)
    assert all(".attn." in path or "attention." in path or "self_attn." in path for path in layers)
    assert len(count_lora(shape, targets["query and value"]).layers) == shape.n_layer * (1 if name.startswith("gpt2") else 2)
