"""Patterns in a stranger's config: those in use are read, those that could keep the machine busy for ever are not."""

import json

import pytest
from torch import nn

from lorabook import AdapterError, load_adapter, save_adapter
from lorabook.adapters.peft_config import check_pattern, parse_config

from .moving import CONFIG, adapt


def network():
    return nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"self_attention_q_proj": nn.Linear(6, 4)}) for _ in range(3))})


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "pattern",
    [
        ".?" * 40 + "Z",
        "(.|.)" * 40 + "Z",
        "((.|.)(.|.)(.|.)(.|.)(.|.)(.|.)(.|.))(.|.)(.|.)(.|.)(.|.)(.|.)(.|.)(.|.)(.|.)(.|.)(.|.)(.|.)(.|.)(.|.)(.|.)(.|.)Z",
        "(.+)+Z",
        "(.*)*Z",
        ".*" * 9 + "Z",
        "(?x:# [\n(.+)+Z # ]\n)",  # in the verbose mode the bracket is part of a comment, and what follows is not
        "(?#[)(.+)+(?#])Z",
        r"(.)(\1.?)(\2.?)Z",
        "(?P<a>.)(?P=a)Z",
        "(a)?(?(1)b|c)",
    ],
)
@pytest.mark.parametrize("setting", ["target_modules", "exclude_modules", "rank_pattern"])
def test_a_pattern_that_could_take_for_ever_is_refused(pattern, setting, tmp_path):
    save_adapter(adapt(network(), targets=("self_attention_q_proj",)), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, setting: {pattern: 2} if setting == "rank_pattern" else pattern}))
    with pytest.raises(AdapterError, match=r"could take too long: name the layers instead|is not a regular expression"):
        load_adapter(network(), tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        r"model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj",
        r"(?:.*\.)?[0-9]{1,2}\.mlp\.(?:up|down)",
        r".*?layers\.(1|2|3)\..*?(query|value)",
        r"^blocks\.0\.proj",
        r"(?i:.*Q_PROJ)",
        "|".join(rf"blocks\.{i}\.proj" for i in range(500)),
    ],
)
def test_patterns_as_people_write_them_are_read(pattern):
    check_pattern(pattern, "config")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "changes",
    [
        {"rank_pattern": {f"a{i}": 2 for i in range(200_000)}},
        {"alpha_pattern": {f"a{i}": 2 for i in range(200_000)}},
        {"target_modules": [f"a{i}" for i in range(300_000)]},
        {"modules_to_save": [f"a{i}" for i in range(300_000)]},
    ],
)
def test_a_flood_of_names_does_not_hold_up_the_reader(changes, tmp_path):
    save_adapter(adapt(network(), targets=("self_attention_q_proj",)), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, **changes}))
    before = repr(model := network())
    try:
        load_adapter(model, tmp_path)
    except AdapterError:
        assert repr(model) == before
    else:
        assert "modules_to_save" in changes  # names of no module in this model


def test_a_deep_model_with_a_rank_for_each_layer_is_read_at_once(tmp_path):
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(700)))
    ranks = {str(i): 1 + i % 3 for i in range(700)}
    adapt(model, targets=tuple(ranks), rank_pattern=ranks)
    save_adapter(model, tmp_path)
    assert len(load_adapter(nn.Sequential(*(nn.Linear(6, 6) for _ in range(700))), tmp_path, check_base=False)) == 700


@pytest.mark.parametrize(
    "text",
    [
        '{"peft_type": "LORA", "r": 2, "lora_alpha": 1e400, "target_modules": null}',
        '{"peft_type": "LORA", "r": 2, "lora_alpha": NaN, "target_modules": null}',
        '{"peft_type": "LORA", "r": 2, "r": 3, "lora_alpha": 4, "target_modules": null}',
        '{"peft_type": "LORA", "r": 2.0, "lora_alpha": 4, "target_modules": null}',
        '{"peft_type": "LORA", "r": ' + "9" * 5000 + ', "lora_alpha": 4, "target_modules": null}',
        '\ufeff{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": null}',
        "[" * 200_000,
        '{"a":' * 100_000,
        "",
    ],
)
def test_json_that_is_odd_is_refused(text):
    with pytest.raises(AdapterError):
        parse_config(text.encode(), "config")
