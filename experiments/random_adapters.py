"""Random networks and adapters to try libraries on: two draws, one conditioned as in training, one harsh. It compares nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Kind:
    """What a random configuration is drawn from.

    Args:
        narrowest, widest: of the layers.
        largest_rank: of the adapters.
        weight: standard deviation of the network's parameters; PyTorch's and Conv1D's own initialization when None.
        move: standard deviation of what is added to everything that trains.
        as_in_training: move less where the scaling is large, take cross-entropy as the loss, and have the libraries agree to 1e-5 in
            float32 too.
    """

    narrowest: int
    widest: int
    largest_rank: int
    weight: float | None
    move: float
    as_in_training: bool


KINDS = {
    # Adam moves a parameter by about its learning rate a step: 0.02 is 100 steps at 2e-4 all in one direction.
    "well-conditioned": Kind(16, 96, 8, weight=None, move=0.02, as_in_training=True),
    "harsh": Kind(3, 40, 3, weight=0.5, move=0.3, as_in_training=False),
}


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
    labels: Tensor | None
    settings: dict[str, Any]
    move: float


def draw(seed: int, kind: Kind) -> Draw:
    """A network and what to adapt in it; shapes, kinds, ranks, alphas, targets, scaling, biases, modules in full."""
    rng = random.Random(f"peft-agreement-{seed}")
    torch.manual_seed(seed)
    count = rng.randint(1, 3)
    widths = rng.sample(range(kind.narrowest, kind.widest + 1), count + 1)  # all different, so that no layer is square
    network = Network(rng.randint(5, 30), widths, [rng.choice(["linear", "conv1d"]) for _ in range(count)], rng.random() < 0.7)
    if kind.weight is not None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(0, kind.weight)
    targets = rng.choice([("proj",), ("embed",), ("proj", "embed"), ("blocks.0.proj",), ("blocks.0.proj", "head"), ("head", "embed")])
    # The vocabulary, at least 5, and the head, 6 wide, bound the ranks too.
    rank = kind.largest_rank if not {"embed", "head"} & set(targets) else min(kind.largest_rank, 5)
    settings: dict[str, Any] = {
        "targets": targets,
        "rank": rng.randint(1, rank),
        "alpha": rng.choice([rng.randint(1, 64), round(rng.uniform(0.5, 40), 3)]),
        "rank_stabilized": rng.random() < 0.4,
        "dora": "embed" not in targets and rng.random() < 0.4,
        "bias": rng.choice(["none", "none", "lora_only", "all"]),
        "train_modules": ("head",) if "head" not in targets and rng.random() < 0.3 else (),
    }
    named = rng.choice(targets)
    settings["rank_pattern"] = {named: rng.randint(1, rank)} if rng.random() < 0.3 else {}
    settings["alpha_pattern"] = {named: rng.randint(1, 32)} if rng.random() < 0.3 else {}
    ids = torch.randint(0, network.embed.num_embeddings, (4, 5))
    if not kind.as_in_training:
        return Draw(network, ids, None, settings, kind.move)
    ranks, alphas = ((settings[name], *settings[f"{name}_pattern"].values()) for name in ("rank", "alpha"))
    scaling = max(alphas) / (min(ranks) ** 0.5 if settings["rank_stabilized"] else min(ranks))
    # A scaling above the usual 2 calls for a smaller learning rate, since the update grows by both.
    return Draw(network, ids, torch.randint(0, 6, (4, 5)), settings, kind.move * min(1.0, 2 / scaling))
