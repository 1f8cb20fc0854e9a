"""Check that a volume still has the voxels from which an output was made.

The run record has a digest of the voxels that each block has read (`emseg_core.digest`). Before a resumed run writes anything,
its workers read the voxels of some finished blocks again and compare their digests; `emseg verify --volume` does so for all.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.flows.records.run_log import all_lines_of, recipe_of
from emseg.flows.running.stages import StageRunner
from emseg.runs.events import BlockEnded, BlockRetried, Noticed, Observer, WorkerLeft
from emseg.runs.tally import MAX_LISTED, Failure, failure_lines, quantity
from emseg.tasks.rereading import RereadWork
from emseg_core.digest import DIGEST_LENGTH
from emseg_core.errors import OutputError, UnfinishedError
from emseg_core.grid.order import block_sequences
from emseg_core.outcome import Outcome, is_count
from emseg_core.store.files.place import Place
from emseg_core.store.outputs.output import Output

SAMPLED_BLOCKS = 300
"""Blocks that are compared before a run is resumed: a change of 1 % of all blocks is found with a probability of 95 %."""
MAX_NAMED = 5
"""Number of changed blocks that an error lists."""
MIN_BLOCKS_FOR_NOTICE = 100_000
"""Number of blocks from which on reading the records takes seconds."""
CHANGED = "its voxels have changed"
"""Cause of a changed block in a list of failures."""
NOTICE_SECONDS = 10.0
"""Time between two progress notices."""


@dataclass(frozen=True, slots=True)
class RecordedDigests:
    """Digests in the records of an output of the voxels that its blocks have read."""

    digests: NDArray[np.uint64]
    """Latest digest of each block, ``(block,) uint64``."""
    known: NDArray[np.bool_]
    """Whether a block has a digest, ``(block,) bool``."""
    runs: tuple[int, ...]
    """Runs with usable records."""
    whole: bool
    """Whether the records cover all blocks, except those that a killed run stored right before its end.

    They do not if one is lost or damaged, or was written by a version of emseg without digests.
    """


@dataclass(frozen=True, slots=True)
class FinishedBlocks:
    """The finished blocks of a resumed run, compared with the volume."""

    recompute: NDArray[np.bool_] | None
    """Stored blocks without a digest, which are recomputed, ``(z, y, x) bool``; None if there are none.

    A killed run stored them right before its end.
    """
    runs: tuple[int, ...] | None
    """Runs whose records cover all other blocks; None if some blocks have no digest and are not recomputed."""


NO_FINISHED_BLOCKS = FinishedBlocks(None, ())
"""FinishedBlocks of the first run of an output."""


@dataclass(slots=True)
class VolumeComparison:
    """Result of comparing blocks with the volume."""

    blocks: int = 0
    """Blocks whose voxels were compared."""
    changed: int = 0
    """Blocks whose voxels have changed."""
    unreadable: int = 0
    """Blocks whose voxels can no longer be read."""
    unknown: int = 0
    """Written blocks without a digest, which cannot be compared."""
    listed: list[Failure] = field(default_factory=list)
    """First blocks that are changed or cannot be read."""

    @property
    def same(self) -> bool:
        """Whether no block is changed or unreadable."""
        return not (self.changed or self.unreadable)

    def __str__(self) -> str:
        unknown = f", {self.unknown} not compared because their digests are not recorded" if self.unknown else ""
        counts = f"{quantity(self.blocks, 'block')} compared, {self.changed} changed, {self.unreadable} cannot be read"
        return "\n".join([f"volume     {counts}{unknown}", *failure_lines("changed", tuple(self.listed))])


def compare_sample(stored: Output, run: int, volume: Place, stages: StageRunner) -> FinishedBlocks:
    """Compare a random sample of up to `SAMPLED_BLOCKS` finished blocks with the volume before a run is resumed.

    The run must hold the lease and not have written anything yet. Blocks that can no longer be read cause only a notice, as
    nothing will be computed from their voxels.

    Parameters
    ----------
    stored
        The output.
    run
        Number of the resumed run.
    volume
        Place of the volume.
    stages
        Runner of the stage that reads the blocks.

    Returns
    -------
    FinishedBlocks
        The finished blocks.

    Raises
    ------
    OutputError
        If voxels that a block has read have changed.
    UnfinishedError
        If the volume was unavailable for so long that the blocks could not be compared.
    """
    reads, written = _recorded_digests(stored, run - 1, stages.notify), stored.levels[0].written().ravel()
    unrecorded = written & ~reads.known
    drawn = np.zeros_like(written)
    candidates = np.flatnonzero(written & reads.known)
    drawn[np.random.default_rng().choice(candidates, min(SAMPLED_BLOCKS, len(candidates)), replace=False, shuffle=False)] = True
    found = _compare(stored, reads, drawn, volume, stages)
    if found.changed:
        changed = [failure for failure in found.listed if failure.cause == CHANGED]
        boxes = "; ".join(failure.box for failure in changed[:MAX_NAMED])
        more = f"; and {found.changed - MAX_NAMED} more" if found.changed > MAX_NAMED else ""
        raise OutputError(
            f"{volume} has changed since {stored.path} was made, {found.changed} of {quantity(found.blocks, 'compared block')} "
            f"had other voxels ({boxes}{more}): restore the volume, choose another place with -o, or start over with "
            "--overwrite"
        )
    if found.unreadable:
        first = found.listed[0]
        stages.notify(Noticed(f"{quantity(found.unreadable, 'block')} can no longer be read for comparison: {first.cause}"))
    if not unrecorded.any():
        return FinishedBlocks(None, reads.runs)
    if reads.whole:
        stages.notify(Noticed(f"recomputing {quantity(int(unrecorded.sum()), 'block')} stored right before a run was killed"))
        return FinishedBlocks(unrecorded.reshape(stored.outside.shape), reads.runs)
    count = f"{int(unrecorded.sum())} of {quantity(int(written.sum()), 'block')}"
    stages.notify(Noticed(f"{count} cannot be compared with the volume: their digests are not recorded"))
    return FinishedBlocks(None, None)


def compare_all(stored: Output, runs: int, volume: Place, stages: StageRunner) -> VolumeComparison:
    """Compare all blocks of an output whose digests are recorded with the volume.

    Parameters
    ----------
    stored
        The output.
    runs
        Number of its newest run.
    volume
        Place of the volume.
    stages
        Runner of the stage that reads the blocks.

    Returns
    -------
    VolumeComparison
        The result.

    Raises
    ------
    UnfinishedError
        If the volume was unavailable for so long that the blocks could not be compared.
    """
    written, reads = stored.levels[0].written().ravel(), _recorded_digests(stored, runs, stages.notify)
    found = _compare(stored, reads, written & reads.known, volume, stages)
    found.unknown = int((written & ~reads.known).sum())
    return found


def _compare(
    stored: Output, reads: RecordedDigests, wanted: NDArray[np.bool_], volume: Place, stages: StageRunner
) -> VolumeComparison:
    """Compare the wanted blocks, ``(block,) bool``."""
    found, recipe, total, notify = VolumeComparison(), recipe_of(stored), int(wanted.sum()), stages.notify
    if not total:
        return found
    notify(Noticed(f"comparing {quantity(total, 'block')} with the volume"))
    work, notified = RereadWork(recipe.plan, volume, recipe.volume.selection), monotonic()
    patient = replace(stages.policy, max_failures=None, keep_idle_workers=True)
    sequences = block_sequences(recipe.plan, recipe.volume, wanted)
    with closing(stages.executor.run(work, sequences, patient, stages.stop)) as events:
        for event in events:
            match event:
                case BlockEnded(outcome):
                    _count(found, outcome, int(reads.digests[outcome.block]), recipe.plan.block(outcome.block).write)
                case BlockRetried() | Noticed() | WorkerLeft():
                    notify(event)
            if monotonic() > notified + NOTICE_SECONDS:
                notified = monotonic()
                notify(Noticed(f"compared {found.blocks} of {quantity(total, 'block')} with the volume"))
    if found.blocks + found.unreadable < total and not stages.stop.asked:
        raise UnfinishedError(
            f"{quantity(total - found.blocks, 'block')} of {stored.path} not compared with {volume}: run the command again"
        )
    found.listed.sort(key=lambda failure: failure.block)
    return found


def _count(found: VolumeComparison, outcome: Outcome, digest: int, box: Any) -> None:
    """Add the result of one block, given the recorded digest."""
    if outcome.status == "failed":
        found.unreadable += 1
    else:
        found.blocks += 1
        if int(outcome.read, 16) == digest:
            return
        found.changed += 1
    if len(found.listed) < MAX_LISTED:
        found.listed.append(Failure(outcome.block, str(box), outcome.cause or CHANGED))


def _recorded_digests(stored: Output, last: int, notify: Observer) -> RecordedDigests:
    """Collect the digests in the records of runs 1 to `last` that belong to the current output."""
    blocks = int(stored.outside.size)
    if blocks >= MIN_BLOCKS_FOR_NOTICE:
        notify(Noticed("reading the run records"))
    digests, known = np.zeros(blocks, np.uint64), np.zeros(blocks, bool)
    records = {run: _RunDigests(stored, run) for run in range(1, last + 1)}
    for record in records.values():
        record.read(digests, known)
    current = [run for run, record in records.items() if record.current]
    covering_runs = records[last].covering_runs if last in current else None  # the record of a newer run may be lost
    whole = covering_runs is not None and all(run in records and records[run].whole for run in (*covering_runs, last))
    return RecordedDigests(digests, known, tuple(current), whole)


class _RunDigests:
    """Digests in the record of one run."""

    def __init__(self, stored: Output, run: int) -> None:
        self._stored, self._run = stored, run
        self.current = False
        """Whether it belongs to the current output."""
        self.whole = False
        """Whether no line is missing between the first and the last one."""
        self.covering_runs: tuple[int, ...] | None = None
        """Runs whose records cover all blocks that were done when this run started; None if that is not known."""

    def read(self, digests: NDArray[np.uint64], known: NDArray[np.bool_]) -> None:
        """Add the digests of the record."""
        stored, lost = self._stored, False
        for line in all_lines_of(stored, self._run):
            match line:
                case None:
                    lost = True
                case {"event": "started"}:
                    self._begin(line)
                    if not self.current:
                        return
                case {"event": "block", "block": int(block), "status": "done", "read": str(read)} if self.current:
                    if 0 <= block < len(known) and (value := _value(read)) is not None:
                        digests[block], known[block] = value, True
        names = [name for name in stored.records.names(f"run-{self._run:04d}/") if name.endswith(".jsonl")]
        gapless = names == [f"run-{self._run:04d}/{number:05d}.jsonl" for number in range(len(names))]
        self.whole = self.current and gapless and not lost

    def _begin(self, line: dict[str, Any]) -> None:
        now = self._stored.attributes.get("fingerprint"), self._stored.generation
        self.current = (line.get("fingerprint"), line.get("generation")) == now
        match line.get("tellers"):
            case list(runs) if all(map(is_count, runs)):
                self.covering_runs = tuple(runs)


def _value(digest: str) -> int | None:
    """Return a digest as a number; None if it is damaged."""
    try:
        return int(digest, 16) if len(digest) == DIGEST_LENGTH else None
    except ValueError:
        return None
