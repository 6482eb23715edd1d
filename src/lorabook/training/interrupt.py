"""What a run makes of SIGTERM, the signal by which schedulers and shells ask a process to end. It knows no model."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Interrupted(SystemExit):
    """The run was asked to end and has been saved; the same call goes on from there.

    Where nothing catches it, the process ends without a traceback and with exit code 143, that of a process ended by SIGTERM, so that
    whoever started it does not take the run for finished.
    """

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@dataclass
class StopRequest:
    """Whether the process was asked to end."""

    made: bool = False


@contextmanager
def termination(enabled: bool = True) -> Iterator[StopRequest]:
    """Inside the block SIGTERM is only noted; at its end it takes effect, and the handler from before is put back.

    Outside the main thread, where Python allows no handlers, and where not enabled, nothing is changed and nothing noted.

    Raises:
        Interrupted: at the end of the block, if the request was made.

    Example:
        >>> import os
        >>> with termination() as request:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     print("the block goes on")
        Traceback (most recent call last):
        lorabook.training.interrupt.Interrupted: 143
    """
    request = StopRequest()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield request
    else:
        previous = signal.signal(signal.SIGTERM, lambda *_: setattr(request, "made", True))
        try:
            yield request
        finally:
            # None stands for a handler that was not set from Python and cannot be put back from here.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
    if request.made:
        raise Interrupted
