"""A wish to stop: blocks in hand may end, no more are handed out; a second wish ends the run at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

GRACE = 20.0
"""Seconds that blocks in hand get to end: SLURM kills 30 s after its first signal, unless told otherwise."""

EARLY = 90.0
"""Seconds by which the warning of a batch system may come before it was asked for."""
LAST = 15.0
"""Seconds that are left for the report."""


class StoppedError(BaseException):
    """A signal asked to stop at once."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Stop:
    """Whether the run shall stop, and for how long it may still wait for blocks in hand."""

    def __init__(self, grace: float = GRACE, seconds_left: float | None = None) -> None:
        """`seconds_left` until a batch system ends this process, if that is known: its warning may come early."""
        self._grace = grace
        self._end = None if seconds_left is None else monotonic() + seconds_left - LAST
        self._deadline: float | None = None
        self.number = 0
        """The signal that asked for it; 0 if none did."""

    @property
    def asked(self) -> bool:
        """Whether no more blocks shall be handed out."""
        return self._deadline is not None

    @property
    def over(self) -> bool:
        """Whether the time for blocks in hand is over."""
        return self._deadline is not None and monotonic() >= self._deadline

    def ask(self, number: int = 0) -> None:
        """Ask to stop."""
        now = monotonic()
        early = 0.0 if self._end is None else self._end - now
        self.number = number
        self._deadline = now + (early if self._grace < early < self._grace + EARLY else self._grace)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within the ``with``, SIGINT and SIGTERM ask to stop; a second one raises `StoppedError`."""

        def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signal module's signature
            if self.asked:
                raise StoppedError(number)
            self.ask(number)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
