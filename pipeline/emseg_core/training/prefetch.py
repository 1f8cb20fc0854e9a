"""Draw crops ahead of time in threads, so that the network does not wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import Generic, TypeVar

T = TypeVar("T")

PREFETCH_THREADS = 2
"""Number of threads: interpolation and filters release the GIL."""
STEPS_AHEAD = 2 * PREFETCH_THREADS
"""Number of steps drawn ahead, whose crops are all in memory."""


class Prefetcher(Generic[T]):
    """Iterator over the data of steps, made in threads while earlier steps are taken.

    Parameters
    ----------
    make
        Function that makes the data of a step.
    steps
        Numbers of the steps.
    threads
        Pool of threads that call it.
    """

    def __init__(self, make: Callable[[int], T], steps: range, threads: ThreadPoolExecutor) -> None:
        self._make = make
        self._steps = iter(steps)
        self._threads = threads
        self._pending: deque[Future[T]] = deque()
        self.waited = 0.0
        """Seconds spent waiting for data that was not ready."""
        for _ in range(STEPS_AHEAD):
            self._submit()

    def __next__(self) -> T:
        """Return the data of the next step, waiting for it if necessary."""
        began = perf_counter()
        made = self._pending.popleft().result()
        self.waited += perf_counter() - began
        self._submit()
        return made

    def _submit(self) -> None:
        """Start making the data of one more step, if there is one."""
        if (step := next(self._steps, None)) is not None:
            self._pending.append(self._threads.submit(self._make, step))


@contextmanager
def prefetch(make: Callable[[int], T], steps: range) -> Iterator[Prefetcher[T]]:
    """Prefetch the data of steps; at the end of the ``with`` block, what has not been started is cancelled.

    Parameters
    ----------
    make
        Function that makes the data of a step; it is called in threads.
    steps
        Numbers of the steps.

    Yields
    ------
    Prefetcher
        Iterator over the data, in the order of the steps.
    """
    threads = ThreadPoolExecutor(PREFETCH_THREADS, "emseg-crops")
    try:
        yield Prefetcher(make, steps, threads)
    finally:
        threads.shutdown(cancel_futures=True)
