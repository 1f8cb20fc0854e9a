"""How a cluster begins and ends: what keeps it from starting is one line, and what its end raises changes nothing."""

from __future__ import annotations

import signal
import sys
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from emseg.errors import InputError, UnguardedError
from emseg.printable import printable
from emseg_workflows.clusters.lifeline import UNGUARDED

if TYPE_CHECKING:
    from distributed import SpecCluster

CLOSING = 60.0
"""Seconds that a cluster, or a client, has to close."""
START = 600.0
"""Seconds that a worker process has to come up."""
GUARD = 'the two lines `if __name__ == "__main__":` and `    main()`'

Tell = Callable[[str], None]
"""Told what the user should know, in one line."""


class StillbornError(Exception):
    """A worker process ended before it was at work."""

    def __init__(self, code: int) -> None:
        super().__init__(f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")
        self.code = code


class Closes(Protocol):
    """What a run opens on Dask, and closes at its end."""

    def close(self, timeout: float) -> Any:
        """Close, within so many seconds."""
        ...


Closing = TypeVar("Closing", bound=Closes)
Cluster = TypeVar("Cluster", bound="SpecCluster")


def untold(message: str) -> None:
    """Nobody is told."""


@contextmanager
def closed_at_last(what: Closing, tell: Tell) -> Iterator[Closing]:
    """Closes at the end of the ``with``, which ends as it would without: what closing raises is told, and goes no further.

    All that was to be done is done by then, or has failed for a reason of its own.
    """
    try:
        yield what
    finally:
        try:
            what.close(timeout=CLOSING)
        except (Exception, CancelledError) as error:
            if abandon := getattr(what, "abandon", None):
                abandon()
            why = " ".join(str(error).split()) or type(error).__name__
            tell(f"the Dask {'cluster' if abandon else 'client'} did not close in order ({why}): it is left to the system")
        if left := getattr(what, "left", None):
            tell(f"not gone in time, and left to the system: {', '.join(left)}")


def started(start: Callable[[], Cluster]) -> Cluster:
    """The cluster that `start` makes.

    Raises
    ------
    UnguardedError
        If a worker process has begun the run again by importing the main module; this was printed.
    InputError
        If a worker process does not come up.
    """
    try:
        return start()
    except (RuntimeError, TimeoutError) as error:
        causes = list(_causes(error))
        codes = [cause.code for cause in causes if isinstance(cause, StillbornError)]
        script = getattr(sys.modules.get("__main__"), "__file__", None) or "the main module"
        if UNGUARDED in codes:
            refusal = UnguardedError(
                f"each worker process imports {script}, which begins the run again there: put what begins it into a function "
                f"main(), and end the file with {GUARD}"
            )
            print(
                printable(f"error: {refusal}"), file=sys.stderr, flush=True
            )  # who does not catch it leaves with its exit code alone
            raise refusal from None
        if codes:
            remedy = (
                f"look at what it has printed; each worker imports {script}, where {GUARD} keep from workers what is not theirs"
                if codes[0] > 0
                else "look for what ended it, such as too little memory"
            )
            raise InputError(f"no cluster could be started, as a worker process {causes[-1]}: {remedy}") from error
        if any(isinstance(cause, TimeoutError) for cause in causes):
            raise InputError(
                f"no cluster could be started, as a worker process was not there within {START:.0f} s: each imports {script}, "
                f"where {GUARD} keep from workers what is not theirs"
            ) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
