"""Mutate adapter directories at random and load them: each must load right or raise AdapterError, the model being as it was.

    python experiments/fuzz_adapters.py --number 20000 --seed 0

Writes assets/results/fuzz_adapters.json.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from provenance import write_result
from safetensors.torch import load, save
from torch import Tensor, nn

from lorabook import AdapterError, LoRAConfig, adapter_names, add_lora, load_adapter, remove_lora, save_adapter
from lorabook.adapters.inject import lora_layers
from lorabook.adapters.storage import CONFIG, TENSORS

Files = dict[str, bytes]


def victim(seed: int = 0) -> nn.Module:
    """A small model with every kind of layer that an adapter may meet."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 5, bias=False), nn.Linear(5, 3))


def state(model: nn.Module) -> str:
    """A hash of the model's structure, numbers, and which of them train."""
    digest = hashlib.sha256(repr(model).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{parameter.requires_grad}".encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def templates() -> list[Files]:
    """Sound adapters of several kinds, as the bytes of their files."""
    found = []
    for settings in (
        {"targets": ("1", "3"), "rank": 2},
        {"targets": ("0", "1"), "rank": 3, "rank_stabilized": True, "train_modules": ("4",)},
        {"targets": ("1", "4"), "rank": 2, "dora": True, "bias": "lora_only", "rank_pattern": {"4": 1}},
        {"targets": ("3",), "rank": 2, "bias": "all", "init": "pissa"},
    ):
        model = victim()
        add_lora(model, LoRAConfig(**settings))  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter) * parameter.requires_grad)
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(model, folder)
            found.append({path.name: path.read_bytes() for path in Path(folder).iterdir()})
    return found


ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**9, 10**400, 1e308, -0.5, 0.5, "", "x", "1", "all-linear", "(a+)+$", "(", "(?P<a>x)(?P=a)"),
    *("[[a]", ".*.*.*.*.*.*x", "\x00", "../../x", [], ["1"], ["nothing"], [1], [[]], {}, {"1": 2}, {"(": 1}, {"^1": 10**400}, {"1": None}),
    *("(.|.)" * 40 + "Z", ".?" * 40 + "Z", "(?x:# [\n(.+)+Z # ]\n)", "(?i:1)", {"(.|.)" * 40 + "Z": 2}, {str(i): 2 for i in range(20_000)}),
    *({".*": 3}, {"1": -1.0}, {"1": True}, "pissa", "é" * 70_000, [""] * 3, {"": 1}, {"x": {"y": [1]}}),
]


def mutate_config(files: Files, rng: random.Random) -> None:
    config = json.loads(files[CONFIG])
    for _ in range(rng.randint(1, 2)):
        key = rng.choice(
            [*config, "target_parameters", "layers_to_transform", "exclude_modules", "lora_bias", "unknown", "layer_replication"]
        )
        if rng.random() < 0.2:
            config.pop(key, None)
        else:
            config[key] = rng.choice(ODD_VALUES)
    files[CONFIG] = json.dumps(config).encode()


def mutate_json_text(files: Files, rng: random.Random) -> None:
    files[CONFIG] = rng.choice(
        [
            *(b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"r": NaN}', b'{"r": 1, "r": 2}', b'"' + b"a" * 5_000_000 + b'"'),
            files[CONFIG].replace(b"2", b"Infinity", 1),
            files[CONFIG].replace(b"2", b"9" * 5000, 1),
            files[CONFIG][: rng.randrange(len(files[CONFIG]))],
        ]
    )


def mutate_bytes(files: Files, rng: random.Random) -> None:
    name = rng.choice(sorted(files))
    content = bytearray(files[name])
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    files[name] = bytes(content)


def mutate_length(files: Files, rng: random.Random) -> None:
    name = rng.choice(sorted(files))
    files[name] = rng.choice([files[name][: rng.randrange(len(files[name]))], files[name] + rng.randbytes(rng.randint(1, 99)), b""])


def mutate_header(files: Files, rng: random.Random) -> None:
    """Another header length, or a tensor said to be of another type, shape or place."""
    content = files[TENSORS]
    length = struct.unpack("<Q", content[:8])[0]
    if rng.random() < 0.3:
        odd = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63 - 1, 2**64 - 1])
        files[TENSORS] = struct.pack("<Q", odd) + content[8:]
        return
    header = json.loads(content[8 : 8 + length])
    entry = header[rng.choice(sorted(header))]
    field = rng.choice(sorted(entry))
    entry[field] = rng.choice(
        [None, "I8", "F64", "BF16", "F8_E4M3", "BOOL", [], [2**40, 2**40], [-1], [0, 8], [8, 0], [0, 2**62], "x", {"a": 1}, [1.5], True]
    )
    text = json.dumps(header).encode()
    files[TENSORS] = struct.pack("<Q", len(text)) + text + content[8 + length :]


