"""How a fresh A is filled. B starts at zero, so none of these changes what the model computes; they change how it learns."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def kaiming(rank: int, in_features: int, generator: torch.Generator | None) -> Tensor:
    r"""Uniform on :math:`[-1/\sqrt{k}, 1/\sqrt{k}]` with :math:`k` = in_features, hence variance :math:`1/(3k)`.

    This is what Kaiming's uniform rule with :math:`a = \sqrt 5` comes to for an (r, k) matrix.

    Returns:
        A, (rank, in_features), float32.

    Source: the reference code of Hu et al. 2021 (microsoft/LoRA), which departs from the paper here.
    """
    bound = 1 / math.sqrt(in_features)
    return torch.empty(rank, in_features, dtype=torch.float32).uniform_(-bound, bound, generator=generator)


def gaussian(rank: int, in_features: int, generator: torch.Generator | None) -> Tensor:
    r"""Normal with mean 0 and standard deviation :math:`1/r`.

    The paper says "random Gaussian" and leaves the variance open; PEFT's option of this name uses :math:`1/r`.

    Returns:
        A, (rank, in_features), float32.

    Source: Hu et al. 2021 (LoRA), section 4.1.
    """
    return torch.empty(rank, in_features, dtype=torch.float32).normal_(0, 1 / rank, generator=generator)


INITS: dict[str, Callable[[int, int, torch.Generator | None], Tensor]] = {"kaiming": kaiming, "gaussian": gaussian}
