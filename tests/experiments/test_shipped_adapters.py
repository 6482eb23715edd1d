"""The adapters that come with the book load onto its backbone and do what their result file says."""

import json

import pytest
from provenance import RESULTS, ROOT

from lorabook import count_parameters, load_adapter
from lorabook.language.backbone import load_backbone
from lorabook.tasks import text_to_sql

RUNS = {run["arm"]: run for run in json.loads((RESULTS / "adapters.json").read_text(encoding="utf-8"))["runs"]}


def test_every_adapter_in_the_folder_has_its_entry_and_the_other_way_round():
    assert {path.name for path in (ROOT / "assets" / "adapters").iterdir()} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_an_adapter_loads_onto_the_backbone_and_no_other(name):
    model, _ = load_backbone()
    paths = load_adapter(model, ROOT / RUNS[name]["directory"])
    rank, layers = (64 if "64" in name else 8), (8 if "qv" in name else 24)
    assert len(paths) == layers
    assert model.get_submodule(paths[0]).rank == rank
    assert count_parameters(model).trainable == sum(
        layer.lora_A.numel() + layer.lora_B.numel() for layer in map(model.get_submodule, paths)
    )


def test_the_adapter_answers_as_its_entry_says():
    model, tokenizer = load_backbone()
    load_adapter(model, ROOT / RUNS["text_to_sql"]["directory"])
    answers = text_to_sql.predict(model, tokenizer, text_to_sql.examples("test", 100, seed=0))
    told = RUNS["text_to_sql"]["test"]["execution_accuracy"]
    spread = (told * (1 - told) / 100) ** 0.5
    assert abs(text_to_sql.execution_accuracy(answers) - told) < 4 * spread
