"""``count``: how many parameters an adapter has, layer by layer, and how many bytes it takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from lorabook.adapters.bases import AdapterError, features
from lorabook.adapters.inject import add_lora
from lorabook.adapters.linear import LoRALinear
from lorabook.adapters.peft_keys import tensors_of
from lorabook.adapters.site import layers_named, own
from lorabook.command_line.arguments import (
    Commands,
    add_command,
    add_lora_options,
    add_model_options,
    given_lora_options,
    lora_config,
    refuse_lora_options,
)
from lorabook.command_line.models import load_model
from lorabook.command_line.output import say, say_json, table
from lorabook.command_line.refusals import InputError, refusing
from lorabook.measure.counting import ParameterCount, count_lora, count_parameters, targeted_sizes
from lorabook.measure.presets import PRESETS

_EXPLAINS = """\
Counts for an adapter that was saved, or for a new one of these settings: nothing is trained. The
bytes are those of the saved tensors, which are in float32; PiSSA and OLoRA are saved at twice
their rank. With --preset it counts on the shapes of a well-known model, without its weights."""
_EXAMPLE = """\
  python -m lorabook count --rank 8 --targets q_proj,v_proj
  python -m lorabook count --preset llama-2-7b --rank 16"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "count", run, does="count an adapter's parameters and bytes", explains=_EXPLAINS, example=_EXAMPLE)
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a saved adapter, ours or PEFT's (default: a new one)")
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        metavar="NAME",
        help=f"shapes in place of a model, one of {', '.join(PRESETS)} (default: a model)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of text")
    add_model_options(parser)
    add_lora_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Load or add the adapter, and count."""
    if arguments.preset is not None:
        _count_preset(arguments)
        return
    if arguments.adapter is not None:
        refuse_lora_options(arguments, "--adapter")
    model, _ = load_model(arguments.backbone, arguments.adapter)
    if arguments.adapter is None:
        with refusing(ValueError):
            add_lora(model, lora_config(arguments), generator=torch.Generator().manual_seed(0))
    count = count_parameters(model)
    layers = layers_named(model, "default")
    saved = [tensor for path, layer in layers.items() for tensor in tensors_of(path, layer).values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in saved)
    rows = []
    for path, layer in layers.items():
        sizes = features(layer.base) if isinstance(layer, LoRALinear) else (None, None)
        rank = layer.rank if isinstance(layer, LoRALinear) else None
        rows.append((path, *sizes, rank, sum(parameter.numel() for parameter in own(layer))))
    _report(rows, count, size, as_json=arguments.json)


def _count_preset(arguments: argparse.Namespace) -> None:
    settings = given_lora_options(arguments).keys() - {"rank", "targets"}
    others = [name for name in ("adapter", "backbone") if getattr(arguments, name) is not None] + sorted(settings)
    if others:
        names = ", ".join("--" + name.replace("_", "-") for name in others)
        raise InputError(f"{names} means nothing beside --preset, which takes --rank and --targets: leave out one or the other")
    config, shape = lora_config(arguments), PRESETS[arguments.preset]
    with refusing(AdapterError):
        count = count_lora(shape, config.targets, config.rank)
        sizes = targeted_sizes(shape, config.targets)
    rows = [(path, *sizes[path], config.rank, trainable) for path, trainable in count.layers.items()]
    _report(rows, count, count.checkpoint_bytes(), as_json=arguments.json)


def _report(rows: Sequence[tuple[str | int | None, ...]], count: ParameterCount, size: int, *, as_json: bool) -> None:
    names = ("layer", "out_features", "in_features", "rank", "trainable")
    if as_json:
        layer_counts = [dict(zip(names, row, strict=True)) for row in rows]
        totals = {"trainable": count.trainable, "total": count.total, "share": count.share, "adapter_bytes": size}
        say_json(totals | {"layers": layer_counts})
        return
    say(table(names, [tuple("-" if cell is None else cell for cell in row) for row in rows]))
    say(f"\n{count}")
    say(f"{size:,} bytes of tensors when saved")
