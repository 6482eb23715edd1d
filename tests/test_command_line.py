"""The command line: what each command does, and that bad input is one line and exit code 2."""

import argparse
import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file

import lorabook
from lorabook import LoRAConfig, add_lora, count_parameters, load_adapter, save_adapter
from lorabook.__main__ import build_parser, main
from lorabook.language.backbone import load_backbone
from lorabook.language.generate import generate
from lorabook.language.gpt import GPT, GPTConfig
from lorabook.language.likelihood import conditional_example
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.tasks import TASKS
from lorabook.training.loop import train

COMMANDS = ("finetune", "evaluate", "count", "merge", "export", "generate")
LINEAR = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "up_proj", "down_proj")


def write_backbone(directory, seed=0, context=224):
    """A backbone of one small block, its weights large enough that every part of it matters."""
    tokenizer = BytePairTokenizer.train(["SELECT name FROM rivers WHERE sea = ", "which rivers are there?\nSQL:"], vocab_size=270)
    model = GPT(GPTConfig(tokenizer.vocab_size, context=context, n_layer=1, n_head=2, n_embd=16))
    generator = torch.Generator().manual_seed(seed)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    for name, tensor in weights.items():
        if "norm" not in name:
            tensor.normal_(std=0.3, generator=generator)
    directory.mkdir()
    save_file(weights, directory / "backbone.safetensors")
    tokenizer.save(directory / "tokenizer.json")
    (directory / "backbone.json").write_text(json.dumps({"config": model.config.__dict__}))
    return directory


def write_adapter(directory, backbone, **settings):
    """An adapter that changes something, as one that has been trained does."""
    model, _ = load_backbone(backbone)
    generator = torch.Generator().manual_seed(1)
    add_lora(model, LoRAConfig(**{"rank": 3, "alpha": 7.0, "targets": "all-linear", **settings}), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    save_adapter(model, directory)
    return directory


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("backbones") / "small")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, backbone):
    return write_adapter(tmp_path_factory.mktemp("adapters") / "changed", backbone)


@dataclass(frozen=True)
class Letter:
    prompt: str
    target: str


@dataclass(frozen=True)
class Answer:
    example: Letter
    text: str
    correct: bool


def answer_letters(model, tokenizer, questions):
    prompts = [tokenizer.encode(question.prompt) for question in questions]
    texts = [tokenizer.decode(ids) for ids in generate(model, prompts, max_new_tokens=3, stop_id=tokenizer.end_id)]
    return [Answer(question, text, text == question.target) for question, text in zip(questions, texts, strict=True)]


@pytest.fixture
def letters(monkeypatch):
    """A task so easy that the smallest model learns it at once: the letter after the one that was named."""
    task = SimpleNamespace(
        SPLITS=("train", "validation", "test"),
        examples=lambda split, count, *, seed: [Letter(f"{'abcd'[i % 4]}=", "bcde"[i % 4]) for i in range(count)],
        encode=lambda example, tokenizer: conditional_example(
            tokenizer.encode(example.prompt), [*tokenizer.encode(example.target), tokenizer.end_id]
        ),
        predict=answer_letters,
        scores=lambda predictions: {"exact": sum(prediction.correct for prediction in predictions) / len(predictions)},
    )
    for module in ("arguments", "evaluate", "finetune"):
        monkeypatch.setattr(f"lorabook.command_line.{module}.TASKS", {**TASKS, "letters": task})
    return task


@pytest.fixture
def run(capsys):
    """Run a command in this process; returns its exit code, standard output and standard error."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def succeed(run):
    def succeed(*arguments):
        code, out, err = run(*arguments)
        assert code == 0, err
        return out

    return succeed


def refused(result):
    """The message, once it is known to be all that the command said."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def same_tensors(*adapters):
    """Whether two adapters are equal bit for bit. Their files need not be: safetensors puts metadata in any order."""
    first, second = (load_arrays(adapter / "adapter_model.safetensors") for adapter in adapters)
    return first.keys() == second.keys() and all(array.tobytes() == second[key].tobytes() for key, array in first.items())


def parsers():
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices


# Help


