"""``generate``: let a backbone, with or without an adapter, continue a text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from lorabook.command_line.arguments import Commands, add_command, add_model_options, add_run_options, number, whole
from lorabook.command_line.models import device_named, load_model
from lorabook.command_line.output import say, say_json
from lorabook.command_line.refusals import InputError
from lorabook.language.generate import generate

_EXPLAINS = """\
Prints the continuation, without the prompt, up to the end-of-text token, the limit or the end of
the backbone's context. Several continuations are separated by lines of three dashes."""
_EXAMPLE = """\
  python -m lorabook generate --prompt "def __init__(self" --temperature 0.7 --count 3
  printf 'rivers(name, country, length)\\ncount the rivers\\nSQL:' | python -m lorabook generate --adapter sql-adapter --prompt -"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "generate", run, does="continue a text", explains=_EXPLAINS, example=_EXAMPLE)
    parser.add_argument(
        "--prompt", required=True, metavar="TEXT", help="text to continue; - reads it from standard input, less one newline at its end"
    )
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="adapter to use, ours or PEFT's (default: none)")
    parser.add_argument("--max-new-tokens", type=whole(1), default=100, metavar="N", help="most tokens to add (default: %(default)s)")
    parser.add_argument(
        "--temperature", type=number(0, included=True), default=0.0, metavar="T", help="0 takes the likeliest token (default: %(default)g)"
    )
    parser.add_argument("--count", type=whole(1), default=1, metavar="N", help="continuations to draw (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the continuations as one line of JSON, a list")
    add_model_options(parser)
    add_run_options(parser, seeds="the sampling")


def run(arguments: argparse.Namespace) -> None:
    """Read the prompt, continue it, print."""
    if arguments.count > 1 and arguments.temperature == 0:
        raise InputError(f"--count {arguments.count} would give the same text each time: add --temperature above 0")
    prompt = _prompt(arguments.prompt)
    device = device_named(arguments.device)
    model, tokenizer = load_model(arguments.backbone, arguments.adapter)
    model.to(device)
    tokens = tokenizer.encode(prompt)
    if len(tokens) >= model.config.context:
        raise InputError(f"--prompt has {len(tokens)} tokens, and this backbone reads at most {model.config.context}: shorten it")
    added = generate(
        model,
        [tokens] * arguments.count,
        max_new_tokens=arguments.max_new_tokens,
        stop_id=tokenizer.end_id,
        temperature=arguments.temperature,
        generator=torch.Generator(device).manual_seed(arguments.seed),
    )
    texts = [tokenizer.decode(ids) for ids in added]
    if arguments.json:
        say_json(texts)
    else:
        say("\n---\n".join(texts))


def _prompt(text: str) -> str:
    try:
        if text == "-":
            text = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        text.encode("utf-8")
    except UnicodeError as error:
        raise InputError(f"--prompt is not UTF-8: {error.reason if hasattr(error, 'reason') else error}") from error
    if not text:
        raise InputError("--prompt is empty: give at least one character")
    return text
