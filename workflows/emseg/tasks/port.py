"""Interface of what an executor does to each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from emseg_core.grid.blocks import Block
from emseg_core.model.device import Device
from emseg_core.outcome import Outcome
from emseg_core.specs.numerics import Numerics

Process = Callable[[Block], Outcome]
"""Processes a block."""
Turn = AbstractContextManager[object]
"""Held by the block that uses the predictor."""


class Work(Protocol):
    """Something to do to each of many blocks; sent once to each worker."""

    @property
    def name(self) -> str:
        """A verb; names the tasks on the Dask dashboard."""

    @property
    def device(self) -> Device:
        """Device that it is computed on."""

    @property
    def workers_per_gpu(self) -> int:
        """Maximum number of workers that may share a GPU."""

    def opened(self, turn: Turn | None = None) -> AbstractContextManager[tuple[Process, Numerics | None]]:
        """Open what is needed to process blocks in this process, several at a time.

        Parameters
        ----------
        turn
            Held by the block that uses the predictor; None if blocks are processed one after another.

        Returns
        -------
        context manager
            Yields a function that processes a block, and the numerics it computes with; None if these do not matter.
        """


class CoreWork:
    """Work without a predictor: it runs on cores, and its results do not depend on the hardware."""

    __slots__ = ()
    device: Device = "cpu"
    workers_per_gpu = 1

    @contextmanager
    def opened(self, turn: Turn | None = None) -> Iterator[tuple[Process, None]]:  # noqa: ARG002  no predictor to take turns at
        """Open what is needed, as for any `Work`."""
        yield self.opened_on_cores(), None

    def opened_on_cores(self) -> Process:
        """Open what is needed, and return the function that processes a block."""
        raise NotImplementedError
