"""Speed of a run, where its time goes, and its remaining time. The caller supplies every time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields
from statistics import mean, median, stdev
from typing import Any

from emseg.runs.events import BlockEnded, BlocksInProgress, Event, WorkerJoined, WorkerLeft
from emseg_core.grid.blocks import Blocks
from emseg_core.outcome import Outcome, Seconds

RECENT_SECONDS = 60.0
"""Length of the window that rates are computed over, if `MIN_RECENT_BLOCKS` blocks ended in it."""
MIN_RECENT_BLOCKS = 20
"""Minimum number of blocks that rates are computed over."""
SPEED_SAMPLES = 6
"""Number of parts of the window whose speeds are compared to estimate the error of the remaining time."""
STALLED_RATIO = 3.0
"""A block in progress for this many times the longest recent block time makes its worker the slowest."""
PHASES = tuple(field.name for field in fields(Seconds))
"""Phases that the time of a block is divided into."""


@dataclass(frozen=True, slots=True)
class Slowest:
    """The slowest worker of the recent past."""

    worker: str
    speed: float
    """Its speed as a fraction of the median of all workers."""
    holding: float | None = None
    """Seconds that its current block has taken, if that is why it is the slowest."""

    def __str__(self) -> str:
        if self.holding is not None:
            return f"{self.worker}, {format_duration(self.holding)} on one block"
        return f"{self.worker}, at {self.speed:.2f} of the median speed"


class Pace:
    """The speed of a run, in seconds of the caller's clock."""

    def __init__(self, blocks: Blocks, already_done: int, workers: int, now: float) -> None:
        self.blocks = len(blocks)
        self.done = already_done
        self.failed = 0
        self._workers = workers
        self._joined: set[str] = set()
        self._left = blocks.region.voxels * (1 - already_done / self.blocks)
        self._began = now
        self._recent: deque[tuple[float, Outcome]] = deque()
        self._late: BlocksInProgress | None = None

    @property
    def began(self) -> bool:
        """Whether a block has ended."""
        return bool(self._recent)

    @property
    def left(self) -> int:
        """Number of blocks that have not ended."""
        return self.blocks - self.done - self.failed

    def record(self, event: Event, now: float) -> None:
        """Update the state from an event.

        Parameters
        ----------
        event
            Any event.
        now
            The time, in seconds.
        """
        match event:
            case BlockEnded(outcome):
                self._count(outcome, now)
            case BlocksInProgress():
                self._late = event
            case WorkerJoined(worker):
                self._joined.add(worker)
            case WorkerLeft(worker):
                self._joined.discard(worker)

    def speed(self, now: float) -> float:
        """Return the speed in voxels written per second.

        Parameters
        ----------
        now
            The time, in seconds.

        Returns
        -------
        float
            Voxels per second; 0 before the first block.
        """
        seconds = self._until(now) - self._began
        return sum(_written(outcome) for _, outcome in self._recent) / seconds if seconds > 0 else 0.0

    def seconds_left(self, now: float) -> tuple[float, float | None] | None:
        """Estimate the remaining time.

        Parameters
        ----------
        now
            The time, in seconds.

        Returns
        -------
        tuple of (float, float or None), or None
            Remaining seconds and their error; None while the speed is not known. The error is two standard errors, from
            the speeds in `SPEED_SAMPLES` parts of the window; None if there are too few blocks or it exceeds the estimate.
        """
        speed = self.speed(now)
        if not speed:
            return None
        seconds = max(self._left, 0.0) / speed
        if len(self._recent) < 2 * SPEED_SAMPLES:
            return seconds, None
        width = (self._until(now) - self._began) / SPEED_SAMPLES
        parts = [0.0] * SPEED_SAMPLES
        for at, outcome in self._recent:
            parts[min(SPEED_SAMPLES - 1, int((at - self._began) / width))] += _written(outcome)
        error = 2 * stdev(parts) / SPEED_SAMPLES**0.5 / mean(parts)
        return seconds, (seconds * error if error < 1 else None)

    def idle(self, now: float) -> float | None:
        """Return the fraction of time in which workers did not predict.

        Parameters
        ----------
        now
            The time, in seconds.

        Returns
        -------
        float or None
            Between 0 and 1, with one predictor per worker; None before the first block.
        """
        seconds = self._until(now) - self._began
        if not self._recent or seconds <= 0:
            return None
        busy = sum(outcome.seconds.predict for _, outcome in self._recent)
        return min(1.0, max(0.0, 1 - busy / seconds / max(1, len(self._joined) or self._workers)))

    def shares(self) -> dict[str, float] | None:
        """Return the fraction of block time spent in each of `PHASES`.

        Returns
        -------
        dict of str to float, or None
            Fractions that sum to 1; None before the first block.
        """
        sums = {stage: sum(getattr(outcome.seconds, stage) for _, outcome in self._recent) for stage in PHASES}
        total = sum(sums.values())
        return {stage: seconds / total for stage, seconds in sums.items()} if total else None

    def slowest(self) -> Slowest | None:
        """Find the slowest worker.

        Returns
        -------
        Slowest or None
            None if there are fewer than two workers to compare.
        """
        work: dict[str, list[float]] = {}
        longest = 0.0
        for _, outcome in self._recent:
            spent = sum(getattr(outcome.seconds, stage) for stage in PHASES if stage != "wait")
            longest = max(longest, spent + outcome.seconds.wait)
            if outcome.worker and outcome.status == "done":
                sums = work.setdefault(outcome.worker, [0.0, 0.0])
                sums[0] += spent
                sums[1] += outcome.voxels
        if self._late is not None and longest and self._late.seconds > STALLED_RATIO * longest:
            return Slowest(self._late.worker, 0.0, self._late.seconds)
        speeds = {worker: voxels / seconds for worker, (seconds, voxels) in work.items() if seconds}
        if len(speeds) < 2:
            return None
        worker = min(speeds, key=speeds.__getitem__)
        return Slowest(worker, speeds[worker] / median(speeds.values()))

    def to_json(self, now: float) -> dict[str, Any]:
        """Return what the dashboard shows, as JSON values.

        Returns
        -------
        dict
            Speed in voxels per second, remaining time in seconds, fractions of time, and the slowest worker.
        """
        left, slowest = self.seconds_left(now), self.slowest()
        return {
            "speed": self.speed(now),
            "seconds_left": left and left[0],
            "plus_minus": left and left[1],
            "idle": self.idle(now),
            "shares": self.shares(),
            "slowest": slowest and str(slowest),
        }

    def _count(self, outcome: Outcome, now: float) -> None:
        self.done += outcome.status == "done"
        self.failed += outcome.status == "failed"
        self._left -= outcome.voxels
        self._recent.append((now, outcome))
        while len(self._recent) > MIN_RECENT_BLOCKS and self._recent[0][0] <= now - RECENT_SECONDS:
            self._began, _ = self._recent.popleft()

    def _until(self, now: float) -> float:
        """Return the end of the window: now, less the time in which no block could be expected yet."""
        if not self._recent:
            return now
        last, _ = self._recent[-1]
        return max(last, now - (last - self._began) / len(self._recent))


def format_duration(seconds: float) -> str:
    """Format seconds as ``1 d 2 h``, ``3 h 04 min``, ``5 min 06 s`` or ``7.8 s``.

    Parameters
    ----------
    seconds
        A duration.

    Returns
    -------
    str
        The duration.
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {whole % 60:02d} s"


def format_time_left(seconds: float | None, plus_minus: float | None) -> str:
    """Format the remaining time as ``3 h 04 min +- 8 min 10 s``, or ``?`` if it is not known.

    Parameters
    ----------
    seconds
        The remaining time; None if it is not known.
    plus_minus
        Its error in seconds; None if it is not known.

    Returns
    -------
    str
        The remaining time.
    """
    if seconds is None:
        return "?"
    return format_duration(seconds) + ("" if plus_minus is None else f" +- {format_duration(plus_minus)}")


def _written(outcome: Outcome) -> int:
    return outcome.voxels if outcome.status == "done" else 0
