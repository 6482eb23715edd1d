"""Where a run happens, how it is seeded and how exactly it computes; it knows no model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_LARGEST_SEED = 2**32 - 1


def best_device() -> torch.device:
    """The fastest device here: a CUDA GPU, else Apple's GPU, else the CPU.

    Chapter: Setup.

    Example:
        >>> torch.ones(3, device=best_device()).sum().item()
        3.0
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def resolve_precision(device: torch.device, precision: str) -> str:
    """What "auto" means here: "bfloat16" on a GPU that computes in it, "float32" elsewhere.

    Raises:
        ValueError: none of "auto", "float32" and "bfloat16".

    Example:
        >>> resolve_precision(torch.device("cpu"), "auto")
        'float32'
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
    if precision != "auto":
        return precision
    # Older GPUs emulate bfloat16, and are slower at it than at float32.
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Inside the block, matrix products are in bfloat16 if that is the precision, else in the tensors' own dtypes.

    Parameters keep their dtype, and so do their gradients.

    Raises:
        ValueError: neither "float32" nor "bfloat16".
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside the block PyTorch's global generators run from this seed; afterwards they are as they were before.

    Args:
        seed: of what the block draws, such as dropout.
        device: whose generator it is, beside the CPU's.
    """
    before = rng_states(device)
    try:
        torch.manual_seed(seed)
        yield
    finally:
        set_rng_states(before, device)


def rng_states(device: torch.device) -> dict[str, Tensor]:
    """States of PyTorch's global generators, of the CPU and of the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what :func:`rng_states` gave."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


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
