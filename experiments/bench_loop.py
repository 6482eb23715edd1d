"""Time the training loop against a bare forward-backward-step loop over the same batches, side by side.

    python experiments/bench_loop.py

The bare loop does nothing but what it must: its batches lie padded in memory, and it neither clips nor watches the loss nor follows a
schedule. The two alternate step by step, so that whatever else the machine does hits both, and each pair of steps gives one ratio.
Bare steps against the bare steps after them show what of that is noise.
"""

from __future__ import annotations

import argparse
import copy
import platform
import random
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from lorabook import LoRAConfig, add_lora, best_device
from lorabook.language.gpt import GPT, GPTConfig
from lorabook.language.likelihood import Example, conditional_example, negative_log_likelihood, pad_batch
from lorabook.training.batches import Batches
from lorabook.training.loop import train

_LEARNING_RATE = 1e-3


@dataclass
class Ratios:
    """Throughput of the loop over that of the bare loop, one number for each pair of steps.

    Args:
        wall: by the clock on the wall.
        cpu: by the time that the process computed, which other processes on the machine disturb less.
        noise: each bare step over the next one, by the clock on the wall.
    """

    wall: list[float]
    cpu: list[float]
    noise: list[float]


def measure(model: nn.Module, examples: list[Example], *, batch_size: int, steps: int) -> Ratios:
    """Train two copies of the model, one with the loop, the other with bare steps that run whenever the loop begins a step."""
    device = next(model.parameters()).device
    batches = Batches(examples, batch_size, seed=0)
    padded = [[part.to(device) for part in pad_batch(batches.draw())] for _ in range(steps)]
    looped, bared = copy.deepcopy(model), copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW([p for p in bared.parameters() if p.requires_grad], lr=_LEARNING_RATE, weight_decay=0.0)

    def now() -> tuple[float, float]:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    marks: list[tuple[tuple[float, float], tuple[float, float]]] = []

    def bare_step(*_: object) -> None:
        start = now()
        input_ids, labels = padded[len(marks)]
        total, count = negative_log_likelihood(bared(input_ids), labels)
        (total / count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        marks.append((start, now()))

    # Between two calls of this hook lies one whole step of the loop, from its forward pass to the next batch.
    looped.register_forward_pre_hook(bare_step)
    train(looped, examples, steps=steps, learning_rate=_LEARNING_RATE, batch_size=batch_size, precision="float32")

    found = Ratios([], [], [])
    for (start, end), (next_start, next_end) in list(pairwise(marks))[2:]:  # the first steps allocate memory
        found.wall.append((end[0] - start[0]) / (next_start[0] - end[0]))
        found.cpu.append((end[1] - start[1]) / (next_start[1] - end[1]))
        found.noise.append((end[0] - start[0]) / (next_end[0] - next_start[0]))
    return found


def backbone(n_embd: int, n_layer: int, vocab_size: int = 2048) -> GPT:
    """A GPT with LoRA of rank 8 on all linear layers."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=vocab_size, context=256, n_layer=n_layer, n_head=n_embd // 32, n_embd=n_embd))
    add_lora(model, LoRAConfig(rank=8, alpha=16.0, targets="all-linear"))
    return model


def prompts(count: int, vocab_size: int = 2048) -> list[Example]:
    """Random tokens of the lengths that questions and queries have."""
    rng = random.Random(0)

    def tokens(least: int, most: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(rng.randint(least, most))]

    return [conditional_example(tokens(30, 70), tokens(5, 30)) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the training loop against a bare loop over the same batches.")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    device = best_device()
    print(f"{device.type}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, Python {platform.python_version()}")
    print(f"throughput of the loop over that of the bare loop, median and quartiles of {arguments.steps - 3} pairs of steps")
    for width, batch_size in ((128, 32), (192, 32)):
        ratios = measure(backbone(width, 4).to(device), prompts(400), batch_size=batch_size, steps=arguments.steps)
        for name, values in (("wall", ratios.wall), ("cpu", ratios.cpu), ("noise", ratios.noise)):
            low, middle, high = statistics.quantiles(values, n=4)
            print(f"  width {width}, batch {batch_size}: {name:5} {middle:.3f}  ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
