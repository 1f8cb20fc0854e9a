"""Interfaces of executors, and of observers that show a run. Flows know nothing else of Dask."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from emseg.runs.dispatch import Policy
from emseg.runs.events import Event, Progressed
from emseg.runs.stop import Stop
from emseg.tasks.port import Work
from emseg.tasks.trial import Choice, Trial
from emseg_core.grid.blocks import Block
from emseg_core.model.device import Device, Gpu

if TYPE_CHECKING:
    from distributed import Client


class Executor(Protocol):
    """Runs blocks: in this process, or on a Dask cluster."""

    @property
    def client(self) -> Client | None:
        """The Dask client in use, if any."""

    @property
    def workers(self) -> int:
        """Number of worker processes; 0 for this process."""

    @property
    def dashboard(self) -> str | None:
        """Address of the dashboard, if any."""

    @property
    def memory(self) -> int | None:
        """Bytes of memory available to each worker, if known."""

    def gpus(self, device: Device) -> dict[str, Gpu]:
        """Return the GPU of each worker that computes on one, or is bound to one.

        Parameters
        ----------
        device
            Device of the run.

        Returns
        -------
        dict of str to Gpu
            GPUs by address of the worker.
        """

    def try_out(self, trial: Trial) -> Choice:
        """Find out how predictors compute where the blocks will run.

        Parameters
        ----------
        trial
            The trial.

        Returns
        -------
        Choice
            Numerics, speed and accuracy.
        """

    def run(self, work: Work, sequences: Iterator[Sequence[Block]], policy: Policy, stop: Stop) -> Generator[Progressed]:
        """Run blocks until each has ended or the run is stopped; closing the generator ends the run.

        Parameters
        ----------
        work
            The work to do on each block.
        sequences
            Sequences of blocks that read the same chunks; each holds at least one block.
        policy
            Limits for slow and failing blocks.
        stop
            Asks for the end of the run.

        Yields
        ------
        Progressed
            The event.
        """


class Watch(Protocol):
    """An observer that shows a run to others."""

    @property
    def address(self) -> str | None:
        """Address at which it can be seen, if any."""

    def __call__(self, event: Event) -> None:
        """Record an event."""

    def take_back(self, blocks: Iterable[int]) -> None:
        """Mark blocks as waiting again because their results are lost.

        Parameters
        ----------
        blocks
            Indices of the blocks.
        """