def test_there_are_these_commands():
    assert tuple(parsers()) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_in_a_commands_help_can_be_parsed(command, succeed):
    help_text = succeed(command, "--help")
    examples = re.findall(rf"python -m lorabook ({command} .*)", help_text.partition("example:\n")[2])
    assert examples
    for example in examples:
        build_parser().parse_args(shlex.split(example))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_and_names_its_default(command):
    for action in parsers()[command]._actions:
        assert action.help
        takes_value = action.nargs != 0
        assert not takes_value or action.required or "--check" in action.help or "(default: " in action.help, action.option_strings


def test_version_is_the_packages(succeed):
    assert succeed("--version") == f"lorabook {lorabook.__version__}, torch {torch.__version__}\n"


# Bad input


FINETUNE = "finetune --task letters --backbone {backbone} --out {new}"
BAD = {
    "no command": ("", "COMMAND"),
    "unknown command": ("tune", "invalid choice: 'tune'"),
    "unknown option": ("count --ranks 3", "--ranks"),
    "abbreviated option": ("count --adap {adapter}", "--adap"),
    "unknown task": ("evaluate --task cooking", "'cooking'"),
    "unknown split": ("evaluate --task letters --backbone {backbone} --split exam", "must be one of train, validation, test, got 'exam'"),
    "no such backbone": ("count --backbone {new}", "does not exist"),
    "file as backbone": ("count --backbone {file}", "is a file"),
    "empty backbone": ("count --backbone {empty}", "lacks backbone.json"),
    "damaged backbone": ("count --backbone {damaged}", "cannot be read"),
    "no such adapter": ("evaluate --task letters --backbone {backbone} --adapter {new}", "does not exist"),
    "file as adapter": ("generate --prompt a --backbone {backbone} --adapter {file}", "is a file"),
    "directory without adapter": ("export --check --backbone {backbone} --adapter {empty}", "holds no adapter_config.json"),
    "adapter of another base": ("merge --backbone {other} --adapter {adapter} --out {new}", "another base"),
    "adapter of another shape": ("merge --backbone {empty} --adapter {adapter} --out {new}", "lacks backbone.json"),
    "rank zero": ("count --backbone {backbone} --rank 0", "--rank: must be a whole number of 1 or more, got '0'"),
    "rank too large": ("count --backbone {backbone} --rank 17", "rank must be 1..16"),
    "rank of words": (FINETUNE + " --rank many", "got 'many'"),
    "rank too large for training": (FINETUNE + " --rank 17", "rank must be 1..16"),
    "unknown target": (FINETUNE + " --targets query", "no linear layer matches 'query'; linear layers end in q_proj"),
    "target among others": ("count --backbone {backbone} --targets q_proj,all-linear", "no linear layer matches 'all-linear'"),
    "empty target": (FINETUNE + " --targets q_proj,", "--targets"),
    "infinite alpha": (FINETUNE + " --alpha inf", "--alpha"),
    "DoRA on PiSSA": (FINETUNE + " --dora --init pissa", "init"),
    "rate not a number": (FINETUNE + " --learning-rate nan", "--learning-rate: must be a number above 0, got 'nan'"),
    "dropout of all": (FINETUNE + " --dropout 1", "of at least 0 and below 1"),
    "negative seed": (FINETUNE + " --seed -1", "--seed"),
    "seed too large": (FINETUNE + " --seed 4294967296", "--seed"),
    "rank beside full": (FINETUNE + " --full --rank 4 --rank-stabilized", "--rank, --rank-stabilized means nothing beside --full"),
    "ratio beside full": (FINETUNE + " --full --lora-plus-ratio 4", "--lora-plus-ratio"),
    "rank beside adapter": ("count --backbone {backbone} --adapter {adapter} --rank 4", "means nothing beside --adapter"),
    "context too short": ("finetune --task text_to_sql --examples 3 --backbone {short} --out {new}", "reads at most 5"),
    "context too short to score": ("evaluate --task text_to_sql --count 3 --backbone {short}", "reads at most 5"),
    "file as out": ("finetune --task letters --backbone {backbone} --out {file}", "is a file"),
    "out below a file": ("finetune --task letters --backbone {backbone} --out {file}/adapter", "leads through"),
    "out not empty": ("merge --backbone {backbone} --adapter {adapter} --out {full}", "is not empty, it holds 'notes.txt'"),
    "out is the backbone": ("merge --backbone {backbone} --adapter {adapter} --out {backbone} --force", "is the backbone itself"),
    "checkpoint is a directory": (FINETUNE + " --checkpoint {empty}", "is a directory"),
    "checkpoint below a file": (FINETUNE + " --checkpoint {file}/run", "leads through"),
    "export to nowhere": ("export --backbone {backbone} --adapter {adapter}", "either --out DIR or --check"),
    "export and check": ("export --backbone {backbone} --adapter {adapter} --out {new} --check", "either --out DIR or --check"),
    "empty prompt": ("generate --backbone {backbone} --prompt ''", "--prompt is empty"),
    "prompt not UTF-8": ("generate --backbone {backbone} --prompt \udcff", "not UTF-8"),
    "prompt as long as the context": ("generate --backbone {short} --prompt 12345", "has 5 tokens, and this backbone reads at most 5"),
    "the same text twice": ("generate --backbone {backbone} --prompt a --count 2", "add --temperature"),
    "no such device": ("generate --backbone {backbone} --prompt a --device abacus", "--device abacus cannot be used"),
}


