"""The training objective: next-token negative log-likelihood, with the prompt masked; it knows tensors, not models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100  # label of a position that carries no loss; the value that PyTorch's cross_entropy skips by default

Example = tuple[list[int], list[int]]  # input ids and labels of one sequence, of one length


def sequence_example(tokens: Sequence[int]) -> Example:
    """Inputs and labels of a text in which every token but the first is to be predicted.

    The shift by one happens here and nowhere else: label ``t`` is token ``t + 1``.

    Raises:
        ValueError: fewer than two tokens.

    Example:
        >>> sequence_example([5, 6, 7])
        ([5, 6], [6, 7])
    """
    if len(tokens) < 2:
        raise ValueError(f"a sequence needs at least 2 tokens to predict one, got {len(tokens)}")
    return list(tokens[:-1]), list(tokens[1:])


def conditional_example(prompt: Sequence[int], target: Sequence[int]) -> Example:
    """Inputs and labels for p(target | prompt): the prompt is read but carries no loss.

    Raises:
        ValueError: an empty prompt or target.

    Example:
        >>> conditional_example([5, 6], [7, 8])
        ([5, 6, 7], [-100, 7, 8])
    """
    if not prompt or not target:
        raise ValueError("the prompt and the target each need at least one token")
    inputs, labels = sequence_example([*prompt, *target])
    return inputs, [IGNORE] * (len(prompt) - 1) + labels[len(prompt) - 1 :]


def pad_batch(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Stack examples of different lengths; padding stands at the right and carries no loss.

    Causal attention never looks right, so what the padding holds cannot change any other position.

    Returns:
        Input ids and labels, both (B, T) with T the longest example.

    Raises:
        ValueError: no example, or one with more or fewer labels than inputs.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    for inputs, targets in examples:
        if len(inputs) != len(targets):
            counts = f"{len(inputs)} inputs and {len(targets)} labels"
            raise ValueError(f"an example has a label for each input, {IGNORE} where none counts; got {counts}")
    longest = max(len(inputs) for inputs, _ in examples)
    input_ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORE, dtype=torch.long)
    for row, (inputs, targets) in enumerate(examples):
        input_ids[row, : len(inputs)] = torch.tensor(inputs)
        labels[row, : len(targets)] = torch.tensor(targets)
    return input_ids, labels


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    r"""Sum of :math:`-\log p_\Theta(y_t \mid y_{<t})` over the labelled positions, and how many there are.

    It returns the two separately because only their sums may be divided: averaging each batch first and the batches afterwards
    weights tokens unequally.

    Args:
        logits: (B, T, vocab_size).
        labels: (B, T), with -100 where a position carries no loss.

    Returns:
        The summed loss in nats (a scalar that carries gradients) and the number of target tokens (a scalar).

    Source: Hu et al. 2021 (LoRA), equation 1.
    Chapter: Fine-tuning with LoRA.

    Example:
        >>> total, count = negative_log_likelihood(torch.zeros(1, 2, 4), torch.tensor([[-100, 3]]))
        >>> round(total.item(), 4), count.item()
        (1.3863, 1)
    """
    # Computed in float32 at least: under autocast the logits arrive in 16 bits.
    wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(wide, labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return total, (labels != IGNORE).sum()


def perplexity(total: float, count: int) -> float:
    r""":math:`\exp(\text{total} / \text{count})`: the size of a uniform choice that would surprise as much.

    Args:
        total: summed negative log-likelihood in nats.
        count: number of target tokens, at least 1.

    Raises:
        ValueError: no target token.
    """
    if count < 1:
        raise ValueError(f"perplexity needs at least one target token, got {count}")
    return float(torch.exp(torch.tensor(total / count, dtype=torch.float64)))


def bits_per_byte(total: float, n_bytes: int) -> float:
    r""":math:`\text{total} / (n \ln 2)`: bits that the model needs for each byte of UTF-8, whatever the tokenizer.

    Args:
        total: summed negative log-likelihood of a text's tokens, in nats.
        n_bytes: length of the text, in bytes, at least 1.

    Raises:
        ValueError: no bytes.

    Example:
        >>> round(bits_per_byte(16.6355, 8), 3)
        3.0
    """
    if n_bytes < 1:
        raise ValueError(f"bits per byte needs a text of at least one byte, got {n_bytes}")
    return total / (n_bytes * math.log(2))
