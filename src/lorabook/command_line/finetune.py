"""``finetune``: train an adapter, or the whole backbone, on a task, and save it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from lorabook.adapters.fingerprint import base_fingerprint
from lorabook.adapters.inject import add_lora
from lorabook.adapters.peft_format import save_adapter
from lorabook.command_line.arguments import (
    Commands,
    add_command,
    add_lora_options,
    add_model_options,
    add_out_options,
    add_run_options,
    add_task_option,
    lora_config,
    number,
    refuse_lora_options,
    whole,
)
from lorabook.command_line.folders import check_out, check_writable, write_backbone
from lorabook.command_line.models import device_named, load_model
from lorabook.command_line.output import say
from lorabook.command_line.refusals import InputError, refusing
from lorabook.command_line.scoring import answer
from lorabook.language.gpt import GPT
from lorabook.language.likelihood import Example
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.measure.counting import count_parameters
from lorabook.tasks import TASKS, Task
from lorabook.training.checkpoint import CheckpointError
from lorabook.training.distributed import is_main, process_group, rank_count
from lorabook.training.interrupt import Interrupted
from lorabook.training.loop import TrainingLog, train

_LORA_RATE, _FULL_RATE = 5e-3, 1e-3
_LAST_STEPS = 20  # over which the printed loss is averaged

_EXPLAINS = """\
Saves the adapter in PEFT's format, or with --full a backbone directory, and prints the number of
parameters, the time and the score on validation questions. With --checkpoint a run that was killed
goes on where it stopped when the same command is given again, and SIGTERM saves before it ends the
run (exit code 143). Several processes share each batch under torchrun:
  torchrun --nproc-per-node 2 -m lorabook finetune --task text_to_sql --out sql-adapter"""
_EXAMPLE = """\
  python -m lorabook finetune --task text_to_sql --out sql-adapter --rank 16 --targets q_proj,v_proj"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "finetune", run, does="train an adapter on a task", explains=_EXPLAINS, example=_EXAMPLE)
    add_task_option(parser)
    add_out_options(parser, "the adapter")
    add_model_options(parser)
    add_run_options(parser, seeds="the examples, their order, the adapter's start and dropout")
    parser.add_argument("--full", action="store_true", help="train every weight instead of an adapter; saves a backbone")
    add_lora_options(parser)
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=whole(1), default=400, metavar="N", help="updates (default: %(default)s)")
    group.add_argument(
        "--learning-rate", type=number(0), metavar="RATE", help=f"peak rate (default: {_LORA_RATE:g}, with --full {_FULL_RATE:g})"
    )
    group.add_argument(
        "--batch-size", type=whole(1), default=32, metavar="N", help="sequences per step, over all processes (default: %(default)s)"
    )
    group.add_argument(
        "--micro-batch-size",
        type=whole(1),
        metavar="N",
        help="sequences at a time, to save memory; the gradient is the same (default: all of a process at once)",
    )
    group.add_argument(
        "--lora-plus-ratio", type=number(0), default=1.0, metavar="X", help="learning rate of B over that of A (default: %(default)g)"
    )
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        metavar="NAME",
        help="float32, bfloat16, or auto: bfloat16 on a GPU that has it (default: %(default)s)",
    )
    group.add_argument("--examples", type=whole(1), default=4000, metavar="N", help="training examples to draw (default: %(default)s)")
    group.add_argument(
        "--validation", type=whole(0), default=200, metavar="N", help="validation questions to answer at the end (default: %(default)s)"
    )
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help="safetensors file to go on from, and to save to (default: none)")
    group.add_argument("--checkpoint-every", type=whole(1), default=100, metavar="N", help="steps between savings (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Train, save, score."""
    if arguments.full:
        refuse_lora_options(arguments, "--full")
        if arguments.lora_plus_ratio != 1:
            raise InputError("--lora-plus-ratio means nothing beside --full: leave out one or the other")
    check_out(arguments.out, force=arguments.force, backbone=arguments.backbone, ignore=arguments.checkpoint)
    if arguments.checkpoint is not None:
        if arguments.checkpoint.is_dir():
            raise InputError(f"--checkpoint '{arguments.checkpoint}' is a directory: name a file")
        check_writable(arguments.checkpoint, "--checkpoint")
    with process_group():
        _run(arguments, TASKS[arguments.task])


def _run(arguments: argparse.Namespace, task: Task) -> None:
    if arguments.batch_size < rank_count():
        raise InputError(f"--batch-size must be at least {rank_count()}, one sequence for each process, got {arguments.batch_size}")
    device = device_named(arguments.device)
    model, tokenizer = load_model(arguments.backbone)
    fingerprint = base_fingerprint(model)
    if not arguments.full:
        with refusing(ValueError):
            add_lora(model, lora_config(arguments), generator=torch.Generator().manual_seed(arguments.seed))
    model.to(device)
    examples = _training_examples(arguments, task, model, tokenizer)
    say(f"{arguments.task}: {arguments.steps:,} steps of {arguments.batch_size:,} out of {len(examples):,} examples, on {device}")
    say(str(count_parameters(model)))
    log = _train(arguments, model, examples)
    _say_log(log, arguments.steps)
    if not is_main():
        return
    if arguments.full:
        write_backbone(arguments.out, model, tokenizer, origin=_origin(arguments, fingerprint))
    else:
        save_adapter(model, arguments.out)
    size = sum(path.stat().st_size for path in arguments.out.glob("*.safetensors") if path != arguments.checkpoint)
    say(f"saved in {arguments.out} ({size:,} bytes of weights)")
    if arguments.validation:
        questions = task.examples("validation", arguments.validation, seed=arguments.seed)
        for name, score in task.scores(answer(task, model, tokenizer, questions)).items():
            say(f"validation {name} {score:.4f} ({len(questions):,} questions)")


def _training_examples(arguments: argparse.Namespace, task: Task, model: GPT, tokenizer: BytePairTokenizer) -> list[Example]:
    with refusing(ValueError, prefix=f"--examples {arguments.examples}: "):
        drawn = task.examples("train", arguments.examples, seed=arguments.seed)
    examples: list[Example] = [task.encode(example, tokenizer) for example in drawn]
    longest = max(len(inputs) for inputs, _ in examples)
    if longest > model.config.context:
        raise InputError(
            f"--task {arguments.task} has examples of {longest} tokens, and this backbone reads at most {model.config.context}: "
            "take a backbone with a longer context"
        )
    return examples


def _train(arguments: argparse.Namespace, model: GPT, examples: list[Example]) -> TrainingLog:
    rate = arguments.learning_rate or (_FULL_RATE if arguments.full else _LORA_RATE)
    try:
        with refusing(CheckpointError):
            return train(
                model,
                examples,
                steps=arguments.steps,
                learning_rate=rate,
                batch_size=arguments.batch_size,
                micro_batch_size=arguments.micro_batch_size,
                lora_plus_ratio=arguments.lora_plus_ratio,
                precision=arguments.precision,
                seed=arguments.seed,
                description=arguments.task,
                checkpoint=arguments.checkpoint,
                checkpoint_every=arguments.checkpoint_every,
            )
    except Interrupted:
        if is_main():
            sys.stderr.write(f"stopped and saved in {arguments.checkpoint}: the same command goes on from there\n")
        raise


def _say_log(log: TrainingLog, steps: int) -> None:
    resumed = f", resumed at step {log.resumed_at:,}" if log.resumed_at else ""
    last = log.losses[-_LAST_STEPS:]
    say(
        f"{steps:,} steps in {log.seconds:.1f} s{resumed}, {log.target_tokens:,} target tokens; "
        f"loss {sum(last) / len(last):.4f} nats per target token over the last {len(last)}"
    )


def _origin(arguments: argparse.Namespace, fingerprint: str) -> dict[str, object]:
    names = ("task", "examples", "steps", "learning_rate", "batch_size", "precision", "seed")
    settings = {name: getattr(arguments, name) for name in names}
    settings["learning_rate"] = arguments.learning_rate or _FULL_RATE
    return {"command": "finetune --full", "base_fingerprint": fingerprint, "settings": settings, "torch": str(torch.__version__)}
