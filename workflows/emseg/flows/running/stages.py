"""Run stages one after another with the same workers: instance labelling, copying, and building coarser levels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from emseg.executors.port import Executor
from emseg.flows.running.late_writes import SentObjects
from emseg.runs.dispatch import Policy
from emseg.runs.events import BlockEnded, BlockRetried, Event, Noticed, Observer, RunEnded, RunStarted
from emseg.runs.stop import Stop
from emseg.runs.tally import Report, Tally
from emseg.tasks.coarsening import CoarsenWork
from emseg.tasks.port import Work
from emseg_core.grid.blocks import Blocks
from emseg_core.grid.order import BlockSequence, sequences_in_order
from emseg_core.store.files.lease import Lease
from emseg_core.store.files.place import Place
from emseg_core.store.outputs.level import Level


def lease_lost(lease: Lease, event: Event, notify: Observer) -> bool:
    """Check whether another run has taken over the output, and send a notice if so.

    The heartbeat detects that within seconds. A failed block prompts a look at once, as that may be why it failed.

    Parameters
    ----------
    lease
        Lease of this run.
    event
        What has just happened.
    notify
        Function that is given notices.

    Returns
    -------
    bool
        Whether the lease is lost; this run must stop then.
    """
    match event:
        case BlockEnded(outcome) if outcome.status == "failed":
            lease.check_now()
    if lease.loss:
        notify(Noticed(f"{lease.loss}: stopping this run"))
    return bool(lease.loss)


@dataclass(frozen=True, slots=True)
class StageRunner:
    """Runs stages one after another, each for its unfinished blocks."""

    output: Place
    executor: Executor
    lease: Lease | None
    """The right to write to the output; None if no other process can know where it is."""
    policy: Policy
    stop: Stop
    notify: Observer

    def run(
        self,
        work: Work,
        name: str,
        blocks: Blocks,
        done: NDArray[np.bool_],
        sequences: Iterator[BlockSequence],
        sent: SentObjects | None = None,
    ) -> Report:
        """Run one stage.

        Parameters
        ----------
        work
            What to do with each block.
        name
            Name of the stage in events.
        blocks
            All blocks of the stage.
        done
            Blocks that an earlier run has finished, ``(block,) bool``.
        sequences
            The other blocks, in sequences that one worker computes in order.
        sent
            Records the objects that the blocks send to an object store.

        Returns
        -------
        Report
            How many blocks are done, failed and left.
        """
        tally, start = Tally(blocks, int(done.sum())), perf_counter()
        executor = self.executor
        self.notify(RunStarted(self.output, blocks, int(done.sum()), executor.workers, executor.dashboard, stage=name))
        with closing(executor.run(work, sequences, self.policy, self.stop)) as events:
            for event in events:
                match event:
                    case BlockEnded(outcome):
                        tally.count(outcome)
                        if sent is not None:
                            sent.record(outcome)
                    case BlockRetried(block, cause):
                        tally.retry(block, cause)
                self.notify(event)
                if self.lease is not None and not self.stop.asked and lease_lost(self.lease, event, self.notify):
                    self.stop.ask()
        report = tally.report(perf_counter() - start, self.stop.number)
        self.notify(RunEnded(report))
        return report

    def build(self, levels: Sequence[Level], there: NDArray[np.bool_], *, rebuild: bool = False) -> int:
        """Build the missing write units of each coarser level whose voxels are computed.

        Parameters
        ----------
        levels
            Levels of the pyramid, the finest first.
        there
            Which blocks of the finest level have their final content, ``(z, y, x) bool``.
        rebuild
            Whether to ignore existing write units of coarser levels, because this run has not made them.

        Returns
        -------
        int
            Number of write units that are still missing.
        """
        missing = 0
        for number, (finer, level) in enumerate(itertools.pairwise(levels), 1):
            done, ready = level.done(), level.ready(there)
            if rebuild and level.remote:
                done = np.zeros_like(done) if level.outside is None else level.outside
            left, sent = ready & ~done, SentObjects(level)
            while left.any() and not self.stop.asked:
                sequences = sequences_in_order(level.blocks, left.ravel())
                self.run(CoarsenWork(finer, level), f"level {number}", level.blocks, ~left.ravel(), sequences, sent)
                done = level.done(tidy=not self.stop.asked)  # removes files that workers which died left half-written
                left = done & sent.replaced()
            missing += int((~done).sum())
            there = ready & done
        return missing
