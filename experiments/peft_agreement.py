"""Random adapters, each saved by one library and loaded by the other, compared in outputs and gradients: lorabook and PEFT.

    python experiments/peft_agreement.py --number 1000 --seed 0

For each configuration one library makes an adapter and saves it, the other loads it, and both compute outputs and gradients, in float32
and, with the same weights, in float64. The error of a tensor is the norm of the difference over the norm of the reference, and that of a
configuration the largest over the outputs and every gradient, in both directions. The reference is PEFT; in float64 what is left of the
error shows whether the two compute the same function. In float32 two right programs differ too, the more the worse the configuration is
conditioned (layer norms over three numbers occur here), so each is also compared with the float64 result, the truth.

Writes assets/results/peft_agreement.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import statistics
import subprocess
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
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
    widths = [rng.randint(3, 40) for _ in range(count + 1)]
    network = Network(rng.randint(5, 30), widths, [rng.choice(["linear", "conv1d"]) for _ in range(count)], rng.random() < 0.7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.5)
    targets = rng.choice([("proj",), ("embed",), ("proj", "embed"), ("blocks.0.proj",), ("blocks.0.proj", "head"), ("head", "embed")])
    settings: dict[str, Any] = {
        "targets": targets,
        "rank": rng.randint(1, 3),
        "alpha": rng.choice([rng.randint(1, 64), round(rng.uniform(0.5, 40), 3)]),
        "rank_stabilized": rng.random() < 0.4,
        "dora": "embed" not in targets and rng.random() < 0.4,
        "bias": rng.choice(["none", "none", "lora_only", "all"]),
        "train_modules": ("head",) if "head" not in targets and rng.random() < 0.3 else (),
    }
    named = rng.choice(targets)
    settings["rank_pattern"] = {named: rng.randint(1, 3)} if rng.random() < 0.3 else {}
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
                parameter.add_(0.3 * torch.randn_like(parameter))


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


@dataclass(frozen=True)
class Errors:
    """Relative errors of one configuration: between the libraries in two precisions, and of each from the truth in float32."""

    float32: float
    float64: float
    ours_from_truth: float
    theirs_from_truth: float


def relative_error(result: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """The largest, over the tensors, of the norm of the difference over the norm of the reference."""
    norms = {
        name: (float((result[name].double() - other.double()).norm()), float(other.double().norm())) for name, other in reference.items()
    }
    return max(difference / norm if norm else (0.0 if difference == 0 else float("inf")) for difference, norm in norms.values())


def results(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """A model's outputs and the gradients of its adapter, by name."""
    outputs = model.eval()(ids)
    (outputs * torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)).sum().backward()
    return {"outputs": outputs.detach(), **gradients(model)}


def disagreement(ours: nn.Module, theirs: nn.Module, ids: Tensor) -> Errors:
    """The errors between two models that hold the same adapter.

    Raises:
        AssertionError: they do not train the same tensors.
    """
    wide = [results(copy.deepcopy(model).double(), ids) for model in (ours, theirs)]
    narrow = [results(model, ids) for model in (ours, theirs)]
    if narrow[0].keys() != narrow[1].keys() or wide[0].keys() != narrow[0].keys():
        raise AssertionError(f"one trains {sorted(narrow[0])}, the other {sorted(narrow[1])}")
    return Errors(
        float32=relative_error(*narrow),
        float64=relative_error(*wide),
        ours_from_truth=relative_error(narrow[0], wide[1]),
        theirs_from_truth=relative_error(narrow[1], wide[1]),
    )


def compare(seed: int) -> Errors:
    """The worst errors over both directions for one random configuration; those from the truth where float32 is worst."""
    drawn = draw(seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on Conv1D and on tied or odd targets
        mine = ours(drawn.network, drawn.settings)
        move_adapter(mine)
        save_adapter(mine, f"{folder}/ours")
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(drawn.network), f"{folder}/ours", is_trainable=True)
        there = disagreement(mine, loaded, drawn.ids)

        other = theirs(drawn.network, drawn.settings)
        move_adapter(other)
        other.save_pretrained(f"{folder}/theirs")
        read = copy.deepcopy(drawn.network)
        load_adapter(read, f"{folder}/theirs")
        back = disagreement(read, other, drawn.ids)
    worse = max(there, back, key=lambda errors: errors.float32)
    return Errors(worse.float32, max(there.float64, back.float64), worse.ours_from_truth, worse.theirs_from_truth)


def ratio(errors: Errors) -> float:
    """How many times as far from the truth as PEFT this package is in float32."""
    return max(errors.ours_from_truth, 1e-12) / max(errors.theirs_from_truth, 1e-12)


def summary(errors: dict[int, Errors]) -> dict[str, Any]:
    """The distribution of the errors, and those above 1e-5 in float32 one by one."""
    worst = max(errors, key=lambda seed: errors[seed].float32)
    above = {seed: found for seed, found in errors.items() if found.float32 > 1e-5}
    return {
        "configurations": len(errors),
        "float64": {
            "worst_relative_error": max(found.float64 for found in errors.values()),
            "above_1e-10": sorted(seed for seed, found in errors.items() if not found.float64 <= 1e-10),
        },
        "float32": {
            "worst_relative_error": errors[worst].float32,
            "worst_configuration": worst,
            "median_relative_error": statistics.median(found.float32 for found in errors.values()),
            "percentile_99_relative_error": sorted(found.float32 for found in errors.values())[int(0.99 * len(errors))],
            "number_above_1e-5": len(above),
        },
        "float32_from_truth": {
            "ours_median": statistics.median(found.ours_from_truth for found in errors.values()),
            "theirs_median": statistics.median(found.theirs_from_truth for found in errors.values()),
            "ours_worst": max(found.ours_from_truth for found in errors.values()),
            "theirs_worst": max(found.theirs_from_truth for found in errors.values()),
            "ours_over_theirs_geometric_mean": statistics.geometric_mean(ratio(found) for found in errors.values()),
            "ours_over_theirs_geometric_mean_above_1e-5": statistics.geometric_mean(map(ratio, above.values())) if above else None,
            "above_1e-5_ours_further_by_2": sorted(seed for seed, found in above.items() if ratio(found) > 2),
            "above_1e-5_theirs_further_by_2": sorted(seed for seed, found in above.items() if ratio(found) < 1 / 2),
        },
        "above_1e-5": [{"configuration": seed, **asdict(found)} for seed, found in sorted(above.items())],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare random adapters between lorabook and PEFT.")
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("assets/results/peft_agreement.json"))
    arguments = parser.parse_args()

    start = time.perf_counter()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()  # noqa: S607
    result = summary({seed: compare(seed) for seed in range(arguments.seed, arguments.seed + arguments.number)})
    provenance = {
        "command": f"python experiments/peft_agreement.py --number {arguments.number} --seed {arguments.seed}",
        "commit": commit,
        "device": f"cpu, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "seconds": round(time.perf_counter() - start),
        "date": time.strftime("%Y-%m-%d"),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"provenance": provenance, **result}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
