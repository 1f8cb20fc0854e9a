"""How fast a run is of late, where the time goes, and when it will be over. Every time is given by the caller."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields
from statistics import mean, median, stdev
from typing import Any

from emseg.grid.blocks import Blocks
from emseg.outcome import Outcome, Seconds
from emseg_workflows.events import BlockEnded, Event, InHand, WorkerJoined, WorkerLeft

RECENT = 60.0
"""Seconds that are looked back on, where `LEAST` blocks ended in them."""
LEAST = 20
"""Blocks that are looked back on at least."""
PARTS = 6
"""Parts of that time whose speeds are compared, to tell how sure the time left is."""
LATE = 3.0
"""Times as long as blocks took of late, after which a block that is still in hand makes its worker the slowest."""
STAGES = tuple(field.name for field in fields(Seconds))
"""What the time of a block is spent on."""


@dataclass(frozen=True, slots=True)
class Slowest:
    """The worker that is the slowest of late."""

    worker: str
    speed: float
    """As a part of the median of all workers."""
    holding: float | None = None
    """Seconds that it has had a block in hand, if that is what tells."""

    def __str__(self) -> str:
        if self.holding is not None:
            return f"{self.worker}, in its block for {clock(self.holding)}"
        return f"{self.worker}, {self.speed:.2f} of the median speed"


class Pace:
    """The speed of a run; the clock is that of its caller, in seconds."""

    def __init__(self, blocks: Blocks, already_done: int, workers: int, now: float) -> None:
        self.blocks = len(blocks)
        self.done = already_done
        self.failed = 0
        self._workers = workers
        self._joined: set[str] = set()
        self._left = blocks.region.voxels * (1 - already_done / self.blocks)
        self._began = now
        self._recent: deque[tuple[float, Outcome]] = deque()
        self._late: InHand | None = None

    @property
    def left(self) -> int:
        """Blocks that have not ended."""
        return self.blocks - self.done - self.failed

    def tell(self, event: Event, now: float) -> None:
        """Take note of what happened."""
        match event:
            case BlockEnded(outcome):
                self._count(outcome, now)
            case InHand():
                self._late = event
            case WorkerJoined(worker):
                self._joined.add(worker)
            case WorkerLeft(worker):
                self._joined.discard(worker)

    def speed(self, now: float) -> float:
        """Voxels written in a second."""
        seconds = self._until(now) - self._began
        return sum(_written(outcome) for _, outcome in self._recent) / seconds if seconds > 0 else 0.0

    def seconds_left(self, now: float) -> tuple[float, float | None] | None:
        """Seconds until the end, and by how many that may be wrong, if it can be told; None without a speed.

        It may be wrong by two standard errors of the speed, which is measured in `PARTS` parts of the time looked back on.
        """
        speed = self.speed(now)
        if not speed:
            return None
        seconds = max(self._left, 0.0) / speed
        if len(self._recent) < 2 * PARTS:
            return seconds, None
        width = (self._until(now) - self._began) / PARTS
        parts = [0.0] * PARTS
        for at, outcome in self._recent:
            parts[min(PARTS - 1, int((at - self._began) / width))] += _written(outcome)
        error = 2 * stdev(parts) / PARTS**0.5 / mean(parts)
        return seconds, (seconds * error if error < 1 else None)

    def idle(self, now: float) -> float | None:
        """Part of the time in which devices did not predict, each worker having one; None before the first block."""
        seconds = self._until(now) - self._began
        if not self._recent or seconds <= 0:
            return None
        busy = sum(outcome.seconds.predict for _, outcome in self._recent)
        return min(1.0, max(0.0, 1 - busy / seconds / max(1, len(self._joined) or self._workers)))

    def shares(self) -> dict[str, float] | None:
        """Part of the time of blocks that went into each of `STAGES`; None before the first block."""
        sums = {stage: sum(getattr(outcome.seconds, stage) for _, outcome in self._recent) for stage in STAGES}
        total = sum(sums.values())
        return {stage: seconds / total for stage, seconds in sums.items()} if total else None

    def slowest(self) -> Slowest | None:
        """The slowest worker, if there are several to compare."""
        work: dict[str, list[float]] = {}
        longest = 0.0
        for _, outcome in self._recent:
            spent = sum(getattr(outcome.seconds, stage) for stage in STAGES if stage != "wait")
            longest = max(longest, spent + outcome.seconds.wait)
            if outcome.worker and outcome.status == "done":
                sums = work.setdefault(outcome.worker, [0.0, 0.0])
                sums[0] += spent
                sums[1] += outcome.voxels
        if self._late is not None and longest and self._late.seconds > LATE * longest:
            return Slowest(self._late.worker, 0.0, self._late.seconds)
        speeds = {worker: voxels / seconds for worker, (seconds, voxels) in work.items() if seconds}
        if len(speeds) < 2:
            return None
        worker = min(speeds, key=speeds.__getitem__)
        return Slowest(worker, speeds[worker] / median(speeds.values()))

    def to_json(self, now: float) -> dict[str, Any]:
        """What a page shows, as JSON values."""
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
        while len(self._recent) > LEAST and self._recent[0][0] <= now - RECENT:
            self._began, _ = self._recent.popleft()

    def _until(self, now: float) -> float:
        """The end of the time looked back on: now, less the time in which a block could not be expected yet."""
        if not self._recent:
            return now
        last, _ = self._recent[-1]
        return max(last, now - (last - self._began) / len(self._recent))


def clock(seconds: float) -> str:
    """Seconds as ``1 d 2 h``, ``3 h 04 min``, ``5 min 06 s`` or ``7.8 s``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {whole % 60:02d} s"


def time_left(seconds: float | None, plus_minus: float | None) -> str:
    """The time left as a person reads it: ``3 h 04 min +- 8 min 10 s``, or ``?``."""
    if seconds is None:
        return "?"
    return clock(seconds) + ("" if plus_minus is None else f" +- {clock(plus_minus)}")


def _written(outcome: Outcome) -> int:
    return outcome.voxels if outcome.status == "done" else 0
