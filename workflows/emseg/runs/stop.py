"""Requests to stop a run: blocks in progress may finish, no more are assigned; a second signal ends the run at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

GRACE_SECONDS = 20.0
"""Time that blocks in progress have to finish: by default SLURM kills 30 s after its first signal."""

MAX_EARLY_SECONDS = 90.0
"""Maximum time by which the warning of a batch system may arrive before it is due."""
REPORT_SECONDS = 15.0
"""Time reserved for the report at the end."""


class StoppedError(BaseException):
    """A signal asked to stop at once."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def signal_of(stopped: KeyboardInterrupt | StoppedError) -> int:
    """Return the number of the signal that stopped a command."""
    return stopped.number if isinstance(stopped, StoppedError) else signal.SIGINT


class Stop:
    """A request to stop a run, and the time left for blocks in progress."""

    def __init__(self, grace: float = GRACE_SECONDS, seconds_left: float | None = None) -> None:
        """Create a request that has not been made yet.

        Parameters
        ----------
        grace
            Seconds that blocks in progress have to finish.
        seconds_left
            Seconds until a batch system ends this process, if known: its warning may come early.
        """
        self._grace = grace
        self._end = None if seconds_left is None else monotonic() + seconds_left - REPORT_SECONDS
        self._deadline: float | None = None
        self.number = 0
        """The signal that asked for it; 0 if none did."""

    @property
    def asked(self) -> bool:
        """Whether the run is asked to assign no more blocks."""
        return self._deadline is not None

    @property
    def over(self) -> bool:
        """Whether the time for blocks in progress is over."""
        return self._deadline is not None and monotonic() >= self._deadline

    @property
    def seconds_left(self) -> float:
        """Seconds that blocks in progress still have."""
        return self._grace if self._deadline is None else max(0.0, self._deadline - monotonic())

    def ask(self, number: int = 0) -> None:
        """Request a stop.

        Parameters
        ----------
        number
            Number of the signal; 0 if there was none.
        """
        now = monotonic()
        early = 0.0 if self._end is None else self._end - now
        self.number = number
        self._deadline = now + (early if self._grace < early < self._grace + MAX_EARLY_SECONDS else self._grace)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM within the ``with``: the first asks to stop, a second raises `StoppedError`.

        Yields
        ------
        None
            While the signals are handled.

        Raises
        ------
        StoppedError
            On the second signal.
        """

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
