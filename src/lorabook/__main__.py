"""The command line: ``python -m lorabook finetune|evaluate|count|merge|export|generate``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

import torch

import lorabook
from lorabook.adapters.bases import AdapterError
from lorabook.command_line import count, evaluate, export, finetune, generate, merge
from lorabook.command_line.arguments import Parser
from lorabook.command_line.refusals import InputError
from lorabook.training.interrupt import Interrupted

_EPILOG = """\
example:
  python -m lorabook finetune --task text_to_sql --out sql-adapter
  python -m lorabook evaluate --task text_to_sql --adapter sql-adapter

exit codes: 0 done, 1 failed while running, 2 bad input, 130 interrupted, 141 nobody reads the output,
143 ended by SIGTERM"""


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="python -m lorabook", description="Train, score, merge and ship LoRA adapters.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"lorabook {lorabook.__version__}, torch {torch.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (finetune, evaluate, count, merge, export, generate):
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; whatever the user could have avoided is one line on standard error.

    Args:
        argv: arguments without the program's name; those of the process when None.
    """
    try:
        try:
            arguments = build_parser().parse_args(argv)
        except SystemExit as done:  # --help and --version
            return int(done.code or 0)
        arguments.run(arguments)
    except (InputError, AdapterError) as error:
        return _complain(error, 2)
    except FloatingPointError as error:  # the loss; its message has the remedy
        return _complain(error, 1)
    except torch.cuda.OutOfMemoryError:
        return _complain("the device has too little memory: lower --micro-batch-size or --count, or take --device cpu", 1)
    except Interrupted as stopped:  # by SIGTERM; finetune has said so
        return int(stopped.code or 0)
    except KeyboardInterrupt:
        return _complain("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        # Whatever is still in the buffer would fail again at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # SIGPIPE, which Windows does not name
    except OSError as error:
        return _complain(error, 1)
    return 0


def _complain(error: Exception | str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f"rank {rank}: "
    with contextlib.suppress(OSError):
        sys.stderr.write(f"error: {where}{' '.join(str(error).split())}\n")
    return code


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal that cannot show a character still gets the rest
    sys.exit(main())
