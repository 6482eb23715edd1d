"""Count what a model holds and what of it trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters, each shared one counted once.

    Args:
        trainable: those that require a gradient.
        total: all.

    Example:
        >>> ParameterCount(trainable=1_000, total=8_000).share
        0.125
    """

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable divided by total, 0 for a model without parameters."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters train ({self.share:.2%})"


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters; an adapter's A and B are part of the total.

    Chapter: Fine-tuning with LoRA.

    Example:
        >>> print(count_parameters(nn.Linear(6, 4).requires_grad_(False)))
        0 of 28 parameters train (0.00%)
    """
    parameters = list(model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return ParameterCount(trainable, sum(parameter.numel() for parameter in parameters))
