"""Where a command writes: checked before anything is computed, written so that a crash leaves no half of a backbone."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from lorabook.command_line.refusals import InputError, refusing
from lorabook.language.gpt import GPT
from lorabook.language.tokenizer import BytePairTokenizer

CARD, WEIGHTS, TOKENIZER = "backbone.json", "backbone.safetensors", "tokenizer.json"


def check_out(directory: Path, *, force: bool, backbone: Path | None = None, ignore: Path | None = None) -> None:
    """Refuse a directory that could not be written to, or that holds something.

    Args:
        directory: the one to write to; nothing is made yet.
        force: it may hold something.
        backbone: a directory that it must not be.
        ignore: a file that may lie in it all the same, with its temporary companions.

    Raises:
        InputError: as said.
    """
    with refusing(OSError, ValueError, prefix=f"--out '{directory}': "):
        check_writable(directory, "--out")
        if not directory.exists():
            return
        if not directory.is_dir():
            raise InputError(f"--out '{directory}' is a file: name a directory")
        if backbone is not None and directory.resolve() == backbone.resolve():
            raise InputError(f"--out '{directory}' is the backbone itself: name another directory")
        held = sorted(path.name for path in directory.iterdir() if ignore is None or not path.name.startswith(ignore.name))
    if held and not force:
        raise InputError(f"--out '{directory}' is not empty, it holds '{held[0]}': name another directory, or add --force")


def check_writable(path: Path, option: str) -> None:
    """Refuse a path below which no file can be made, by making a nameless one in the nearest directory that is there.

    Raises:
        InputError: as said.
    """
    nearest = path
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if nearest == path and path.is_file():
        nearest = path.parent
    if not nearest.is_dir():
        raise InputError(f"{option} '{path}' leads through '{nearest}', which is a file: name a path through directories")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InputError(f"{option} '{path}' cannot be written: {error.strerror or error}: name a directory of your own") from error


def write_backbone(
    directory: Path,
    model: GPT,
    tokenizer: BytePairTokenizer,
    *,
    origin: Mapping[str, object],
    dtype: torch.dtype = torch.float32,
) -> int:
    """Write a model as a directory that ``load_backbone`` reads; the card, without which nothing is read, comes last.

    Args:
        directory: made if need be.
        model: without adapters, embedding and output layer sharing one weight, which is written once.
        tokenizer: written beside it.
        origin: where the model comes from, for the card.
        dtype: of the numbers in the file.

    Returns:
        Bytes of the weights' file.

    Raises:
        InputError: the shared weight has come apart, or a number does not fit the dtype. Nothing is written then.
    """
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    head = weights.pop("lm_head.weight")
    if not torch.equal(head, weights["token_embedding.weight"]):
        raise InputError(
            "the output layer no longer shares the embedding's weight, which a backbone's file holds once: keep the adapter apart"
        )
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise InputError(f"'{name}' holds numbers that are not finite as {str(dtype).removeprefix('torch.')}")
    card = {"parameters": sum(tensor.numel() for tensor in weights.values()), "config": model.config.__dict__, "origin": dict(origin)}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CARD).unlink(missing_ok=True)
    save_file(weights, directory / f"{WEIGHTS}.part")
    tokenizer.save(directory / f"{TOKENIZER}.part")
    (directory / f"{CARD}.part").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    for name in (WEIGHTS, TOKENIZER, CARD):
        os.replace(directory / f"{name}.part", directory / name)
    return (directory / WEIGHTS).stat().st_size
