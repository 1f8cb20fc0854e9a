"""What follows once all blocks are segmented: stage after stage, with the same workers, and levels upon levels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from emseg.grid.blocks import Blocks
from emseg.grid.order import Strand, strands_in_order
from emseg.store.lease import Lease
from emseg.store.level import Level
from emseg.store.place import Place
from emseg_workflows.bench import Work
from emseg_workflows.coarsening import CoarsenWork
from emseg_workflows.dispatch import Policy
from emseg_workflows.events import BlockEnded, BlockRetried, Event, Noticed, Observer, RunEnded, RunStarted
from emseg_workflows.flows.in_flight import Sent
from emseg_workflows.placement import Executor
from emseg_workflows.report import Report, Tally
from emseg_workflows.stop import Stop


def is_lost(lease: Lease, event: Event, notify: Observer) -> bool:
    """Whether an output does not belong to its run any more, which is then told.

    Its heart sees that after seconds; a block that fails may have done so for that very reason.
    """
    match event:
        case BlockEnded(outcome) if outcome.status == "failed":
            lease.look()
    if lease.loss:
        notify(Noticed(f"{lease.loss}: this one ends"))
    return bool(lease.loss)


@dataclass(frozen=True, slots=True)
class Stages:
    """Runs stages one after another, each for the blocks that are left of it."""

    output: Place
    executor: Executor
    lease: Lease | None
    """The right to write to the output; None if nobody else knows where that is."""
    policy: Policy
    stop: Stop
    notify: Observer

    def run(
        self,
        work: Work,
        name: str,
        blocks: Blocks,
        done: NDArray[np.bool_],
        strands: Iterator[Strand],
        sent: Sent | None = None,
    ) -> Report:
        """The report of one stage.

        Parameters
        ----------
        name
            What the user is told that is done.
        done
            Blocks that an earlier run has done, ``(block,) bool``.
        strands
            The others.
        sent
            What is told what they have sent to an object store.
        """
        tally, start = Tally(blocks, int(done.sum())), perf_counter()
        executor = self.executor
        self.notify(RunStarted(self.output, blocks, int(done.sum()), executor.workers, executor.dashboard, stage=name))
        with closing(executor.run(work, strands, self.policy, self.stop)) as events:
            for event in events:
                match event:
                    case BlockEnded(outcome):
                        tally.count(outcome)
                        if sent is not None:
                            sent.note(outcome)
                    case BlockRetried(block, cause):
                        tally.retry(block, cause)
                self.notify(event)
                if self.lease is not None and not self.stop.asked and is_lost(self.lease, event, self.notify):
                    self.stop.ask()
        report = tally.report(perf_counter() - start, self.stop.number)
        self.notify(RunEnded(report))
        return report

    def build(self, levels: Sequence[Level], there: NDArray[np.bool_], *, anew: bool = False) -> int:
        """Builds of each coarser level what is not there yet, as far as that can be; how many of its units are still missing.

        Parameters
        ----------
        levels
            The finest first.
        there
            Which blocks of the finest level are as they will be, ``(z, y, x) bool``.
        anew
            Whether nothing of the coarser levels is ours yet, whatever is there.
        """
        missing = 0
        for number, (finer, level) in enumerate(itertools.pairwise(levels), 1):
            done, ready = level.done(), level.ready(there)
            if anew and level.remote:
                done = np.zeros_like(done) if level.outside is None else level.outside
            left, sent = ready & ~done, Sent(level)
            while left.any() and not self.stop.asked:
                strands = strands_in_order(level.blocks, left.ravel())
                self.run(CoarsenWork(finer, level), f"level {number}", level.blocks, ~left.ravel(), strands, sent)
                done = level.done(tidy=not self.stop.asked)  # what workers that died have left half-written
                left = done & sent.replaced()
            missing += int((~done).sum())
            there = ready & done
        return missing
