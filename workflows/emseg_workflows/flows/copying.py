"""Copying part by part, in this process or on workers: what `emseg ingest` and `emseg export` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emseg.errors import PlanError, UnfinishedError
from emseg.grid.blocks import Blocks
from emseg.grid.cost import BLOCKS_IN_FLIGHT, RUNTIME_BYTES
from emseg.grid.order import strands_in_order
from emseg.outcome import Outcome
from emseg.store.lease import Lease
from emseg_workflows.bench import Work
from emseg_workflows.dispatch import Policy
from emseg_workflows.events import BlockEnded, Event, Observer, RunEnded
from emseg_workflows.flows.stage import Stages
from emseg_workflows.launch import Launch, most_workers, open_executor
from emseg_workflows.placement import Executor, Placement
from emseg_workflows.stop import Stop, StoppedError

SMALL = 2**31
"""Bytes of voxels for which it does not pay to start workers, unless somebody asks for them: half a minute in this process,
which compresses in as many threads as there are cores, but reads in one."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What is to be copied in one go, each part of it by one worker."""

    work: Work
    name: str
    """What the user is told that is done."""
    blocks: Blocks
    done: NDArray[np.bool_]
    """Parts that are there already, ``(part,) bool``."""
    itemsize: int
    """Bytes that a worker has in memory for each voxel of a part."""

    @property
    def left(self) -> int:
        """Number of parts that are not there."""
        return int((~self.done).sum())

    @property
    def part_bytes(self) -> int:
        """Memory for a part."""
        return self.blocks.block(0).write.voxels * self.itemsize


@dataclass(slots=True)
class Copying:
    """Copies all parts, or ends with the first one that fails; what fails is returned or raised, and not told as well."""

    target: Path
    """What is made, an absolute path."""
    placement: Placement
    policy: Policy
    stop: Stop
    notify: Observer
    lease: Lease | None = None
    """The right to write to what is made; None if nobody else knows where that is."""
    failed: Outcome | None = None

    def run(self, all_parts: Sequence[Parts]) -> Outcome | None:
        """The part whose source, or whose place, is at fault; None if all is copied.

        Raises
        ------
        InputError
            If there are no workers to be had.
        PlanError
            If they have too little memory.
        UnfinishedError
            If workers or disks went away before the end.
        StoppedError
            If the user did not want to wait for that.
        """
        all_parts = [parts for parts in all_parts if parts.left]
        if not all_parts:
            return None
        placement, left = self._placed(all_parts), sum(parts.left for parts in all_parts)
        with open_executor(Launch(placement, left, 1, self.target, self.notify), self.stop) as executor:
            _check_memory(executor, all_parts)
            stages = Stages(self.target, executor, self.lease, replace(self.policy, max_failures=1), self.stop, self._tell)
            for parts in all_parts:
                report = stages.run(
                    parts.work, parts.name, parts.blocks, parts.done, strands_in_order(parts.blocks, ~parts.done)
                )
                if self.failed is not None:
                    return self._blamed(parts, self.failed)
                if report.left and report.signal:
                    raise StoppedError(report.signal)
                if report.left:
                    raise UnfinishedError(
                        f"{self.target} lacks {report.left} of {report.blocks} parts: run the same command again"
                    )
        return None

    def _placed(self, all_parts: Sequence[Parts]) -> Placement:
        """Who copies: if nobody was named, as many workers as there are parts and memory for."""
        if self.placement != Placement():
            return self.placement
        if sum(parts.left * parts.part_bytes for parts in all_parts) <= SMALL:
            return Placement(workers=0)
        workers = min(max(parts.left for parts in all_parts), most_workers(_needed(all_parts)))
        return Placement(workers=workers if workers > 1 else 0)

    def _tell(self, event: Event) -> None:
        if isinstance(event, BlockEnded) and event.outcome.status == "failed":
            self.failed = self.failed or event.outcome
        elif self.failed is None or not isinstance(event, RunEnded):
            self.notify(event)

    def _blamed(self, parts: Parts, failed: Outcome) -> Outcome:
        """A part that failed by its own fault; a worker or a store that went away is none of that."""
        cause = failed.cause or "no reason given"
        if not failed.worker:  # who copied it cannot say, as it died or hung
            box = parts.blocks.block(failed.block).write
            raise UnfinishedError(f"the voxels {box} are not copied to {self.target}, as {cause}: run the same command again")
        if failed.fault != "block":
            raise UnfinishedError(f"{cause}; run the same command again")
        return failed


def _needed(all_parts: Sequence[Parts]) -> int:
    """Memory of a worker: while one part is compressed and written, another one is read."""
    return RUNTIME_BYTES + BLOCKS_IN_FLIGHT * max(parts.part_bytes for parts in all_parts)


def _check_memory(executor: Executor, all_parts: Sequence[Parts]) -> None:
    """Refuse workers that cannot hold what they copy."""
    needed, memory = _needed(all_parts), executor.memory
    if executor.workers and memory is not None and memory < needed:
        largest = max(all_parts, key=lambda parts: parts.part_bytes).blocks.block(0).write
        remedy = f"use fewer workers than {executor.workers}" if executor.workers > 1 else "do without, with --workers 0"
        raise PlanError(
            f"a worker needs {needed / 2**30:.1f} GiB of memory for {BLOCKS_IN_FLIGHT} times "
            f"{' x '.join(map(str, largest.shape))} voxels, but has {memory / 2**30:.1f} GiB: {remedy}"
        )
