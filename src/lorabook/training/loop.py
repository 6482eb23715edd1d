"""One training loop for every method: it moves whatever parameters require gradients and knows no adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lorabook.language.likelihood import Example
from lorabook.training.batches import Batches
from lorabook.training.checkpoint import RunState
from lorabook.training.distributed import agree, data_parallel, gather, is_main, rank, rank_count, shard_frozen_weights
from lorabook.training.gradient import accumulate_gradient
from lorabook.training.identity import Identity, Setting, differences, run_identity
from lorabook.training.interrupt import termination
from lorabook.training.optim import adamw, learning_rate_factor, set_learning_rate
from lorabook.training.progress import Progress, Tally
from lorabook.training.runtime import resolve_precision, seeded

_SETTINGS = (  # those that decide the result, so that a run may go on only under the same
    *("steps", "learning_rate", "batch_size", "micro_batch_size", "weight_decay"),
    *("warmup", "clip_norm", "lora_plus_ratio", "precision", "seed"),
)


@dataclass(frozen=True)
class TrainingLog:
    """What a run did, its parts before an interruption included.

    Args:
        losses: mean negative log-likelihood per target token of each step's batch, in nats.
        seconds: wall time of all steps.
        target_tokens: tokens that carried loss, over all steps.
        tokens: tokens read, over all steps, without padding.
        resumed_at: the step from which this call went on, 0 where it began anew.
        gradient_bytes: what each rank gave to the all-reduce in this call; 0 without ranks.
    """

    losses: tuple[float, ...]
    seconds: float
    target_tokens: int
    tokens: int = 0
    resumed_at: int = 0
    gradient_bytes: int = 0


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

    Only parameters with ``requires_grad`` move. Examples are drawn in a new random order each epoch. Under torchrun, inside
    :func:`~lorabook.training.distributed.process_group`, each rank takes its share of every batch; all ranks give the same arguments.

    Args:
        model: maps input ids (B, T) to logits (B, T, vocab_size); left in the mode in which it came. Where some of it is frozen, norms
            with running means stay in evaluation unless they train: those means are the backbone's, and no adapter saves them.
        examples: inputs and labels of each sequence.
        steps: number of updates, at least 1.
        learning_rate: peak learning rate, after warm-up.
        batch_size: sequences per step, of all ranks together.
        micro_batch_size: sequences that go through the model at a time, all of a rank's share when None. The gradient is the same.
        weight_decay: AdamW's decoupled decay, of matrices; see :func:`~lorabook.training.optim.adamw`.
        warmup: share of the steps in which the rate rises.
        clip_norm: largest norm of the gradient of all parameters together.
        lora_plus_ratio: learning rate of B over that of A (LoRA+).
        precision: "float32", "bfloat16" (autocast; the trained parameters stay float32), or "auto": bfloat16 on a GPU that has it.
        seed: order of the examples, and dropout. The global generator of PyTorch is restored afterwards.
        description: label of the progress bar.
        checkpoint: one file, from which the run goes on if it is there; written every ``checkpoint_every`` steps, at the end and on
            SIGTERM.
        checkpoint_every: steps, at least 1.
        shard_frozen: leave on each rank only a part of the frozen weights (FSDP2).

    Returns:
        The losses, the wall time and the number of tokens.

    Raises:
        ValueError: nothing to train, no examples, a setting outside its range, a batch without any label, ranks that disagree.
        CheckpointError: the checkpoint is of another run, or unreadable.
        FloatingPointError: the loss or its gradient is not finite; the update of that step was not made.
        Interrupted: SIGTERM came, in a run with a checkpoint; the step was finished and all is saved.

    Chapter: Fine-tuning with LoRA.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    _check(parameters, examples, steps, batch_size, micro_batch_size, checkpoint_every)
    if not clip_norm > 0 or not 0 <= warmup <= 1:
        raise ValueError(f"need a clip_norm above 0 and a warmup from 0 to 1, a share of the steps, got {clip_norm} and {warmup}")
    device = parameters[0].device
    precision = resolve_precision(device, precision)
    settings = {name: value.item() if hasattr(value, "item") else value for name, value in locals().items() if name in _SETTINGS}
    path = None if checkpoint is None else Path(checkpoint)

    optimizer = adamw(model, learning_rate=learning_rate, weight_decay=weight_decay, lora_plus_ratio=lora_plus_ratio)
    identity = _identity(model, examples, {**settings, "device": device.type, "ranks": rank_count()}) if path or rank_count() > 1 else {}
    run = RunState(model, optimizer, Batches(examples, batch_size, seed), Tally(), identity)

    # Another seed on each rank, so that dropout differs there too.
    with _training_mode(model), seeded(seed + rank(), device), termination(path is not None) as request:
        if path and path.exists():
            run.resume(path)
        if shard_frozen:
            shard_frozen_weights(model)
        parallel, traffic = data_parallel(model)
        resumed_at, warmup_steps = len(run.tally.losses), max(1, round(warmup * steps))
        with Progress(run.tally, steps, description, shown=is_main()) as progress:
            for step in range(resumed_at, steps):
                batch = run.batches.draw()
                optimizer.zero_grad()
                own_loss, target_tokens = accumulate_gradient(parallel, batch, micro_batch_size=micro_batch_size, precision=precision)
                loss, stop = agree(own_loss, request.made)
                if not math.isfinite(loss):
                    raise FloatingPointError(f"loss is {loss} at step {step}: lower the learning rate")
                norm = float(nn.utils.clip_grad_norm_(parameters, clip_norm))
                if not math.isfinite(norm):
                    raise FloatingPointError(f"the norm of the gradient is {norm} at step {step}: lower the learning rate")
                set_learning_rate(optimizer, learning_rate_factor(step, steps, warmup_steps))
                optimizer.step()
                progress.step(loss, target_tokens, sum(len(inputs) for inputs, _ in batch))
                if path and (stop or (step + 1) % checkpoint_every == 0 or step + 1 == steps):
                    run.save(path)
                if stop:
                    request.made = True  # on all ranks, whichever was asked
                    break
    return TrainingLog(
        tuple(run.tally.losses), run.tally.seconds, run.tally.target_tokens, run.tally.tokens, resumed_at, traffic.gradient_bytes
    )


def _check(
    parameters: Sequence[nn.Parameter],
    examples: Sequence[Example],
    steps: int,
    batch_size: int,
    micro_batch_size: int | None,
    checkpoint_every: int,
) -> None:
    if not parameters:
        raise ValueError("no parameter requires a gradient: add an adapter or unfreeze something")
    narrow = next((parameter.dtype for parameter in parameters if parameter.dtype.itemsize < 4), None)
    if narrow:
        raise ValueError(f"trained parameters must be float32 or wider, got {narrow}: small updates would be rounded away")
    if not examples or steps < 1 or batch_size < 1:
        raise ValueError(f"need examples, steps and batch_size of at least 1, got {len(examples)}, {steps} and {batch_size}")
    if (micro_batch_size is not None and micro_batch_size < 1) or checkpoint_every < 1:
        raise ValueError(f"need micro_batch_size and checkpoint_every of at least 1, got {micro_batch_size} and {checkpoint_every}")
    if batch_size < rank_count():
        raise ValueError(f"batch_size must be at least {rank_count()}, one for each rank, got {batch_size}")


def _identity(model: nn.Module, examples: Sequence[Example], settings: Mapping[str, Setting]) -> Identity:
    identity = run_identity(model, examples, settings)
    for other, theirs in enumerate(gather(identity)):
        differs = differences(identity, theirs)
        if differs:
            raise ValueError(f"rank {rank()} and rank {other} are to do one run, but here {differs}: give all ranks the same")
    return identity


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    partly_frozen = any(not parameter.requires_grad for parameter in model.parameters())
    for module, _ in modes if partly_frozen else ():
        if getattr(module, "track_running_stats", False) and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
