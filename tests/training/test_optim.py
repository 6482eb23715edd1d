"""Which tensor learns how fast, and which decays."""

import pytest
import torch
from torch import nn

from lorabook import LoRAConfig, add_lora
from lorabook.training.loop import train
from lorabook.training.optim import adamw, parameter_groups, set_learning_rate
from tests.training.tiny import adapted_gpt, examples, trained


def by_group(model, **settings):
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = adamw(model, **{"learning_rate": 0.25, **settings}).param_groups
    return {group["name"]: (group["lr"], group["weight_decay"], sorted(names[p] for p in group["params"])) for group in groups}


def small(**config):
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    add_lora(model, LoRAConfig(**{"rank": 2, "alpha": 8.0, "targets": ("1",), **config}))
    return model


def test_the_factors_are_told_apart_and_b_learns_faster():
    assert by_group(small(), weight_decay=0.5, lora_plus_ratio=16.0) == {"A": (0.25, 0.5, ["1.lora_A"]), "B": (4.0, 0.5, ["1.lora_B"])}


def test_matrices_decay_and_vectors_do_not():
    found = by_group(small(bias="lora_only", dora=True, train_modules=("3",)), weight_decay=0.5)
    assert found["matrices"][1:] == (0.5, ["3.layers.default.module.weight"])
    assert found["vectors"][1] == 0.0
    assert len(found["vectors"][2]) == 3  # the target's bias, DoRA's magnitude, the bias of the module trained in full
    assert any(name.endswith("magnitude") for name in found["vectors"][2])


@pytest.mark.parametrize("config", [{}, {"dora": True}, {"init": "pissa"}, {"freeze_a": True}, {"targets": ("0", "1")}])
def test_every_trainable_parameter_is_in_one_group(config):
    model = small(**config)
    grouped = [id(p) for parameters in parameter_groups(model).values() for p in parameters]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len(parameter_groups(model)["B"]) == len(config.get("targets", ("1",)))


def test_only_the_adapter_in_use_is_grouped():
    model = small()
    add_lora(model, LoRAConfig(rank=3, alpha=5.0, targets=("3",)), "other")
    assert by_group(model)["B"][2] == ["3.layers.other.lora_B"]


def test_full_fine_tuning_has_matrices_and_vectors():
    assert by_group(nn.Linear(6, 4)) == {"matrices": (0.25, 0.0, ["weight"]), "vectors": (0.25, 0.0, ["bias"])}


def test_the_first_step_moves_a_and_b_by_their_own_rates():
    model = adapted_gpt()
    before = trained(model)
    train(model, examples(), steps=1, learning_rate=0.01, batch_size=11, clip_norm=1e9, lora_plus_ratio=4.0)
    for name, tensor in trained(model).items():
        moved = (tensor - before[name]).abs().max().item()
        assert moved == pytest.approx(0.04 if name.endswith("lora_B") else 0.01, rel=1e-3)


def test_decay_alone_draws_an_adapter_to_the_backbone_and_b_faster_by_the_ratio():
    model = small()
    nn.init.ones_(model[1].lora_B)
    A, B = model[1].lora_A.detach().clone(), model[1].lora_B.detach().clone()
    optimizer = adamw(model, learning_rate=0.1, weight_decay=0.5, lora_plus_ratio=3.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model[1].lora_A.detach(), (1 - 0.1 * 0.5) * A)
    torch.testing.assert_close(model[1].lora_B.detach(), (1 - 0.3 * 0.5) * B)


def test_the_schedule_scales_every_group_from_its_own_peak():
    optimizer = adamw(small(), learning_rate=0.1, lora_plus_ratio=4.0)
    for factor in (0.5, 1.0, 0.25):
        set_learning_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * factor, 0.4 * factor])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, "got -1.0, 0.0 and 1.0"),
        ({"learning_rate": float("nan")}, "got nan"),
        ({"weight_decay": -0.1}, "got 0.25, -0.1 and 1.0"),
        ({"lora_plus_ratio": 0.0}, "got 0.25, 0.0 and 0.0"),
        ({"lora_plus_ratio": float("inf")}, "and inf"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=r"lora_plus_ratio above 0|at least 0") as caught:
        by_group(small(), **settings)
    assert message.split(" and ")[-1] in str(caught.value)


def test_a_ratio_without_a_b_to_speed_up_is_refused():
    with pytest.raises(ValueError, match=r"lora_plus_ratio is 16.0, but no lora_B trains: add_lora first"):
        adamw(nn.Linear(6, 4), learning_rate=0.1, lora_plus_ratio=16.0)
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        adamw(nn.Linear(6, 4).requires_grad_(False), learning_rate=0.1)
