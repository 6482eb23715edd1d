"""Load what the options name: a backbone, an adapter on it, a device."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError

from lorabook.adapters.bases import AdapterError
from lorabook.adapters.peft_format import load_adapter
from lorabook.command_line.folders import CARD, TOKENIZER, WEIGHTS
from lorabook.command_line.refusals import InputError, refusing
from lorabook.language.backbone import load_backbone
from lorabook.language.gpt import GPT
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.training.runtime import best_device


def load_model(backbone: Path | None, adapter: Path | None = None) -> tuple[GPT, BytePairTokenizer]:
    """The backbone, with the adapter in use if there is one, on the CPU.

    Raises:
        InputError: files that are missing or cannot be read, or an adapter that does not fit.
    """
    if backbone is not None:
        _check_directory(backbone, "--backbone")
        for name in (CARD, WEIGHTS, TOKENIZER):
            if not (backbone / name).is_file():
                raise InputError(f"--backbone '{backbone}' lacks {name}: name a directory that finetune --full or merge wrote")
    if adapter is not None:
        _check_directory(adapter, "--adapter")
    broken = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError)
    with refusing(*broken, prefix=f"--backbone '{backbone or 'default'}' cannot be read: "):
        model, tokenizer = load_backbone(backbone)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise InputError(
            f"--backbone '{backbone or 'default'}' has a model of {model.config.vocab_size} tokens and a tokenizer of "
            f"{tokenizer.vocab_size}: its files do not belong together"
        )
    if adapter is not None:
        try:
            load_adapter(model, adapter)
        except AdapterError as error:  # one of its remedies is an argument in Python
            message, another_base, _ = str(error).partition(": load that one, or pass check_base=False")
            raise InputError(f"{message}: name the right one with --backbone" if another_base else message) from error
    return model, tokenizer


def device_named(name: str) -> torch.device:
    """The device of that name, tried out; the fastest for "auto".

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        return best_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own kind, and some fail an assertion
        reason = str(error).partition("\n")[0]
        raise InputError(f"--device {name} cannot be used: {reason}: take cpu or auto") from error
    return device


def _check_directory(path: Path, option: str) -> None:
    with refusing(OSError, ValueError, prefix=f"{option} '{path}': "):
        if not path.exists():
            raise InputError(f"{option} '{path}' does not exist: name the directory that holds it")
        if not path.is_dir():
            raise InputError(f"{option} '{path}' is a file: name the directory that holds it")
