"""Bad input: one kind of error for all of it, which the program prints as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """What the user gave cannot be used; the message names the rule, the value and the remedy.

    Example:
        >>> raise InputError("--rank is at least 1, got 0")
        Traceback (most recent call last):
        lorabook.command_line.refusals.InputError: --rank is at least 1, got 0
    """


@contextmanager
def refusing(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Turn errors of these kinds into bad input. Only around calls whose errors of this kind are about what the user gave.

    Example:
        >>> with refusing(ValueError, prefix="--alpha: "):
        ...     float("much")
        Traceback (most recent call last):
        lorabook.command_line.refusals.InputError: --alpha: could not convert string to float: 'much'
    """
    try:
        yield
    except kinds as error:
        raise InputError(f"{prefix}{error}") from error
