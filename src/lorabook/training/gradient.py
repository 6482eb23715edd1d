"""The gradient of one step, right by target tokens however the batch is cut. It knows no optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lorabook.language.likelihood import IGNORE, Example, negative_log_likelihood, pad_batch
from lorabook.training.batches import count_targets
from lorabook.training.distributed import rank_count, share
from lorabook.training.runtime import autocast


def accumulate_gradient(
    model: nn.Module, batch: Sequence[Example], *, micro_batch_size: int | None = None, precision: str = "float32"
) -> tuple[Tensor, int]:
    r"""Add to each ``grad`` what this process contributes to the gradient of the batch's mean loss per target token.

    .. math:: \nabla \mathcal L = \sum_{\text{ranks}} \; \sum_{\text{micro-batches } m}
        \nabla \frac{1}{N} \sum_{t \in m} -\log p(y_t \mid y_{<t})

    N counts the target tokens of the *whole* batch, so the sum does not depend on how the batch is cut. Averages of micro-batches,
    averaged again, would: a token among few would count for more than a token among many.

    Args:
        model: maps input ids (B, T) to logits (B, T, vocab_size); with ranks, the data-parallel one, which adds up the ranks' gradients
            in the backward pass of the last micro-batch.
        batch: all of it; each rank takes its share.
        micro_batch_size: sequences that go through the model at a time, the whole share when None. Fewer need less memory.
        precision: "float32" or "bfloat16".

    Returns:
        This process's share of the mean loss, a scalar without gradient, and N.

    Raises:
        ValueError: the batch has no target token, nothing trains, or a setting is outside its range.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5)).double()
        >>> batch = [([1], [2]), ([1, 2, 3], [2, 3, 4])]
        >>> gradients = []
        >>> for size in (1, 2):
        ...     model.zero_grad()
        ...     loss, target_tokens = accumulate_gradient(model, batch, micro_batch_size=size)
        ...     gradients.append(model[0].weight.grad)
        >>> target_tokens, torch.allclose(*gradients, rtol=1e-12)
        (4, True)
    """
    target_tokens = count_targets(batch)
    if not target_tokens:
        raise ValueError("the batch has no target token: every example needs a label")
    device = next((parameter.device for parameter in model.parameters() if parameter.requires_grad), None)
    if device is None:
        raise ValueError("no parameter requires a gradient: add an adapter or unfreeze something")
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ValueError(f"micro_batch_size must be at least 1, or None for the whole share, got {micro_batch_size}")
    own, largest = share(batch), math.ceil(len(batch) / rank_count())
    size = micro_batch_size or largest
    loss = torch.zeros((), device=device)
    for start in range(0, largest, size):
        # Sharded weights meet in each pass, so every rank makes as many, the last one with a sequence without labels if need be.
        micro_batch = own[start : start + size] or [(batch[0][0], [IGNORE] * len(batch[0][1]))]
        input_ids, labels = (part.to(device, non_blocking=True) for part in pad_batch(micro_batch))
        waits = isinstance(model, DistributedDataParallel) and start + size < largest
        with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with autocast(device, precision):
                logits = model(input_ids)
            total, _ = negative_log_likelihood(logits, labels)
            part_of_mean = total / target_tokens
            part_of_mean.backward()  # type: ignore[no-untyped-call]
        loss = loss + part_of_mean.detach()
    return loss, target_tokens