def _metadata(files: Files) -> dict[str, str]:
    length = struct.unpack("<Q", files[TENSORS][:8])[0]
    return dict(json.loads(files[TENSORS][8 : 8 + length])["__metadata__"])


def mutate_tensors(files: Files, rng: random.Random) -> None:
    tensors, metadata = load(files[TENSORS]), _metadata(files)
    key = rng.choice(sorted(tensors))
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.T.contiguous() if t.ndim == 2 else t[:-1],
        lambda t: t[:-1],
        lambda t: t.flatten(),
        lambda t: t[None],
        lambda t: t.long(),
        lambda t: t > 0,
        lambda t: t.half(),
        lambda t: t.double() * 1e300,
        lambda t: t * float("nan"),
        lambda t: t.index_fill(0, torch.tensor([0]), float("inf")),
        lambda t: torch.cat((t, t)),
        lambda t: t.new_zeros(0),
        lambda t: t.to(torch.complex64),
    ]
    kind = rng.randrange(4)
    if kind == 0:
        del tensors[key]
    elif kind == 1:
        names = ["x", "base_model.model.", "base_model.model.9.lora_A.weight", "base_model.model.2.lora_A.weight", key + ".x"]
        names += [key.replace("1", "4"), key.upper(), key.replace(".lora_A", ".base_layer.lora_A")]
        tensors[rng.choice(names)] = tensors[key].clone()
    elif kind == 2:
        tensors[key] = rng.choice(changes)(tensors[key])
    else:
        metadata["base_fingerprint"] = rng.choice(["", "0" * 64, "\x00", "é"])
    files[TENSORS] = save(tensors, metadata=metadata)


def mutate_names(files: Files, rng: random.Random) -> None:
    name = rng.choice(sorted(files))
    content = files.pop(name)
    files[rng.choice([name + ".new", name + ".part", "adapter_model.bin", "x"])] = content


MUTATIONS = (mutate_config, mutate_config, mutate_json_text, mutate_bytes, mutate_length, mutate_header, mutate_tensors, mutate_names)


def place_files(folder: Path, files: Files, rng: random.Random) -> None:
    """Write the files; now and then as a folder, a link that leads out, or a link to nothing, instead."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if rng.random() < 0.05:
        path = folder / rng.choice([CONFIG, TENSORS])
        outside = folder.parent / f"outside-{path.name}"
        outside.write_bytes(path.read_bytes() if path.exists() else b"")
        path.unlink(missing_ok=True)
        kind = rng.randrange(4)
        if kind == 0:
            path.mkdir()
        else:
            path.symlink_to((folder, outside, Path("/dev/zero"), folder / "nothing")[kind])


def attack(model: nn.Module, sound: str, template: Files, seed: int) -> str:
    """Load one mutated directory.

    Returns:
        "refused" or "loaded".

    Raises:
        AssertionError: the model changed though loading was refused, or is not restored by taking the adapter away.
        Exception: whatever other than AdapterError loading raised.
    """
    rng = random.Random(f"fuzz-{seed}")
    files = dict(template)
    for _ in range(rng.choice([1, 1, 1, 2])):
        try:
            rng.choice(MUTATIONS)(files, rng)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError, struct.error):
            pass  # a second mutation finds nothing to work on
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "adapter"
        folder.mkdir()
        place_files(folder, files, rng)
        try:
            load_adapter(model, folder, check_base=rng.random() < 0.5)
        except AdapterError as error:
            if state(model) != sound or adapter_names(model):
                raise AssertionError(f"seed {seed}: refused, yet the model changed: {error}") from error
            return "refused"
    model(torch.arange(7))
    if not all(layer.delta_weight().isfinite().all() for _, layer in lora_layers(model)):
        raise AssertionError(f"seed {seed}: loaded, yet an update is not finite")
    remove_lora(model)
    model.requires_grad_(True)
    if state(model) != sound:
        raise AssertionError(f"seed {seed}: taking the adapter away did not restore the model")
    return "loaded"


def fuzz(number: int, seed: int) -> Counter[str]:
    """Attack with this many directories; count what came of them."""
    model = victim()
    sound, sources = state(model), templates()
    outcomes: Counter[str] = Counter()
    for index in range(seed, seed + number):
        outcomes[attack(model, sound, copy.copy(sources[index % len(sources)]), index)] += 1
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description="Load mutated adapter directories.")
    parser.add_argument("--number", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("assets/results/fuzz_adapters.json"))
    arguments = parser.parse_args()
    start = time.perf_counter()
    outcomes = fuzz(arguments.number, arguments.seed)
    result = {"directories": arguments.number, "seed": arguments.seed, **outcomes}
    write_result(arguments.out, result, start=start)
    print(f"{arguments.number} directories: {outcomes['refused']} refused, {outcomes['loaded']} loaded, nothing else")


if __name__ == "__main__":
    main()
