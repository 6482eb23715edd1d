"""``python -m lorabook count --preset``: shapes in place of a model."""

import json

import pytest

from lorabook.__main__ import main
from lorabook.measure.presets import PRESETS


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = main(["count", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run


def test_a_preset_is_counted_without_its_weights(run):
    code, out, _ = run("--preset", "llama-2-7b", "--rank", 16, "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["trainable"], report["total"]) == (39_976_960, PRESETS["llama-2-7b"].total + 39_976_960)
    assert report["trainable"] == sum(layer["trainable"] for layer in report["layers"]) == report["adapter_bytes"] // 4
    layer = report["layers"][0]
    assert layer["trainable"] == 16 * (layer["out_features"] + layer["in_features"])


def test_it_reads_as_the_other_counts_do(run):
    code, out, _ = run("--preset", "gpt2", "--targets", "c_attn")
    assert code == 0
    assert "transformer.h.11.attn.c_attn" in out
    assert "294,912 of 124,734,720 parameters train (0.24%)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "gpt2", "--alpha", 4, "--dora"), "--alpha, --dora means nothing beside --preset"),
        (("--preset", "gpt2", "--backbone", "."), "--backbone means nothing beside --preset"),
        (("--preset", "gpt2", "--targets", "q_proj"), "layers end in c_attn"),
        (("--preset", "gpt5"), "invalid choice: 'gpt5'"),
    ],
)
def test_what_means_nothing_is_refused(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
