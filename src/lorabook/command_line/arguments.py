"""The parser, and the options that several commands share. It knows no command."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lorabook.adapters.inits import DECOMPOSITIONS, INITS
from lorabook.adapters.inject import LoRAConfig
from lorabook.adapters.targets import ALL_LINEAR
from lorabook.command_line.refusals import InputError, refusing
from lorabook.tasks import TASKS

_LARGEST_SEED = 2**32 - 1
_RANK = 8
Commands = Any  # what add_subparsers returns, a private class of argparse


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line each, and which takes no abbreviated options: those break when others are added."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Refuse; the caller prints."""
        raise InputError(f"{message} ({self.prog} --help explains)")


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], *, does: str, explains: str, example: str
) -> argparse.ArgumentParser:
    """Add a command with an example at the end of its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=does, description=f"{does[0].upper()}{does[1:]}.\n\n{explains}", epilog=f"example:\n{example}"
    )
    parser.set_defaults(run=run)
    return parser


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type of whole numbers within bounds.

    Example:
        >>> whole(1)("32")
        32
    """

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            rule = f"of {least} or more" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be a whole number {rule}, got {text!r}")
        return value

    return convert


def number(least: float, *, included: bool = False, below: float = math.inf) -> Callable[[str], float]:
    """A type of finite numbers from a bound on, or only above it.

    Example:
        >>> number(0)("1e-3")
        0.001
    """

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (value > least or (included and value == least)) or not value < below:
            upper = "" if below == math.inf else f" and below {below:g}"
            raise argparse.ArgumentTypeError(f"must be a number {'of at least' if included else 'above'} {least:g}{upper}, got {text!r}")
        return value

    return convert


def targets(text: str) -> tuple[str, ...] | str:
    """Names of layers, separated by commas, or "all-linear".

    Example:
        >>> targets("q_proj,v_proj")
        ('q_proj', 'v_proj')
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names of layers separated by commas, or {ALL_LINEAR}, got {text!r}")
    return ALL_LINEAR if names == (ALL_LINEAR,) else names


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--backbone."""
    parser.add_argument(
        "--backbone",
        type=Path,
        metavar="DIR",
        help="directory with backbone.json, backbone.safetensors and tokenizer.json (default: the backbone that comes with the package)",
    )


def add_run_options(parser: argparse.ArgumentParser, *, seeds: str) -> None:
    """--seed, for what the text says, and --device."""
    parser.add_argument("--seed", type=whole(0, _LARGEST_SEED), default=0, metavar="N", help=f"seed of {seeds} (default: %(default)s)")
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps, or auto for the fastest there is (default: %(default)s)"
    )


def add_task_option(parser: argparse.ArgumentParser) -> None:
    """--task."""
    parser.add_argument("--task", required=True, choices=tuple(TASKS), metavar="NAME", help=f"one of {', '.join(TASKS)}")


def add_out_options(parser: argparse.ArgumentParser, what: str, *, required: bool = True) -> None:
    """--out and --force."""
    parser.add_argument("--out", type=Path, required=required, metavar="DIR", help=f"directory for {what}; made if need be")
    parser.add_argument("--force", action="store_true", help="write into --out though it is not empty, over files of the same names")


def add_lora_options(parser: argparse.ArgumentParser) -> None:
    """The settings of a new adapter. Their defaults are None, so that one that was given where it means nothing can be refused."""
    group = parser.add_argument_group("the adapter")
    group.add_argument("--rank", type=whole(1), metavar="R", help=f"rank r of every adapted layer (default: {_RANK})")
    group.add_argument("--alpha", type=number(0), metavar="ALPHA", help="the update is scaled by alpha / rank (default: twice the rank)")
    group.add_argument(
        "--targets",
        type=targets,
        metavar="NAMES",
        help=f"layers to adapt: names separated by commas, such as q_proj,v_proj, or {ALL_LINEAR} (default: {ALL_LINEAR})",
    )
    group.add_argument("--rank-stabilized", action="store_true", default=None, help="scale by alpha / sqrt(rank) instead")
    group.add_argument(
        "--init", choices=(*INITS, *DECOMPOSITIONS), metavar="NAME", help=f"{', '.join((*INITS, *DECOMPOSITIONS))} (default: kaiming)"
    )
    group.add_argument("--dora", action="store_true", default=None, help="train each weight's direction and magnitude apart (DoRA)")
    group.add_argument(
        "--dropout", type=number(0, included=True, below=1), metavar="P", help="share of the adapter's inputs set to 0 (default: 0)"
    )


def lora_config(arguments: argparse.Namespace) -> LoRAConfig:
    """The adapter that the options describe."""
    given = given_lora_options(arguments)
    rank = given.pop("rank", _RANK)
    with refusing(ValueError, TypeError):
        return LoRAConfig(rank, given.pop("alpha", 2.0 * rank), given.pop("targets", ALL_LINEAR), **given)


def given_lora_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of the adapter's settings that were given."""
    names = ("rank", "alpha", "targets", "rank_stabilized", "init", "dora", "dropout")
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def refuse_lora_options(arguments: argparse.Namespace, beside: str) -> None:
    """Refuse the adapter's settings beside an option that leaves them without meaning.

    Raises:
        InputError: one was given.
    """
    given = given_lora_options(arguments)
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(f"{names} means nothing beside {beside}: leave out one or the other")
