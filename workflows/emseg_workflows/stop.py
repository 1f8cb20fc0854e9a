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


class StoppedError(BaseException):
    """A signal asked to stop at once."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Stop:
    """Whether the run shall stop, and for how long it may still wait for blocks in hand."""

    def __init__(self, grace: float = GRACE) -> None:
        self._grace = grace
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
        self.number = number
        self._deadline = monotonic() + self._grace

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
