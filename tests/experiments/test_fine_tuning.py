"""One run of fine-tuning: what each method trains; trained weights are used again, but not for anything else."""

import json
import os
from dataclasses import replace

import fine_tuning
import methods
import pytest
from fine_tuning import Place, Sizes, fine_tune, prepare, settings_of

TINY = Sizes(training_examples=6, batch_size=2, validation=2, test=2, unseen=2)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "result.json", tmp_path, steps=2, sizes=TINY)


def run_of(name, rate=1e-3, seed=0):
    method = next(method for method in methods.methods_of("text_to_sql") if method.name == name)
    return settings_of(method, "reading", rate, seed, 2)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_each_method_trains_what_its_name_says():
    everything = {name for name, _ in prepare(run_of("full fine-tuning"))[0].named_parameters()}
    assert trained(prepare(run_of("full fine-tuning"))[0]) == everything
    assert trained(prepare(run_of("untouched"))[0]) == set()
    last = trained(prepare(run_of("last block"))[0])
    assert last == {name for name in everything if name.startswith("blocks.3.")}
    biases = trained(prepare(run_of("BitFit, all biases"))[0])
    assert biases == {name for name in everything if name.endswith(".bias")}
    assert {"blocks.0.up_proj.bias", "blocks.0.mlp_norm.bias", "final_norm.bias"} <= biases
    adapted = trained(prepare(run_of("LoRA q v, r = 2"))[0])
    assert {name.split(".", 2)[2] for name in adapted} == {f"attention.{p}_proj.lora_{f}" for p in "qv" for f in "AB"}


def test_every_arm_has_another_name_and_alpha_is_twice_the_rank():
    arms = methods.methods_of("text_to_sql")
    assert len({method.name for method in arms}) == len(arms) == 16
    layer = prepare(run_of("LoRA q v, r = 4"))[0].blocks[0].attention.q_proj
    assert (layer.rank, layer.alpha) == (4, 8.0)


def test_weights_that_were_trained_before_are_not_trained_again(place, monkeypatch):
    first, _, log = fine_tune(run_of("LoRA q v, r = 8"), place)
    again, _, same_log = fine_tune(replace(run_of("LoRA q v, r = 8"), stage="tuning"), place)
    assert log.resumed_at == 0
    assert same_log.resumed_at == 2
    assert same_log.losses == log.losses
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(bool((one == other).all()) for one, other in pairs)


@pytest.mark.parametrize("changed", [{"rate": 2e-3}, {"seed": 1}])
def test_other_settings_are_trained_anew(place, changed):
    fine_tune(run_of("LoRA q v, r = 8"), place)
    assert fine_tune(run_of("LoRA q v, r = 8", **changed), place)[2].resumed_at == 0


def test_what_is_older_than_a_fresh_sweep_is_trained_anew(place):
    fine_tune(run_of("LoRA q v, r = 8"), place)
    (kept,) = place.cache.glob("*.safetensors")
    os.utime(kept, (1000, 1000))
    fresh = replace(place, trained_since=2000.0)
    assert fine_tune(run_of("LoRA q v, r = 8"), fresh)[2].resumed_at == 0
    assert fine_tune(run_of("LoRA q v, r = 8"), fresh)[2].resumed_at == 2


def test_a_run_that_diverges_is_a_result_and_not_an_error(place, monkeypatch):
    def diverging(*_, **__):
        raise FloatingPointError("loss is nan")

    monkeypatch.setattr(fine_tuning, "train", diverging)
    entry = fine_tuning.run_method(run_of("full fine-tuning", rate=1e6), place)
    assert entry["diverged"]
    assert fine_tuning.headline(entry) == 0.0


def test_what_builds_on_the_comparison_says_that_it_is_missing_or_stale(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(methods, "RESULTS", tmp_path)
    for content, message in ((None, "is missing: run python experiments/methods.py"), ({"backbone_sha256": "0"}, "is of another backbone")):
        if content is not None:
            (tmp_path / "methods_reading.json").write_text(json.dumps(content))
        with pytest.raises(SystemExit) as ended:
            methods.earlier("reading")
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_the_tuned_rate_is_that_of_the_test_runs(capsys):
    runs = [
        {"arm": methods.FULL_FINE_TUNING.name, "stage": "tuning", "learning_rate": 5e-4},
        {"arm": methods.FULL_FINE_TUNING.name, "stage": "test", "learning_rate": 2e-3},
        {"arm": "another", "stage": "test", "learning_rate": 4e-3},
    ]
    assert methods.tuned_rate({"runs": runs}, methods.FULL_FINE_TUNING) == 2e-3
    with pytest.raises(SystemExit):
        methods.tuned_rate({"runs": runs[:1]}, methods.FULL_FINE_TUNING)
    assert "no test run of full fine-tuning yet" in capsys.readouterr().err
