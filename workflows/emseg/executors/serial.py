"""Run blocks in this process, one after another: the reference that results on Dask must equal."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from time import monotonic, sleep

from emseg.runs.dispatch import RESUME_HINT, Dispatch, Policy
from emseg.runs.events import Noticed, Progressed, WorkerJoined
from emseg.runs.stop import Stop
from emseg.tasks.port import Work
from emseg.tasks.trial import Choice, Trial, try_out
from emseg_core.grid.blocks import Block
from emseg_core.machine import usable_memory
from emseg_core.model.device import Device, Gpu, process_gpu

THIS_PROCESS = "this process"
TICK_SECONDS = 0.2
"""Interval between checks whether a block is due for a retry."""


class SerialExecutor:
    """Runs blocks in this process."""

    workers = 0
    dashboard = None
    client = None

    @property
    def memory(self) -> int:
        """Bytes of memory that this process may use."""
        return usable_memory()

    def gpus(self, device: Device) -> dict[str, Gpu]:
        """Return the GPU of this process, if it has one.

        Parameters
        ----------
        device
            Device of the run.

        Returns
        -------
        dict of str to Gpu
            Empty, or one GPU.
        """
        gpu = process_gpu(device)
        return {THIS_PROCESS: gpu} if gpu else {}

    def try_out(self, trial: Trial) -> Choice:
        """Find out how predictors compute in this process.

        Parameters
        ----------
        trial
            The trial.

        Returns
        -------
        Choice
            Numerics, speed and accuracy.
        """
        return try_out(trial)

    def run(self, work: Work, sequences: Iterator[Sequence[Block]], policy: Policy, stop: Stop) -> Generator[Progressed]:
        """Run blocks until each has ended or the run is stopped.

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
        dispatch = Dispatch(sequences, policy)
        with work.opened() as (process, numerics):
            gpu = process_gpu(work.device)
            yield WorkerJoined(THIS_PROCESS, numerics, gpu.uuid if gpu else "")
            dispatch.join(THIS_PROCESS, 1, monotonic())
            while not dispatch.finished:
                if stop.asked:
                    return
                dispatch.assign(monotonic())
                if not dispatch.in_progress:
                    sleep(TICK_SECONDS)  # all remaining blocks wait for a retry
                    continue
                attempt = dispatch.in_progress[0]
                event, _ = dispatch.ended(attempt, process(attempt.block), monotonic())
                yield event
            if dispatch.outage:
                yield Noticed(f"{dispatch.outage}: {RESUME_HINT}")
