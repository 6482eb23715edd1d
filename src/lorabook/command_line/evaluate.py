"""``evaluate``: score a backbone, with or without an adapter, on a task."""

from __future__ import annotations

import argparse
from pathlib import Path

from lorabook.command_line.arguments import Commands, add_command, add_model_options, add_run_options, add_task_option, whole
from lorabook.command_line.models import device_named, load_model
from lorabook.command_line.output import say, say_json, table
from lorabook.command_line.refusals import InputError, refusing
from lorabook.command_line.scoring import answer, shown
from lorabook.tasks import TASKS

_EXPLAINS = """\
Draws questions of one split, lets the model answer them greedily, and prints the scores, each between
0 and 1. Without --adapter the bare backbone answers. The same seed asks the same questions."""
_EXAMPLE = """\
  python -m lorabook evaluate --task text_to_sql --adapter sql-adapter --count 500 --show 3"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "evaluate", run, does="score an adapter on a task", explains=_EXPLAINS, example=_EXAMPLE)
    add_task_option(parser)
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="adapter to use, ours or PEFT's (default: none)")
    parser.add_argument("--split", default="test", metavar="NAME", help="which questions; a wrong name lists them (default: %(default)s)")
    parser.add_argument("--count", type=whole(1), default=200, metavar="N", help="questions to draw (default: %(default)s)")
    parser.add_argument("--show", type=whole(0), default=0, metavar="K", help="print the first K answers too (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of text")
    add_model_options(parser)
    add_run_options(parser, seeds="the questions")


def run(arguments: argparse.Namespace) -> None:
    """Draw, answer, score."""
    task = TASKS[arguments.task]
    if arguments.split not in task.SPLITS:
        raise InputError(f"--split of {arguments.task} must be one of {', '.join(task.SPLITS)}, got {arguments.split!r}")
    device = device_named(arguments.device)
    model, tokenizer = load_model(arguments.backbone, arguments.adapter)
    model.to(device)
    with refusing(ValueError, prefix=f"--count {arguments.count}: "):
        questions = task.examples(arguments.split, arguments.count, seed=arguments.seed)
    longest = max(len(task.encode(question, tokenizer)[0]) for question in questions)
    if longest > model.config.context:
        raise InputError(f"--task {arguments.task} needs {longest} tokens, and this backbone reads at most {model.config.context}")
    predictions = answer(task, model, tokenizer, questions)
    scores = task.scores(predictions)
    answers = [shown(prediction) for prediction in predictions[: arguments.show]]
    if arguments.json:
        names = ("task", "split", "count", "seed")
        adapter = None if arguments.adapter is None else str(arguments.adapter)
        report = {name: getattr(arguments, name) for name in names} | {"adapter": adapter, "scores": scores}
        say_json(report | ({"answers": answers} if answers else {}))
        return
    for fields in answers:
        say("\n".join(f"{name}: {value}" for name, value in fields.items()) + "\n")
    by = arguments.adapter or "the bare backbone"
    say(f"{arguments.task}, {arguments.count:,} {arguments.split} questions of seed {arguments.seed}, answered by {by}")
    say(table(("score", "mean"), [(name, f"{score:.4f}") for name, score in scores.items()]))
