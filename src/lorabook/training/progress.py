"""What a run has done so far, and how it is shown while it runs. It knows no model."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial

from tqdm import tqdm


@dataclass
class Tally:
    """What a run has done so far; the number of losses is the number of steps.

    Args:
        losses: of each step, in nats per target token.
        seconds: wall time of all steps.
        target_tokens: tokens that carried loss.
        tokens: tokens read, without padding.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    target_tokens: int = 0
    tokens: int = 0


class Progress:
    """A bar with the loss, the speed and the time left, which keeps the tally; nothing of it stays on the screen.

    Args:
        tally: of the steps that an earlier call did.
        steps: of the whole run.
        description: label of the bar.
        shown: whether there is a bar.

    Example:
        >>> tally = Tally()
        >>> with Progress(tally, steps=2, description="training", shown=False) as progress:
        ...     progress.step(0.5, target_tokens=3, tokens=8)
        >>> tally.losses, tally.target_tokens, tally.tokens
        ([0.5], 3, 8)
    """

    def __init__(self, tally: Tally, steps: int, description: str, shown: bool) -> None:
        self.tally = tally
        self._earlier_seconds, self._earlier_tokens = tally.seconds, tally.tokens
        # Where nothing is said, the variable TQDM_DISABLE decides.
        bar = tqdm if shown else partial(tqdm, disable=True)
        self._bar = bar(total=steps, initial=len(tally.losses), desc=description, leave=False, mininterval=0.5, unit="step")
        self._start = time.perf_counter()

    def step(self, loss: float, target_tokens: int, tokens: int) -> None:
        """Count one step, whose batch had these numbers of tokens."""
        seconds = time.perf_counter() - self._start
        tally = self.tally
        tally.losses.append(loss)
        tally.seconds = self._earlier_seconds + seconds
        tally.target_tokens += target_tokens
        tally.tokens += tokens
        speed = (tally.tokens - self._earlier_tokens) / seconds
        self._bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        self._bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
