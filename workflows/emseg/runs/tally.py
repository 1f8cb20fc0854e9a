"""The report of a run, accumulated from its outcomes. Blocks are done, skipped, failed or left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from emseg_core.grid.blocks import Blocks
from emseg_core.outcome import Outcome, Seconds

MAX_SHOWN = 20
"""Maximum number of blocks listed in text; JSON lists all of a report."""
MAX_LISTED = 1000
"""Maximum number of failed and of retried blocks listed in a report; all are counted."""
MAX_IDLE_SHARE = 0.2
"""Idle fraction of workers above which another phase than prediction limits a run."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A block that failed; its voxels stay *not computed*."""

    block: int
    box: str
    """Its voxels, in the format of ``--roi``."""
    cause: str


@dataclass(frozen=True, slots=True)
class Retry:
    """A block that succeeded after at least one failed attempt."""

    block: int
    box: str
    """Its voxels, in the format of ``--roi``."""
    cause: str
    """Why the last failed attempt failed."""
    worker: str
    """Host and process that completed it."""


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a run."""

    blocks: int
    """Number of blocks in the plan."""
    skipped: int
    """Number of blocks that an earlier run had written."""
    done: int
    """Number of blocks written by this run."""
    failed: int
    retried: int
    """Number of retries."""
    signal: int
    """The signal that stopped the run; 0 if none did."""
    failures: tuple[Failure, ...]
    """The first failed blocks."""
    retries: tuple[Retry, ...]
    """The first blocks that took more than one attempt."""
    voxels: int
    """Number of voxels written by this run."""
    seconds: float
    """Elapsed time from the first block to the last."""
    phases: Seconds
    """Seconds per phase, summed over all blocks of this run; blocks of one worker overlap."""
    worker_peak_bytes: int
    """Peak memory of the largest worker process."""
    workers: int
    """Number of processes that completed or failed blocks."""
    outside: int = 0
    """Number of blocks outside a mask."""
    unbuilt: int = 0
    """Number of missing write units of coarser levels."""

    @property
    def idle(self) -> float | None:
        """Fraction of the time in which workers did not predict; None if no block has ended."""
        time = self.seconds * self.workers
        return max(0.0, 1 - self.phases.predict / time) if time else None

    @property
    def bottleneck(self) -> str:
        """Phase that limits the speed; empty if no block has ended. See `bottleneck_of`."""
        return bottleneck_of(self.phases, self.idle)

    @property
    def left(self) -> int:
        """Number of blocks that were not attempted."""
        return self.blocks - self.outside - self.skipped - self.done - self.failed

    @property
    def exit_code(self) -> int:
        """0 if everything is written, 128 plus the signal if one stopped the run early, else 3."""
        if (self.left or self.unbuilt) and self.signal:
            return 128 + self.signal
        return 3 if self.failed or self.left or self.unbuilt else 0

    @property
    def megavoxels_per_second(self) -> float:
        """Speed of this run."""
        return self.voxels / self.seconds / 1e6 if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values.

        Returns
        -------
        dict
            All fields, and the properties ``left``, ``megavoxels_per_second``, ``idle`` and ``bottleneck``.
        """
        found = {name: getattr(self, name) for name in ("left", "megavoxels_per_second", "idle", "bottleneck")}
        return {**asdict(self), **found}


def bottleneck_of(phases: Seconds, idle: float | None) -> str:
    """Return the phase that limits a run, given the idle fraction of its workers.

    It is prediction if workers predict nearly all the time, else the phase that took most time.

    Parameters
    ----------
    phases
        Seconds of all blocks in each phase.
    idle
        Fraction of time in which workers did not predict, 0 to 1; None if it is not known.

    Returns
    -------
    str
        ``predict``, ``read``, ``stitch`` or ``write``; empty if the idle fraction is not known.
    """
    if idle is None:
        return ""
    if idle < MAX_IDLE_SHARE:
        return "predict"
    return max(("predict", "read", "stitch", "write"), key=lambda phase: getattr(phases, phase))


class Tally:
    """Accumulate outcomes."""

    def __init__(self, blocks: Blocks, skipped: int, outside: int = 0) -> None:
        self._blocks = blocks
        self._skipped, self._outside = skipped, outside
        self._done = self._failed = self._voxels = self._peak = self._retried = 0
        self._failures: list[Failure] = []
        self._retries: list[Retry] = []
        self._last_failures: dict[int, str] = {}
        self._workers: set[str] = set()
        self._phases = dict.fromkeys((field.name for field in fields(Seconds)), 0.0)

    def take_back(self, blocks: int) -> None:
        """Subtract blocks whose results were lost.

        Parameters
        ----------
        blocks
            Number of blocks.
        """
        self._done -= blocks

    def retry(self, block: int, cause: str) -> None:
        """Add a retry.

        Parameters
        ----------
        block
            Index of the block.
        cause
            Why it is tried again.
        """
        self._retried += 1
        self._last_failures[block] = cause

    def count(self, outcome: Outcome) -> None:
        """Add the outcome of one block.

        Parameters
        ----------
        outcome
            The outcome.
        """
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
        last_failure = self._last_failures.pop(outcome.block, None)
        if outcome.status == "failed" and len(self._failures) < MAX_LISTED:
            self._failures.append(Failure(outcome.block, self._box(outcome.block), outcome.cause or "unknown"))
        if outcome.status == "done" and last_failure is not None and len(self._retries) < MAX_LISTED:
            self._retries.append(Retry(outcome.block, self._box(outcome.block), last_failure, outcome.worker))

    def _box(self, block: int) -> str:
        return str(self._blocks.block(block).write)

    def report(self, seconds: float, signal: int = 0) -> Report:
        """Return the report so far.

        Parameters
        ----------
        seconds
            Time since the first block was assigned.
        signal
            The signal that stopped the run; 0 if none did.

        Returns
        -------
        Report
            The report.
        """
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


def quantity(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1.

    Parameters
    ----------
    number
        The number.
    noun
        The noun in the singular.

    Returns
    -------
    str
        Such as ``1 block`` or ``2 blocks``.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def failure_lines(what: str, failures: tuple[Failure, ...]) -> Iterator[str]:
    """Yield a line for each of the first `MAX_SHOWN` failures, and one with the number of the others.

    Parameters
    ----------
    what
        What failed.
    failures
        All failures.

    Yields
    ------
    str
        A line that starts with `what`.
    """
    for failure in failures[:MAX_SHOWN]:
        yield f"{what:<11}block {failure.block} at {failure.box}: {failure.cause}"
    if len(failures) > MAX_SHOWN:
        yield f"{what:<11}and {len(failures) - MAX_SHOWN} more: see --json"
