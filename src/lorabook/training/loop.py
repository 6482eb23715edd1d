"""One training loop for every method: it moves whatever parameters require gradients and knows no adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from lorabook.language.likelihood import Example, negative_log_likelihood, pad_batch

_BETAS = (0.9, 0.98)  # the second moment averages some fifty steps; the usual 0.999 would outlast a short run


@dataclass(frozen=True)
class TrainingLog:
    """What a run did.

    Args:
        losses: mean negative log-likelihood per target token of each step's batch, in nats.
        seconds: wall time of all steps.
        target_tokens: tokens that carried loss, over all steps.
    """

    losses: tuple[float, ...]
    seconds: float
    target_tokens: int


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Linear warm-up to 1, then a half cosine down to 0.

    Args:
        step: 0 for the first step.
        steps: length of the run.
        warmup_steps: how many steps the rise takes.

    Example:
        >>> [round(learning_rate_factor(step, 8, 2), 2) for step in range(8)]
        [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def train(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    steps: int,
    learning_rate: float,
    batch_size: int = 32,
    micro_batch_size: int | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    clip_norm: float = 1.0,
    lora_plus_ratio: float = 1.0,
    precision: str = "auto",
    seed: int = 0,
    description: str = "training",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    shard_frozen: bool = False,
) -> TrainingLog:
    r"""Minimize :math:`-\sum \log p(y_t \mid y_{<t}) / N` with AdamW, N the target tokens of a batch.

    Only parameters with ``requires_grad`` move. Examples are drawn in a new random order each epoch.

    Args:
        model: maps input ids (B, T) to logits (B, T, vocab_size); left in the mode in which it came.
        examples: inputs and labels of each sequence.
        steps: number of updates, at least 1.
        learning_rate: peak learning rate, after warm-up.
        batch_size: sequences per step.
        weight_decay: AdamW's decoupled decay.
        warmup: share of the steps in which the rate rises.
        clip_norm: largest norm of the gradient of all parameters together.
        seed: order of the examples, and dropout. The global generator of PyTorch is restored afterwards.
        description: label of the progress bar.

    Returns:
        The losses, the wall time and the number of target tokens.

    Raises:
        ValueError: nothing to train, no examples, steps or batch size below 1, a batch without any label.
        FloatingPointError: the loss is not finite; the update of that step was not made.

    Chapter: Fine-tuning with LoRA.
    """
    if micro_batch_size is not None or lora_plus_ratio != 1 or precision != "auto" or checkpoint is not None or shard_frozen:
        raise NotImplementedError("the signature is settled, what is behind it comes with the next commits")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("no parameter requires a gradient: add an adapter or unfreeze something")
    if not examples or steps < 1 or batch_size < 1:
        raise ValueError(f"need examples, steps and batch_size of at least 1, got {len(examples)}, {steps} and {batch_size}")
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, betas=_BETAS)
    warmup_steps = max(1, round(warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, warmup_steps))
    batches = _batches(examples, batch_size, torch.Generator().manual_seed(seed))

    losses: list[float] = []
    target_tokens = 0
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    start = time.perf_counter()
    try:
        with torch.random.fork_rng(), tqdm(range(steps), desc=description, leave=False, mininterval=0.5) as progress:
            torch.manual_seed(seed)
            for _ in progress:
                input_ids, labels = pad_batch(next(batches))
                total, count = negative_log_likelihood(model(input_ids.to(device)), labels.to(device))
                if not count:
                    raise ValueError(f"the batch of step {len(losses)} has no target token: every example needs a label")
                loss = total / count
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"loss is {loss.item()} at step {len(losses)}: lower the learning rate")
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, clip_norm)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                target_tokens += int(count)
                progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    finally:
        for module, training in modes:
            module.training = training
    return TrainingLog(tuple(losses), time.perf_counter() - start, target_tokens)


def _batches(examples: Sequence[Example], batch_size: int, generator: torch.Generator) -> Iterator[list[Example]]:
    """Batches without end; each epoch visits every example once, in a new order, and carries its rest into the next.

    Examples of like length are not put together, although that would save padding: questions of one length tend to be of one kind, and
    in a trial with one seed such batches made LoRA learn worse.
    """
    queue: list[int] = []
    while True:
        while len(queue) < batch_size:
            queue.extend(torch.randperm(len(examples), generator=generator).tolist())
        yield [examples[index] for index in queue[:batch_size]]
        del queue[:batch_size]
