"""Start and end of clusters: a failed start is a one-line error, and errors while closing change nothing."""

from __future__ import annotations

import signal
import sys
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from emseg.clusters.lifeline import UNGUARDED_EXIT_CODE
from emseg_core.errors import InputError, UnguardedError
from emseg_core.printable import printable

if TYPE_CHECKING:
    from distributed import SpecCluster

CLOSE_SECONDS = 60.0
"""Time that a cluster or a client has to close."""
START_SECONDS = 600.0
"""Time that a worker process has to start."""
MAIN_GUARD = 'the two lines `if __name__ == "__main__":` and `    main()`'

Notify = Callable[[str], None]
"""Called with a one-line message for the user."""


class WorkerStartError(Exception):
    """A worker process ended before it was ready."""

    def __init__(self, code: int) -> None:
        super().__init__(f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")
        self.code = code


class Closes(Protocol):
    """An object on Dask that a run opens, and closes at its end."""

    def close(self, timeout: float) -> Any:
        """Close within this many seconds."""


Closing = TypeVar("Closing", bound=Closes)
Cluster = TypeVar("Cluster", bound="SpecCluster")


def ignore_message(message: str) -> None:
    """Do nothing."""


@contextmanager
def closing_safely(what: Closing, notify: Notify) -> Iterator[Closing]:
    """Close at the end of the ``with``, without changing how it ends: errors while closing are reported, not raised.

    By then all work is done, or has already failed.

    Parameters
    ----------
    what
        A cluster or a client.
    notify
        Called with messages about errors and about workers that did not end.

    Yields
    ------
    Closing
        `what`.
    """
    try:
        yield what
    finally:
        try:
            what.close(timeout=CLOSE_SECONDS)
        except (Exception, CancelledError) as error:
            if abandon := getattr(what, "abandon", None):
                abandon()
            why = " ".join(str(error).split()) or type(error).__name__
            notify(f"the Dask {'cluster' if abandon else 'client'} did not close properly ({why}): it is left to the system")
        if left := getattr(what, "left", None):
            notify(f"did not end in time, and is left to the system: {', '.join(left)}")


def start_cluster(start: Callable[[], Cluster]) -> Cluster:
    """Start a cluster with `start`.

    Parameters
    ----------
    start
        Function that starts it.

    Returns
    -------
    Cluster
        The cluster.

    Raises
    ------
    UnguardedError
        If a worker process has started the run again by importing the main module; the error was printed.
    InputError
        If a worker process does not start.
    """
    try:
        return start()
    except (RuntimeError, TimeoutError) as error:
        causes = list(_causes(error))
        codes = [cause.code for cause in causes if isinstance(cause, WorkerStartError)]
        script = getattr(sys.modules.get("__main__"), "__file__", None) or "the main module"
        if UNGUARDED_EXIT_CODE in codes:
            refusal = UnguardedError(
                f"each worker process imports {script}, which starts the run again there: put the code that starts it into a "
                f"function main(), and end the file with {MAIN_GUARD}"
            )
            print(printable(f"error: {refusal}"), file=sys.stderr, flush=True)  # if it is not caught, only its exit code shows
            raise refusal from None
        if codes:
            remedy = (
                f"read what it has printed; each worker imports {script}, so protect its main program with {MAIN_GUARD}"
                if codes[0] > 0
                else "find out what ended it, such as a lack of memory"
            )
            raise InputError(f"the cluster could not be started, as a worker process {causes[-1]}: {remedy}") from error
        if any(isinstance(cause, TimeoutError) for cause in causes):
            raise InputError(
                f"the cluster could not be started, as a worker process was not ready within {START_SECONDS:.0f} s: each "
                f"imports {script}, so protect its main program with {MAIN_GUARD}"
            ) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__
