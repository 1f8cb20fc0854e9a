"""Interface of what an executor does to each block."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from emseg_core.grid.blocks import Block
from emseg_core.model.device import Device
from emseg_core.outcome import Outcome
from emseg_core.specs.numerics import Numerics


class Work(Protocol):
    """Something to do to each of many blocks; sent once to each worker."""

    @property
    def name(self) -> str:
        """A verb; names the tasks on the Dask dashboard."""
        ...

    @property
    def device(self) -> Device:
        """Device that it is computed on."""
        ...

    @property
    def workers_per_gpu(self) -> int:
        """Maximum number of workers that may share a GPU."""
        ...

    def opened(
        self, turn: AbstractContextManager[object] | None = None
    ) -> AbstractContextManager[tuple[Callable[[Block], Outcome], Numerics | None]]:
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
        ...
