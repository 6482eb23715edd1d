"""Where a run happens and how it is seeded; it knows no model."""

from __future__ import annotations

import random

import numpy as np
import torch

_LARGEST_SEED = 2**32 - 1


def best_device() -> torch.device:
    """The fastest device here: a CUDA GPU, else Apple's GPU, else the CPU.

    Chapter: Setup.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python's, NumPy's and PyTorch's global generators, and return a new generator with the same seed.

    Functions of this package take their randomness as a seed or a generator; the global generators matter for code that does
    not, such as the initialization of ``torch.nn`` layers and dropout.

    Args:
        seed: 0 to 2**32 - 1, the range that all three accept alike. Outside it NumPy refuses, and PyTorch would quietly fold
            some negative seeds onto positive ones.

    Returns:
        A CPU generator.

    Raises:
        TypeError: the seed is not an integer.
        ValueError: the seed is outside the range; nothing has been seeded.

    Chapter: Setup.

    Example:
        >>> generator = seed_everything(7)
        >>> torch.equal(torch.rand(3), torch.rand(3, generator=generator))
        True
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"a seed is an integer, got {seed!r}")
    seed = int(seed)
    if not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"a seed is 0..{_LARGEST_SEED}, got {seed}: take it modulo 2**32")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)
