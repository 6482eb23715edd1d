"""``merge``: add an adapter to its backbone's weights, and write the backbone that results."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch

from lorabook.adapters.bases import AdapterError
from lorabook.adapters.fingerprint import base_fingerprint
from lorabook.adapters.merge import remove_lora
from lorabook.adapters.storage import CONFIG, TENSORS, locate
from lorabook.command_line.arguments import Commands, add_command, add_model_options, add_out_options
from lorabook.command_line.folders import check_out, write_backbone
from lorabook.command_line.models import load_model
from lorabook.command_line.output import say
from lorabook.command_line.refusals import InputError
from lorabook.language.gpt import GPT

_EXPLAINS = """\
Writes backbone.json, backbone.safetensors and tokenizer.json, which every command reads with
--backbone: a model as fast as the one before. The card says what was merged, and the largest
difference that it makes to the logits of a trial input is printed. An adapter on the embedding
or the output layer, which share one weight, cannot be merged."""
_EXAMPLE = """\
  python -m lorabook merge --adapter sql-adapter --out sql-model"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "merge", run, does="merge an adapter into its backbone", explains=_EXPLAINS, example=_EXAMPLE)
    parser.add_argument("--adapter", type=Path, required=True, metavar="DIR", help="adapter to merge, ours or PEFT's")
    add_out_options(parser, "the merged backbone")
    add_model_options(parser)
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        metavar="NAME",
        help="of the numbers in the file: float32, or float16 for half the size, rounded (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Load, merge, write, compare."""
    check_out(arguments.out, force=arguments.force, backbone=arguments.backbone)
    model, tokenizer = load_model(arguments.backbone, arguments.adapter)
    origin = {"command": "merge", "base_fingerprint": base_fingerprint(model), "adapter": _description(arguments.adapter)}
    before = _logits(model)
    try:
        remove_lora(model, merge=True)
    except AdapterError as error:
        if "share one weight" not in str(error):
            raise
        raise InputError(
            "the adapter changes the embedding or the output layer, which share one weight that a backbone's file holds once: "
            "use it unmerged"
        ) from error
    size = write_backbone(arguments.out, model, tokenizer, origin=origin, dtype=getattr(torch, arguments.dtype))
    after = _logits(load_model(arguments.out)[0])
    say(f"saved in {arguments.out} ({size:,} bytes of weights, {arguments.dtype})")
    say(
        f"largest difference from the unmerged model's logits: {(after - before).abs().max():.1e}, of logits up to {before.abs().max():.1f}"
    )


def _description(adapter: Path) -> dict[str, str]:
    """Name and hashes of the adapter's files, by which it can be recognized wherever it lies."""
    found = locate(adapter, "default")
    hashes = {name: hashlib.sha256((found / name).read_bytes()).hexdigest() for name in (CONFIG, TENSORS)}
    return {"name": adapter.resolve().name} | {f"sha256 of {name}": value for name, value in hashes.items()}


@torch.no_grad()
def _logits(model: GPT) -> torch.Tensor:
    length = min(32, model.config.context)
    trial = torch.randint(model.config.vocab_size, (4, length), generator=torch.Generator().manual_seed(0))
    logits: torch.Tensor = model(trial)  # (4, T) -> (4, T, vocab)
    return logits
