"""Copy images part by part, in this process or on workers, for `emseg ingest` and `emseg export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emseg.executors.port import Executor
from emseg.flows.running.stages import StageRunner
from emseg.launch import Launch, most_workers, open_executor
from emseg.placement import Placement
from emseg.runs.dispatch import Policy
from emseg.runs.events import BlockEnded, Event, Observer, RunEnded
from emseg.runs.stop import Stop, StoppedError
from emseg.tasks.port import Work
from emseg_core.errors import PlanError, UnfinishedError
from emseg_core.grid.blocks import Blocks
from emseg_core.grid.cost import BLOCKS_IN_FLIGHT, RUNTIME_BYTES
from emseg_core.grid.order import sequences_in_order
from emseg_core.outcome import Outcome
from emseg_core.store.files.lease import Lease

SINGLE_PROCESS_BYTES = 2**31
"""Bytes of voxels up to which no workers are started by default. This process copies them in half a minute: it compresses in as
many threads as there are cores, but reads in one."""


@dataclass(frozen=True, slots=True)
class CopyStage:
    """An image to be copied part by part, each part by one worker."""

    work: Work
    name: str
    """Name of the stage in events."""
    blocks: Blocks
    done: NDArray[np.bool_]
    """Parts that are copied already, ``(part,) bool``."""
    bytes_per_voxel: int
    """Memory that a worker needs for each voxel of a part."""

    @property
    def left(self) -> int:
        """Number of parts that are not copied yet."""
        return int((~self.done).sum())

    @property
    def part_bytes(self) -> int:
        """Memory that a worker needs for a part."""
        return self.blocks.block(0).write.voxels * self.bytes_per_voxel


@dataclass(slots=True)
class Copier:
    """Copies all parts, or stops at the first one that fails.

    The failure is returned or raised instead of being sent as an event.
    """

    target: Path
    """Absolute path of the copy."""
    placement: Placement
    policy: Policy
    stop: Stop
    notify: Observer
    lease: Lease | None = None
    """The right to write to the copy; None if no other process can know where it is."""
    failed: Outcome | None = None
    """The first part that failed."""

    def run(self, stages: Sequence[CopyStage]) -> Outcome | None:
        """Copy the missing parts of each image in turn.

        Parameters
        ----------
        stages
            The images to copy.

        Returns
        -------
        Outcome or None
            The part that failed, if its source or its target is at fault; None if everything is copied.

        Raises
        ------
        InputError
            If no workers are available.
        PlanError
            If workers have too little memory.
        UnfinishedError
            If workers or disks became unavailable before the end.
        StoppedError
            If a stop was asked for.
        """
        stages = [stage for stage in stages if stage.left]
        if not stages:
            return None
        placement, left = self._choose_placement(stages), sum(stage.left for stage in stages)
        with open_executor(Launch(placement, left, 1, self.target, self.notify), self.stop) as executor:
            _check_memory(executor, stages)
            runner = StageRunner(
                self.target, executor, self.lease, replace(self.policy, max_failures=1), self.stop, self._forward
            )
            for stage in stages:
                report = runner.run(
                    stage.work, stage.name, stage.blocks, stage.done, sequences_in_order(stage.blocks, ~stage.done)
                )
                if self.failed is not None:
                    return self._permanent_failure(stage, self.failed)
                if report.left and report.signal:
                    raise StoppedError(report.signal)
                if report.left:
                    raise UnfinishedError(
                        f"{self.target} lacks {report.left} of {report.blocks} parts: run the same command again"
                    )
        return None

    def _choose_placement(self, stages: Sequence[CopyStage]) -> Placement:
        """Return the given placement, or by default as many workers as there are parts and memory for."""
        if self.placement != Placement():
            return self.placement
        if sum(stage.left * stage.part_bytes for stage in stages) <= SINGLE_PROCESS_BYTES:
            return Placement(workers=0)
        workers = min(max(stage.left for stage in stages), most_workers(_worker_bytes(stages)))
        return Placement(workers=workers if workers > 1 else 0)

    def _forward(self, event: Event) -> None:
        """Forward an event, except a failed part and the end of its stage."""
        if isinstance(event, BlockEnded) and event.outcome.status == "failed":
            self.failed = self.failed or event.outcome
        elif self.failed is None or not isinstance(event, RunEnded):
            self.notify(event)

    def _permanent_failure(self, stage: CopyStage, failed: Outcome) -> Outcome:
        """Return a part that failed for good; raise `UnfinishedError` if a worker or a store became unavailable."""
        cause = failed.cause or "no cause recorded"
        if not failed.worker:  # its worker died or hung, and cannot report why
            box = stage.blocks.block(failed.block).write
            raise UnfinishedError(f"the voxels {box} were not copied to {self.target} ({cause}): run the same command again")
        if failed.fault != "block":
            raise UnfinishedError(f"{cause}: run the same command again")
        return failed


def _worker_bytes(stages: Sequence[CopyStage]) -> int:
    """Return the memory that a worker needs: while one part is compressed and written, the next one is read."""
    return RUNTIME_BYTES + BLOCKS_IN_FLIGHT * max(stage.part_bytes for stage in stages)


def _check_memory(executor: Executor, stages: Sequence[CopyStage]) -> None:
    """Refuse workers whose memory cannot hold the parts that they copy."""
    needed, memory = _worker_bytes(stages), executor.memory
    if executor.workers and memory is not None and memory < needed:
        largest = max(stages, key=lambda stage: stage.part_bytes).blocks.block(0).write
        remedy = (
            f"use fewer workers than {executor.workers}" if executor.workers > 1 else "use this process alone, with --workers 0"
        )
        raise PlanError(
            f"a worker needs {needed / 2**30:.1f} GiB of memory for {BLOCKS_IN_FLIGHT} parts of "
            f"{' x '.join(map(str, largest.shape))} voxels, but has {memory / 2**30:.1f} GiB: {remedy}"
        )
