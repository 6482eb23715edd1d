"""Random adapters, each saved by one library and loaded by the other, compared in outputs and gradients: lorabook and PEFT.

    python experiments/peft_agreement.py --number 1000 --seed 0

Writes assets/results/peft_agreement.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorabook import LoRAConfig, add_lora, load_adapter, save_adapter
from lorabook.adapters.peft_keys import tensors_of
from lorabook.adapters.site import TrainedCopy, layers_named


class Network(nn.Module):
    """Token ids through an embedding, layers of random kinds and widths, and a head."""

    def __init__(self, vocabulary: int, widths: list[int], kinds: list[str], biased: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, widths[0])
        pairs = zip(kinds, widths, widths[1:], strict=False)
        layers = [nn.Linear(k, d, bias=biased) if kind == "linear" else Conv1D(d, k) for kind, k, d in pairs]  # type: ignore[no-untyped-call]
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"proj": layer, "norm": nn.LayerNorm(d)}) for layer, d in zip(layers, widths[1:], strict=True)
        )
        self.head = nn.Linear(widths[-1], 6)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (B, T) to (B, T, 6)."""
        x = self.embed(ids)
        for block in self.blocks:
            x = torch.tanh(block["norm"](block["proj"](x)))  # type: ignore[index]
        y: Tensor = self.head(x)
        return y


@dataclass(frozen=True)
class Draw:
    """One random configuration."""

    network: Network
    ids: Tensor
    settings: dict[str, Any]


def draw(seed: int) -> Draw:
    """A network and what to adapt in it; shapes, kinds, ranks, alphas, targets, scaling, biases, modules in full."""
    rng = random.Random(f"peft-agreement-{seed}")
    torch.manual_seed(seed)
    count = rng.randint(1, 3)
    widths = [rng.randint(8, 48) for _ in range(count + 1)]
    network = Network(rng.randint(5, 30), widths, [rng.choice(["linear", "conv1d"]) for _ in range(count)], rng.random() < 0.7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
    targets = rng.choice([("proj",), ("embed",), ("proj", "embed"), ("blocks.0.proj",), ("blocks.0.proj", "head"), ("head", "embed")])
    settings: dict[str, Any] = {
        "targets": targets,
        "rank": rng.randint(1, 5),
        "alpha": rng.choice([rng.randint(1, 32), round(rng.uniform(0.5, 32), 3)]),
        "rank_stabilized": rng.random() < 0.4,
        "dora": "embed" not in targets and rng.random() < 0.4,
        "bias": rng.choice(["none", "none", "lora_only", "all"]),
        "train_modules": ("head",) if "head" not in targets and rng.random() < 0.3 else (),
    }
    named = rng.choice(targets)
    settings["rank_pattern"] = {named: rng.randint(1, 5)} if rng.random() < 0.3 else {}
    settings["alpha_pattern"] = {named: rng.randint(1, 32)} if rng.random() < 0.3 else {}
    return Draw(network, torch.randint(0, network.embed.num_embeddings, (4, 5)), settings)


def ours(network: nn.Module, settings: dict[str, Any], init: str = "kaiming") -> nn.Module:
    model = copy.deepcopy(network)
    add_lora(model, LoRAConfig(**settings, init=init))
    return model


def theirs(network: nn.Module, settings: dict[str, Any]) -> peft.PeftModel:
    config = peft.LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        target_modules=list(settings["targets"]),
        use_rslora=settings["rank_stabilized"],
        use_dora=settings["dora"],
        bias=settings["bias"],
        modules_to_save=list(settings["train_modules"]) or None,
        rank_pattern=settings["rank_pattern"],
        alpha_pattern=settings["alpha_pattern"],
    )
    return peft.get_peft_model(copy.deepcopy(network), config)


def move_adapter(model: nn.Module) -> None:
    """Change everything that trains, so that no factor is zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of an adapter by PEFT's names of its tensors."""
    if isinstance(model, peft.PeftModel):
        named = {name.replace(".modules_to_save.default", "").replace(".default", ""): p for name, p in model.named_parameters()}
    else:
        named = {}
        for path, layer in layers_named(model, "default").items():
            named.update({key: tensor for key, tensor in tensors_of(path, layer).items() if isinstance(tensor, nn.Parameter)})
            if isinstance(layer, TrainedCopy):
                named.update({f"base_model.model.{path}.{name}": p for name, p in layer.module.named_parameters()})
    short = {name.replace("magnitude_vector.weight", "magnitude_vector").replace(".base_layer", ""): p for name, p in named.items()}
    return {name: p.grad for name, p in short.items() if p.requires_grad and p.grad is not None}


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest number."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


def disagreement(one: nn.Module, other: nn.Module, ids: Tensor) -> float:
    """The worst relative error between two models' outputs and gradients.

    Raises:
        AssertionError: they do not train the same tensors.
    """
    outputs = []
    for model in (one.eval(), other.eval()):
        outputs.append(model(ids))
        (outputs[-1] * torch.linspace(-1, 1, outputs[-1].numel()).view_as(outputs[-1])).sum().backward()
    first, second = gradients(one), gradients(other)
    if first.keys() != second.keys():
        raise AssertionError(f"one trains {sorted(first.keys() - second.keys())}, the other {sorted(second.keys() - first.keys())}")
    return max([relative_error(*outputs), *(relative_error(first[name], second[name]) for name in first)])


def compare(seed: int) -> float:
    """The worst disagreement over both directions for one random configuration."""
    drawn = draw(seed)
    errors = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on Conv1D and on tied or odd targets
        mine = ours(drawn.network, drawn.settings)
        move_adapter(mine)
        save_adapter(mine, f"{folder}/ours")
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(drawn.network), f"{folder}/ours", is_trainable=True)
        errors.append(disagreement(mine, loaded, drawn.ids))

        other = theirs(drawn.network, drawn.settings)
        move_adapter(other)
        other.save_pretrained(f"{folder}/theirs")
        read = copy.deepcopy(drawn.network)
        load_adapter(read, f"{folder}/theirs")
        errors.append(disagreement(read, other, drawn.ids))
    return max(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare random adapters between lorabook and PEFT.")
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("assets/results/peft_agreement.json"))
    arguments = parser.parse_args()

    start = time.perf_counter()
    errors = {seed: compare(seed) for seed in range(arguments.seed, arguments.seed + arguments.number)}
    worst = max(errors, key=lambda seed: errors[seed])
    result = {
        "command": f"python experiments/peft_agreement.py --number {arguments.number} --seed {arguments.seed}",
        "configurations": arguments.number,
        "seed": arguments.seed,
        "worst_relative_error": errors[worst],
        "worst_configuration": worst,
        "median_relative_error": sorted(errors.values())[len(errors) // 2],
        "above_1e-5": sorted(seed for seed, error in errors.items() if error > 1e-5),
        "device": f"cpu, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "seconds": round(time.perf_counter() - start),
        "date": time.strftime("%Y-%m-%d"),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"worst relative error {errors[worst]:.2e} (configuration {worst}) over {arguments.number} configurations")


if __name__ == "__main__":
    main()
