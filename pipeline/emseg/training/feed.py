"""Crops drawn ahead, so that the network does not wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import Generic, TypeVar

T = TypeVar("T")

THREADS = 2
"""Crops drawn at once: interpolation and filters leave Python's lock alone."""
AHEAD = 2 * THREADS
"""Steps drawn ahead: so many lie in memory."""


class Feed(Generic[T]):
    """What each step needs, in their order, made in threads while earlier steps are taken."""

    def __init__(self, make: Callable[[int], T], steps: range, threads: ThreadPoolExecutor) -> None:
        self._make = make
        self._steps = iter(steps)
        self._threads = threads
        self._coming: deque[Future[T]] = deque()
        self.waited = 0.0
        """Seconds in which the next step's was not ready."""
        for _ in range(AHEAD):
            self._order()

    def __next__(self) -> T:
        """What the next step needs."""
        began = perf_counter()
        made = self._coming.popleft().result()
        self.waited += perf_counter() - began
        self._order()
        return made

    def _order(self) -> None:
        if (step := next(self._steps, None)) is not None:
            self._coming.append(self._threads.submit(self._make, step))


@contextmanager
def feeding(make: Callable[[int], T], steps: range) -> Iterator[Feed[T]]:
    """A feed for these steps; what is not needed any more at the end of the ``with`` is not begun."""
    threads = ThreadPoolExecutor(THREADS, "emseg-crops")
    try:
        yield Feed(make, steps, threads)
    finally:
        threads.shutdown(cancel_futures=True)
