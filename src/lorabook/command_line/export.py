"""``export``: check an adapter strictly, and write it in the plain form that every reader of PEFT's format takes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from lorabook.adapters.linear import LoRALinear
from lorabook.adapters.peft_format import save_adapter
from lorabook.adapters.peft_keys import tensors_of
from lorabook.adapters.peft_read import largest_bytes
from lorabook.adapters.site import layers_named
from lorabook.adapters.storage import locate, read_pair
from lorabook.command_line.arguments import Commands, add_command, add_model_options, add_out_options
from lorabook.command_line.folders import check_out
from lorabook.command_line.models import load_model
from lorabook.command_line.output import say, table
from lorabook.command_line.refusals import InputError
from lorabook.language.gpt import GPT

_EXPLAINS = """\
Every tensor must be expected, every expected one be there, of the right shape and finite; every
setting must be understood; the fingerprint of the backbone, where the file has one, must fit.
What is written has plain factors in float32, whole paths as targets, no setting left to a
reader's default, and the fingerprint; it is read again and compared. --check writes nothing."""
_EXAMPLE = """\
  python -m lorabook export --adapter sql-adapter --out for-peft
  python -m lorabook export --adapter downloaded --check"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands, "export", run, does="check an adapter, and write it for other libraries", explains=_EXPLAINS, example=_EXAMPLE
    )
    parser.add_argument("--adapter", type=Path, required=True, metavar="DIR", help="adapter to check, ours or PEFT's")
    parser.add_argument("--check", action="store_true", help="only check, and print the config and the tensors")
    add_out_options(parser, "the adapter, needed without --check", required=False)
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Check; then print, or write and compare."""
    if arguments.check == (arguments.out is not None):
        raise InputError("give either --out DIR or --check")
    if arguments.out is not None:
        check_out(arguments.out, force=arguments.force)
    model, _ = load_model(arguments.backbone, arguments.adapter)
    config, tensors, metadata = read_pair(locate(arguments.adapter, "default"), largest_bytes(model))
    if "base_fingerprint" in metadata:
        say(f"{arguments.adapter}: sound, and made for this backbone")
    else:
        say(f"{arguments.adapter}: sound, and fits this backbone's shapes; it has no fingerprint by which to know the weights")
    if arguments.check:
        say(json.dumps(json.loads(config), indent=2, sort_keys=True))
        rows = [
            (key, " x ".join(map(str, tensor.shape)), str(tensor.dtype)[6:], f"{tensor.double().norm():.4g}")
            for key, tensor in tensors.items()
        ]
        say(table(("tensor", "shape", "dtype", "norm"), rows))
        return
    before = _described(model)
    save_adapter(model, arguments.out)
    again, _ = load_model(arguments.backbone, arguments.out)
    if not _same(before, _described(again)):
        raise RuntimeError(f"what was written into '{arguments.out}' differs from what was read from '{arguments.adapter}'")
    say(f"saved in {arguments.out}; read again, it is the same bit for bit")


def _described(model: GPT) -> dict[str, Tensor]:
    """All that the adapter computes with: its tensors, and the scaling of each layer."""
    described: dict[str, Tensor] = {}
    for path, layer in layers_named(model, "default").items():
        described |= tensors_of(path, layer)
        if isinstance(layer, LoRALinear):
            described[f"{path}.scaling"] = torch.tensor(layer.scaling, dtype=torch.float64)
    return described


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[key]) for key, tensor in first.items())