@pytest.fixture(scope="module")
def there(tmp_path_factory, backbone, adapter):
    """Paths of all kinds."""
    root = tmp_path_factory.mktemp("there")
    for name in ("empty", "full"):
        (root / name).mkdir()
    for path in (root / "file", root / "full" / "notes.txt"):
        path.write_text("mine")
    damaged = write_backbone(root / "damaged", seed=2)
    (damaged / "backbone.safetensors").write_bytes(b"\0" * 100)
    return {
        **{name: root / name for name in ("empty", "full", "file", "damaged")},
        "backbone": backbone,
        "adapter": adapter,
        "other": write_backbone(root / "other", seed=1),
        "short": write_backbone(root / "short", context=5),
        "new": root / "new",
    }


def contents(there):
    return {path: path.read_bytes() for place in there.values() for path in place.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_exit_code_2_and_writes_nothing(case, run, there):
    line, part = BAD[case]
    before = contents(there)
    message = refused(run(*(word.format(**there) for word in shlex.split(line))))
    assert part in message
    assert contents(there) == before
    assert not there["new"].exists()


def test_an_out_that_cannot_be_written_is_refused_before_training(run, letters, backbone, tmp_path, monkeypatch):
    def deny(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", deny)
    letters.examples = None  # to draw any would be an error
    message = refused(run("finetune", "--task", "letters", "--backbone", backbone, "--out", tmp_path / "new"))
    assert "cannot be written: Permission denied" in message


def test_the_remedy_for_another_base_is_an_option(run, there):
    message = refused(run("generate", "--prompt", "a", "--backbone", there["other"], "--adapter", there["adapter"]))
    assert "--backbone" in message
    assert "check_base" not in message


# finetune and evaluate


TRAIN = ("--examples", 8, "--validation", 4, "--batch-size", 4, "--steps", 100, "--learning-rate", 0.02, "--rank", 5, "--alpha", 9)


def test_a_finetuned_adapter_is_scored_by_finetune_and_by_evaluate(succeed, letters, backbone, tmp_path):
    out = succeed("finetune", "--task", "letters", "--backbone", backbone, "--out", tmp_path / "adapter", *TRAIN)
    assert "validation exact 1.0000 (4 questions)" in out
    model, _ = load_backbone(backbone)
    assert load_adapter(model, tmp_path / "adapter") == tuple(f"blocks.0.{name}" for name in LINEAR)
    assert str(count_parameters(model)) in out
    scored = ("evaluate", "--task", "letters", "--backbone", backbone, "--count", 12, "--json")
    assert json.loads(succeed(*scored))["scores"] == {"exact": 0.0}
    report = json.loads(succeed(*scored, "--adapter", tmp_path / "adapter"))
    assert report == {
        "task": "letters",
        "split": "test",
        "count": 12,
        "seed": 0,
        "adapter": str(tmp_path / "adapter"),
        "scores": {"exact": 1.0},
    }


@pytest.mark.parametrize("settings", [("--init", "pissa"), ("--dora",), ("--rank-stabilized", "--lora-plus-ratio", 4)])
@pytest.mark.usefixtures("letters")
def test_variants_of_lora_are_saved_so_that_evaluate_finds_what_was_trained(settings, succeed, backbone, tmp_path):
    out = succeed("finetune", "--task", "letters", "--backbone", backbone, "--out", tmp_path / "new", *TRAIN, *settings)
    assert "validation exact 1.0000" in out
    report = succeed("evaluate", "--task", "letters", "--backbone", backbone, "--adapter", tmp_path / "new", "--count", 4)
    assert "exact  1.0000" in report


@pytest.mark.usefixtures("letters")
def test_full_finetuning_saves_a_backbone(succeed, backbone, tmp_path):
    settings = ("--examples", 8, "--validation", 4, "--batch-size", 4, "--steps", 60, "--learning-rate", 0.01)
    out = succeed("finetune", "--full", "--task", "letters", "--backbone", backbone, "--out", tmp_path / "new", *settings)
    model, _ = load_backbone(tmp_path / "new")
    total = count_parameters(model).total
    assert f"{total:,} of {total:,} parameters train (100.00%)" in out
    assert json.loads((tmp_path / "new" / "backbone.json").read_text())["origin"]["settings"]["learning_rate"] == 0.01
    assert "exact  1.0000" in succeed("evaluate", "--task", "letters", "--backbone", tmp_path / "new", "--count", 4)


@pytest.mark.usefixtures("letters")
def test_the_same_seed_trains_the_same_adapter_and_another_seed_another(succeed, backbone, tmp_path):
    command = ("finetune", "--task", "letters", "--backbone", backbone, *TRAIN, "--steps", 3, "--validation", 0)
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        succeed(*command, "--seed", seed, "--out", tmp_path / name)
    assert same_tensors(tmp_path / "a", tmp_path / "b")
    assert not same_tensors(tmp_path / "a", tmp_path / "c")


@pytest.mark.usefixtures("letters")
def test_the_seed_decides_how_an_adapter_starts(succeed, backbone, tmp_path):
    # A rate so small that A stays where it starts.
    command = ("finetune", "--task", "letters", "--backbone", backbone, *TRAIN, "--steps", 1, "--validation", 0, "--learning-rate", 1e-30)
    for seed in (5, 6):
        succeed(*command, "--seed", seed, "--out", tmp_path / str(seed))
    first, second = (load_file(tmp_path / seed / "adapter_model.safetensors") for seed in "56")
    assert not any(torch.equal(first[key], second[key]) for key in first if "lora_A" in key)


@pytest.mark.usefixtures("letters")
def test_every_training_option_reaches_the_loop(succeed, backbone, tmp_path, monkeypatch):
    received = []

    def spy(model, examples, **settings):
        received.append({**settings, "examples": len(examples)})
        return train(model, examples, **settings)

    monkeypatch.setattr("lorabook.command_line.finetune.train", spy)
    given = {
        "steps": 2,
        "learning_rate": 0.003,
        "batch_size": 6,
        "micro_batch_size": 4,
        "lora_plus_ratio": 5.0,
        "precision": "bfloat16",
        "seed": 9,
        "checkpoint": tmp_path / "run",
        "checkpoint_every": 7,
        "examples": 11,
    }
    options = (word for name, value in given.items() for word in ("--" + name.replace("_", "-"), value))
    succeed("finetune", "--task", "letters", "--backbone", backbone, "--out", tmp_path / "new", "--validation", 0, *options)
    assert received == [{**given, "description": "letters"}]


@pytest.mark.parametrize(("option", "rate"), [((), "0.005"), (("--full",), "0.001")])
@pytest.mark.usefixtures("letters")
def test_the_default_learning_rate_is_the_one_in_the_help(option, rate, succeed, backbone, tmp_path):
    assert "default: 0.005, with --full 0.001" in " ".join(succeed("finetune", "--help").split())
    tail = ("--task", "letters", "--backbone", backbone, "--steps", 2, "--batch-size", 4, "--validation", 0, *option)
    succeed("finetune", *tail, "--out", tmp_path / "default")
    succeed("finetune", *tail, "--out", tmp_path / "given", "--learning-rate", rate)
    file = "backbone.safetensors" if option else "adapter_model.safetensors"
    default, given = (load_file(tmp_path / name / file) for name in ("default", "given"))
    assert all(torch.equal(default[key], given[key]) for key in default)


@pytest.mark.usefixtures("letters")
def test_micro_batches_leave_the_adapter_the_same_within_rounding(succeed, backbone, tmp_path):
    command = ("finetune", "--task", "letters", "--backbone", backbone, *TRAIN, "--steps", 3, "--validation", 0)
    succeed(*command, "--out", tmp_path / "whole")
    succeed(*command, "--out", tmp_path / "parts", "--micro-batch-size", 3)
    whole, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    for key, tensor in whole.items():
        torch.testing.assert_close(parts[key], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("letters")
def test_force_writes_into_a_directory_and_leaves_what_else_it_holds(succeed, run, backbone, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    command = ("finetune", "--task", "letters", "--backbone", backbone, *TRAIN, "--steps", 2, "--validation", 0, "--out", tmp_path)
    refused(run(*command))
    succeed(*command, "--force")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert load_adapter(load_backbone(backbone)[0], tmp_path)


@pytest.mark.usefixtures("letters")
def test_a_checkpoint_of_a_run_with_other_settings_or_of_none_is_refused(succeed, run, backbone, tmp_path):
    command = ("finetune", "--task", "letters", "--backbone", backbone, *TRAIN, "--validation", 0, "--checkpoint")
    succeed(*command, tmp_path / "run", "--steps", 3, "--out", tmp_path / "a")
    (tmp_path / "notes.txt").write_text("mine")
    for checkpoint, complaint in (("run", "is of another run"), ("notes.txt", "is not a checkpoint that can be read")):
        code, _, err = run(*command, tmp_path / checkpoint, "--steps", 4, "--out", tmp_path / "b")
        assert code == 2
        assert complaint in err.splitlines()[-1]
        assert not (tmp_path / "b").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("letters")
def test_a_checkpoint_may_lie_in_out(succeed, backbone, tmp_path):
    command = ("finetune", "--task", "letters", "--backbone", backbone, *TRAIN, "--steps", 3, "--validation", 0)
    succeed(*command, "--out", tmp_path / "a", "--checkpoint", tmp_path / "run")
    (tmp_path / "b").mkdir()
    (tmp_path / "run").rename(tmp_path / "b" / "run")
    out = succeed(*command, "--out", tmp_path / "b", "--checkpoint", tmp_path / "b" / "run")
    assert "resumed at step 3" in out
    assert same_tensors(tmp_path / "a", tmp_path / "b")


@pytest.mark.usefixtures("letters")
def test_a_loss_that_is_not_finite_ends_with_exit_code_1_and_saves_nothing(run, backbone, tmp_path):
    code, _, err = run("finetune", "--task", "letters", "--backbone", backbone, "--out", tmp_path / "new", *TRAIN, "--learning-rate", 1e38)
    assert code == 1
    assert "lower the learning rate" in err.splitlines()[-1]
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("letters")
def test_a_full_disk_is_one_line_with_exit_code_1(run, backbone, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "adapter")

    monkeypatch.setattr("lorabook.command_line.finetune.save_adapter", full)
    code, _, err = run("finetune", "--task", "letters", "--backbone", backbone, "--out", tmp_path / "new", *TRAIN, "--steps", 1)
    assert code == 1
    assert "No space left on device" in err.splitlines()[-1]


def test_evaluate_shows_what_the_model_answered(succeed, backbone, adapter):
    task = TASKS["text_to_sql"]
    model, tokenizer = load_backbone(backbone)
    load_adapter(model, adapter)
    questions = task.examples("unseen", 2, seed=3)
    answers = task.predict(model, tokenizer, questions)
    asked = ("evaluate", "--task", "text_to_sql", "--split", "unseen", "--count", 2, "--seed", 3, "--show", 2)
    options = ("--backbone", backbone, "--adapter", adapter)
    report = json.loads(succeed(*asked, *options, "--json"))
    assert report["scores"] == task.scores(answers)
    assert [shown["prompt"] for shown in report["answers"]] == [question.prompt for question in questions]
    assert [shown["sql"] for shown in report["answers"]] == [answer.sql for answer in answers]
    text = succeed(*asked, *options)
    assert all(question.query.sql in text for question in questions)


# count


@pytest.mark.parametrize(("settings", "saved_ranks"), [((), 1), (("--init", "pissa"), 2)])
def test_count_agrees_with_the_formula_for_every_layer(settings, saved_ranks, succeed, backbone):
    report = json.loads(succeed("count", "--backbone", backbone, "--rank", 3, "--targets", "q_proj,up_proj", "--json", *settings))
    expected = {"blocks.0.attention.q_proj": (16, 16), "blocks.0.up_proj": (64, 16)}
    assert {layer["layer"]: (layer["out_features"], layer["in_features"]) for layer in report["layers"]} == expected
    assert [layer["trainable"] for layer in report["layers"]] == [3 * (16 + 16), 3 * (64 + 16)]
    own = sum(array.size for array in load_arrays(backbone / "backbone.safetensors").values())
    assert (report["trainable"], report["total"]) == (336, own + 336)
    assert report["share"] == 336 / (own + 336)
    assert report["adapter_bytes"] == 336 * 4 * saved_ranks


def test_count_of_a_saved_adapter_agrees_with_its_file(succeed, backbone, adapter):
    report = json.loads(succeed("count", "--backbone", backbone, "--adapter", adapter, "--json"))
    arrays = load_arrays(adapter / "adapter_model.safetensors").values()
    assert report["trainable"] == sum(layer["trainable"] for layer in report["layers"]) == sum(array.size for array in arrays)
    assert report["adapter_bytes"] == sum(array.nbytes for array in arrays)
    table = succeed("count", "--backbone", backbone, "--adapter", adapter)
    assert f"{report['trainable']:,} of {report['total']:,} parameters train" in table
    assert all(f"blocks.0.{name} " in table for name in LINEAR)


# merge and export


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_merge_writes_the_weights_that_the_formula_gives(dtype, tolerance, succeed, backbone, adapter, tmp_path):
    succeed("merge", "--backbone", backbone, "--adapter", adapter, "--out", tmp_path / "merged", "--dtype", dtype)
    before, after = (load_arrays(folder / "backbone.safetensors") for folder in (backbone, tmp_path / "merged"))
    factors = load_arrays(adapter / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    for name, array in after.items():
        assert array.dtype == dtype
        expected = before[name].astype("float64")
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in factors:
            A, B = (factors[f"{key}.lora_{part}.weight"].astype("float64") for part in "AB")
            assert np.abs(B @ A).max() > 0.01
            expected = expected + 7 / 3 * B @ A
        np.testing.assert_allclose(array, expected, rtol=tolerance, atol=tolerance)


def test_a_merged_backbone_answers_like_backbone_and_adapter_and_says_where_it_comes_from(succeed, backbone, adapter, tmp_path):
    out = succeed("merge", "--backbone", backbone, "--adapter", adapter, "--out", tmp_path / "merged")
    difference = float(re.search(r"logits: (\S+),", out).group(1))
    assert difference < 1e-4
    prompt = ("generate", "--prompt", "which rivers", "--max-new-tokens", 9, "--json")
    merged = succeed(*prompt, "--backbone", tmp_path / "merged")
    assert merged == succeed(*prompt, "--backbone", backbone, "--adapter", adapter) != succeed(*prompt, "--backbone", backbone)
    origin = json.loads((tmp_path / "merged" / "backbone.json").read_text())["origin"]
    assert origin["adapter"]["name"] == "changed"
    assert str(tmp_path) not in json.dumps(origin)


@pytest.mark.parametrize("target", ["lm_head", "token_embedding"])
def test_merging_into_the_weight_that_embedding_and_output_share_is_refused(target, run, backbone, tmp_path):
    write_adapter(tmp_path / "tied", backbone, targets=("q_proj", target))
    result = run("merge", "--backbone", backbone, "--adapter", tmp_path / "tied", "--out", tmp_path / "merged")
    assert "share one weight" in refused(result)
    assert not (tmp_path / "merged").exists()


def test_merging_an_output_layer_that_was_trained_in_full_is_refused(run, backbone, tmp_path):
    write_adapter(tmp_path / "head", backbone, targets=("q_proj",), train_modules=("lm_head",))
    result = run("merge", "--backbone", backbone, "--adapter", tmp_path / "head", "--out", tmp_path / "merged")
    assert "no longer shares" in refused(result)
    assert not (tmp_path / "merged").exists()


def test_merging_refuses_numbers_that_half_precision_cannot_hold(run, backbone, tmp_path):
    write_adapter(tmp_path / "huge", backbone, alpha=1e7)
    merge = ("merge", "--backbone", backbone, "--adapter", tmp_path / "huge", "--out", tmp_path / "merged")
    assert "not finite as float16" in refused(run(*merge, "--dtype", "float16"))
    assert run(*merge)[0] == 0


def test_export_writes_an_adapter_with_the_same_tensors_and_every_setting(succeed, backbone, adapter, tmp_path):
    source = tmp_path / "sparse"
    source.mkdir()
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(tensors, source / "adapter_model.safetensors")  # no fingerprint, and a config with the least that PEFT takes
    short = {"peft_type": "LORA", "r": 3, "lora_alpha": 7, "target_modules": [name.rpartition(".")[2] for name in LINEAR]}
    (source / "adapter_config.json").write_text(json.dumps(short))
    out = succeed("export", "--backbone", backbone, "--adapter", source, "--out", tmp_path / "plain")
    assert "no fingerprint" in out
    written = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[key], tensors[key]) for key in tensors)
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (3, 7, False)
    assert "made for this backbone" in succeed("export", "--backbone", backbone, "--adapter", tmp_path / "plain", "--check")


def test_export_check_prints_the_config_and_every_tensor(succeed, backbone, adapter, tmp_path):
    out = succeed("export", "--backbone", backbone, "--adapter", adapter, "--check")
    assert '"lora_alpha": 7' in out
    for key, array in load_arrays(adapter / "adapter_model.safetensors").items():
        shape = " x ".join(map(str, array.shape))
        norm = f"{math.sqrt((array.astype('float64') ** 2).sum()):.4g}"
        assert re.search(rf"^{re.escape(key)} +{shape} +float32 +{norm}$", out, re.MULTILINE)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen", "not finite"])
def test_export_check_refuses_a_damaged_adapter(damage, run, backbone, adapter, tmp_path):
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = "base_model.model.blocks.0.up_proj.lora_B.weight"
    if damage == "missing":
        del tensors[key]
    elif damage == "unexpected":
        tensors["base_model.model.blocks.0.gate_proj.lora_B.weight"] = tensors[key].clone()
    else:
        tensors[key] = tensors[key][1:].clone() if damage == "misshapen" else tensors[key] / 0
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    message = refused(run("export", "--backbone", backbone, "--adapter", tmp_path, "--check"))
    assert ("gate_proj" if damage == "unexpected" else "up_proj") in message


@pytest.mark.slow
@pytest.mark.usefixtures("letters")
def test_peft_computes_what_finetune_trained_from_pissa(succeed, backbone, tmp_path):
    peft = pytest.importorskip("peft")
    command = ("finetune", "--task", "letters", "--backbone", backbone, "--out", tmp_path / "trained", *TRAIN, "--init", "pissa")
    succeed(*command)
    succeed("export", "--backbone", backbone, "--adapter", tmp_path / "trained", "--out", tmp_path / "plain")
    tokens = torch.arange(40).reshape(2, 20)
    ours, plain = load_backbone(backbone)[0], load_backbone(backbone)[0]
    load_adapter(ours, tmp_path / "trained")
    with torch.no_grad():
        before = plain(tokens)
        theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "plain"))(tokens)
        torch.testing.assert_close(theirs, ours(tokens), rtol=1e-5, atol=1e-5)
    assert (theirs - before).abs().max() > 0.1


# generate


def test_generate_prints_the_likeliest_continuation(succeed, backbone, adapter):
    model, tokenizer = load_backbone(backbone)
    load_adapter(model, adapter)
    (ids,) = generate(model, [tokenizer.encode("which rivers")], max_new_tokens=7, stop_id=tokenizer.end_id)
    out = succeed("generate", "--prompt", "which rivers", "--max-new-tokens", 7, "--backbone", backbone, "--adapter", adapter)
    assert out == tokenizer.decode(ids) + "\n"


def test_generate_reads_the_prompt_from_standard_input_without_its_last_newline(succeed, backbone, monkeypatch):
    prompt = ("generate", "--backbone", backbone, "--max-new-tokens", 9, "--prompt")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("a\nä\n\n".encode())))
    assert succeed(*prompt, "-") == succeed(*prompt, "a\nä\n") != succeed(*prompt, "a\nä")


