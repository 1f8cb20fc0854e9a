"""The report of a run: a fold of its outcomes. Done, skipped, failed and left are different words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from emseg.grid.blocks import Blocks
from emseg.outcome import Outcome, Seconds

LISTED = 1000
"""Blocks that failed, and blocks that were tried again, which a report names; all are counted."""
BUSY = 0.2
"""Share of its time that a predictor may be idle before another stage is what holds a run up."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A block that failed; its voxels stay *not computed*."""

    block: int
    box: str
    """Its voxels, as they are typed after ``--roi``."""
    cause: str


@dataclass(frozen=True, slots=True)
class Retry:
    """A block that was begun in vain, and done by another try."""

    block: int
    box: str
    """Its voxels, as they are typed after ``--roi``."""
    cause: str
    """Why the last try in vain ended."""
    worker: str
    """Host and process that did it."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a run ended."""

    blocks: int
    """Blocks of the plan."""
    skipped: int
    """Blocks that an earlier run had written."""
    done: int
    """Blocks written by this run."""
    failed: int
    retried: int
    """Tries of blocks that were made again."""
    signal: int
    """The signal that stopped the run; 0 if none did."""
    failures: tuple[Failure, ...]
    """The first of the failed blocks."""
    retries: tuple[Retry, ...]
    """The first of the blocks that took more than one try."""
    voxels: int
    """Voxels written by this run."""
    seconds: float
    """Time between the first block and the last, by the clock."""
    phases: Seconds
    """Sums over all blocks of this run; blocks of one worker overlap."""
    worker_peak_bytes: int
    """Largest memory of a worker process."""
    workers: int
    """Processes that blocks have ended in."""
    outside: int = 0
    """Blocks that a mask leaves out."""
    unbuilt: int = 0
    """Write units of coarser levels that are not there."""

    @property
    def idle(self) -> float | None:
        """Share of the time for which predictors had no block; None if no block has ended."""
        time = self.seconds * self.workers
        return max(0.0, 1 - self.phases.predict / time) if time else None

    @property
    def bottleneck(self) -> str:
        """What to make faster: the stage that predictors waited for most, or these themselves; empty if no block has ended."""
        return bottleneck_of(self.phases, self.idle)

    @property
    def left(self) -> int:
        """Blocks that nobody has tried yet."""
        return self.blocks - self.outside - self.skipped - self.done - self.failed

    @property
    def exit_code(self) -> int:
        """0 if everything is written, 128 and the signal if that stopped the run before its end, else 3."""
        if (self.left or self.unbuilt) and self.signal:
            return 128 + self.signal
        return 3 if self.failed or self.left or self.unbuilt else 0

    @property
    def megavoxels_per_second(self) -> float:
        """Speed of this run."""
        return self.voxels / self.seconds / 1e6 if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        found = {name: getattr(self, name) for name in ("left", "megavoxels_per_second", "idle", "bottleneck")}
        return {**asdict(self), **found}


def bottleneck_of(phases: Seconds, idle: float | None) -> str:
    """The stage that holds a run up, given the idle share of its predictors; empty if that is not known."""
    if idle is None:
        return ""
    if idle < BUSY:
        return "predict"
    return max(("read", "stitch", "write"), key=lambda stage: getattr(phases, stage))


class Tally:
    """Counts outcomes as they come."""

    def __init__(self, blocks: Blocks, skipped: int, outside: int = 0) -> None:
        self._blocks = blocks
        self._skipped, self._outside = skipped, outside
        self._done = self._failed = self._voxels = self._peak = self._retried = 0
        self._failures: list[Failure] = []
        self._retries: list[Retry] = []
        self._in_vain: dict[int, str] = {}
        self._workers: set[str] = set()
        self._phases = dict.fromkeys((field.name for field in fields(Seconds)), 0.0)

    def take_back(self, blocks: int) -> None:
        """Blocks that were written are not there any more."""
        self._done -= blocks

    def retry(self, block: int, cause: str) -> None:
        """Add a try that is made again."""
        self._retried += 1
        self._in_vain[block] = cause

    def count(self, outcome: Outcome) -> None:
        """Add one block."""
        self._peak = max(self._peak, outcome.peak_bytes)
        self._workers.add(outcome.worker)
        for phase in self._phases:
            self._phases[phase] += getattr(outcome.seconds, phase)
        if outcome.status == "done":
            self._done += 1
            self._voxels += outcome.voxels
        else:
            self._failed += 1
        self._list(outcome)

    def _list(self, outcome: Outcome) -> None:
        in_vain = self._in_vain.pop(outcome.block, None)
        if outcome.status == "failed" and len(self._failures) < LISTED:
            self._failures.append(Failure(outcome.block, self._box(outcome.block), outcome.cause or "unknown"))
        if outcome.status == "done" and in_vain is not None and len(self._retries) < LISTED:
            self._retries.append(Retry(outcome.block, self._box(outcome.block), in_vain, outcome.worker))

    def _box(self, block: int) -> str:
        return str(self._blocks.block(block).write)

    def report(self, seconds: float, signal: int = 0) -> Report:
        """The report so far, `seconds` after the first block was handed out."""
        return Report(
            blocks=len(self._blocks),
            skipped=self._skipped,
            done=self._done,
            failed=self._failed,
            retried=self._retried,
            signal=signal,
            failures=tuple(self._failures),
            retries=tuple(self._retries),
            voxels=self._voxels,
            seconds=seconds,
            phases=Seconds(**self._phases),
            worker_peak_bytes=self._peak,
            workers=len(self._workers),
            outside=self._outside,
        )
