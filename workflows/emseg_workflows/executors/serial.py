"""Running blocks in this process, one after another: the reference that Dask must equal."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from time import monotonic, sleep

import psutil

from emseg.grid.blocks import Block
from emseg.model.device import Device, Gpu, own_gpu
from emseg_workflows.bench import Choice, Trial, Work, try_out
from emseg_workflows.dispatch import Dispatch, Policy
from emseg_workflows.events import Noticed, Progressed, WorkerJoined
from emseg_workflows.stop import Stop

HERE = "this process"
TICK = 0.2
"""Seconds between two looks at whether a block is due again."""


class SerialExecutor:
    """Runs blocks in this process."""

    workers = 0
    dashboard = None
    client = None

    @property
    def memory(self) -> int:
        """Bytes of memory that this process may use."""
        return int(psutil.virtual_memory().total)

    def gpus(self, device: Device) -> dict[str, Gpu]:
        """The GPU of this process, if it has one."""
        gpu = own_gpu(device)
        return {HERE: gpu} if gpu else {}

    def try_out(self, trial: Trial) -> Choice:
        """How predictors compute here."""
        return try_out(trial)

    def run(self, work: Work, strands: Iterator[Sequence[Block]], policy: Policy, stop: Stop) -> Generator[Progressed]:
        """What happens until each block has ended, or the run is stopped."""
        dispatch = Dispatch(strands, policy)
        with work.opened() as (act, numerics):
            gpu = own_gpu(work.device)
            yield WorkerJoined(HERE, numerics, gpu.uuid if gpu else "")
            dispatch.join(HERE, 1, monotonic())
            while not dispatch.finished:
                if stop.asked:
                    return
                dispatch.assign(monotonic())
                if not dispatch.in_hand:
                    sleep(TICK)  # all that is left failed a moment ago
                    continue
                attempt = dispatch.in_hand[0]
                event, _ = dispatch.ended(attempt, act(attempt.block), monotonic())
                yield event
            if dispatch.outage:
                yield Noticed(f"{dispatch.outage}: what is written stays, run again to go on")