def test_generate_draws_as_often_as_asked_and_the_same_for_the_same_seed(succeed, backbone):
    draw = ("generate", "--backbone", backbone, "--prompt", "a", "--temperature", 1, "--count", 3, "--max-new-tokens", 5, "--json")
    texts = json.loads(succeed(*draw, "--seed", 4))
    assert len(set(texts)) == 3
    assert json.loads(succeed(*draw, "--seed", 4)) == texts
    assert json.loads(succeed(*draw, "--seed", 5)) != texts


def test_an_interrupted_command_ends_with_exit_code_130(run, backbone, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lorabook.command_line.generate.generate", interrupted)
    assert run("generate", "--backbone", backbone, "--prompt", "a") == (130, "", "error: interrupted\n")


def test_too_little_memory_is_one_line_with_a_remedy_and_exit_code_1(run, backbone, monkeypatch):
    def exhausted(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("lorabook.command_line.generate.generate", exhausted)
    code, out, err = run("generate", "--backbone", backbone, "--prompt", "a")
    assert (code, out) == (1, "")
    assert re.fullmatch("error: .* too little memory: lower --micro-batch-size .*\n", err)


def test_an_error_of_our_own_keeps_its_traceback(backbone, monkeypatch):
    def wrong(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr("lorabook.command_line.generate.generate", wrong)
    with pytest.raises(ValueError, match="a bug"):
        main(["generate", "--backbone", str(backbone), "--prompt", "a"])


# As processes


def start(*arguments, **settings):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **settings)


def test_as_a_process_bad_input_is_one_line_and_exit_code_2(tmp_path):
    process = start("-m", "lorabook", "count", "--backbone", tmp_path / "nowhere")
    out, err = process.communicate(timeout=120)
    assert "does not exist" in refused((process.returncode, out, err))


def test_an_output_that_nobody_reads_ends_the_process_without_a_traceback(backbone, adapter):
    process = start("-m", "lorabook", "export", "--backbone", backbone, "--adapter", adapter, "--check")
    process.stdout.close()
    assert (process.wait(timeout=120), process.stderr.read()) == (141, "")
    process.stderr.close()


SQL = ("--task", "text_to_sql", "--examples", 20, "--batch-size", 4, "--validation", 0, "--rank", 3, "--alpha", 7)


@pytest.mark.slow
def test_a_run_ended_by_sigterm_goes_on_to_the_same_adapter(succeed, backbone, tmp_path):
    command = ("finetune", *SQL, "--backbone", backbone, "--steps", 300, "--dropout", 0.2)
    succeed(*command, "--out", tmp_path / "whole")
    resumed = (*command, "--out", tmp_path / "resumed", "--checkpoint", tmp_path / "run")
    process = start("-m", "lorabook", *resumed, "--checkpoint-every", 1)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "the same command goes on from there" in err
    assert not (tmp_path / "resumed").exists()
    resumed_at = int(re.search(r"resumed at step (\d+)", succeed(*resumed)).group(1))
    assert 0 < resumed_at < 300
    assert same_tensors(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one_and_print_once(succeed, backbone, tmp_path):
    command = ("finetune", *SQL, "--backbone", backbone, "--steps", 3)
    succeed(*command, "--out", tmp_path / "one")
    process = start(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "lorabook", *command, "--out", tmp_path / "two"
    )
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("saved in") == out.count("parameters train") == 1
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=1e-5)
