"""What the records of all runs tell of how an output came about: who ran where, how fast, and where the time went."""

from __future__ import annotations

import heapq
import signal
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from emseg.grid.blocks import Blocks
from emseg.outcome import LONGEST, Outcome
from emseg.store.ledger import Output
from emseg_workflows.flows.record import all_lines_of, recorded_runs, time_of
from emseg_workflows.report import Report, Tally

BINS = 120
"""Most bins that time is divided into; there are half as many at least, unless a run takes less than a minute."""
SLOWEST = 10
"""Blocks that took longest, of which there is a note."""
NOTICES = 20
"""Notices of a run that are kept."""


@dataclass(slots=True)
class Speed:
    """Voxels written over time, in bins that grow as it takes longer."""

    width: float = 1.0
    """Seconds of a bin."""
    voxels: list[float] = field(default_factory=list)
    """Of each bin; the last one ends with the last block."""
    end: float = 0.0
    """Seconds until the last block has ended."""

    def add(self, start: float, stop: float, voxels: int) -> None:
        """Spread voxels evenly over the time, in seconds from the beginning, in which they were computed."""
        self.end = max(self.end, stop)
        while stop > BINS * self.width:
            pairs = [*self.voxels, 0.0]
            self.voxels = [pairs[n] + pairs[n + 1] for n in range(0, len(self.voxels), 2)]
            self.width *= 2
        last = max(0, -int(-stop // self.width) - 1)
        self.voxels += [0.0] * (last + 1 - len(self.voxels))
        if stop <= start:
            self.voxels[last] += voxels
            return
        for number in range(int(start // self.width), last + 1):
            covered = min(stop, (number + 1) * self.width) - max(start, number * self.width)
            self.voxels[number] += voxels * covered / (stop - start)

    @property
    def megavoxels_per_second(self) -> list[float]:
        """Of each bin."""
        whole = len(self.voxels) - 1
        lengths = [self.width] * whole + [max(1.0, self.end - self.width * whole)]
        return [voxels / length / 1e6 for voxels, length in zip(self.voxels, lengths, strict=False)]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the record of one run tells."""

    number: int
    ours: bool
    """Whether its blocks are those of the output, which may have been begun anew since."""
    start: dict[str, Any]
    """The line with which its record begins; empty if that is lost."""
    began: datetime | None
    last: datetime | None
    """Time of its last line."""
    end: str | None
    """How it ended, in words; None if its record does not say."""
    work: Report
    """Of the blocks that have ended in it."""
    lost: int
    """Lines of its record that cannot be read."""
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SlowBlock:
    """A block that took long."""

    run: int
    box: str
    """Its voxels, as they are typed after ``--roi``."""
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class History:
    """What all records tell together."""

    runs: tuple[RunFacts, ...]
    work: Report
    """Of all runs whose blocks are those of the output; a block that has ended in several counts in each."""
    idle: float | None
    """Share of the time of all workers of these runs in which they did not predict; None if no block has ended."""
    speed: Speed
    """By the time in which a run was going on: what lies between two runs is left out."""
    begins: tuple[tuple[int, float], ...]
    """Number of each of these runs, and at which second of that time it began."""
    slowest: tuple[SlowBlock, ...]
    """The slowest first; waiting does not count."""


def read_history(stored: Output, blocks: Blocks) -> History:
    """What the records of an output tell; memory grows neither with the blocks nor with the time.

    Of a record that is damaged, it says how many lines are lost.
    """
    book = _Book(blocks)
    runs = []
    for number in recorded_runs(stored):
        page = _Page(blocks, number, stored.attributes.get("fingerprint"))
        for line in all_lines_of(stored, number):
            page.add(line, book)
        if page.lines:  # `emseg label` takes a lease as well, and keeps no record
            runs.append(page.facts())
            book.close(page, runs[-1])
    return book.history(runs)


class _Book:
    """What is summed over all runs."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self.work = Tally(blocks, 0)
        self.speed = Speed()
        self.offset = 0.0
        """Seconds that all earlier runs took."""
        self._begins: list[tuple[int, float]] = []
        self._seconds = self._workers_seconds = 0.0
        self._slowest: list[tuple[float, int, SlowBlock]] = []
        self._counted = 0

    def add(self, run: int, start: float, stop: float, outcome: Outcome) -> None:
        """Count a block that has ended, in seconds of its run."""
        self.work.count(outcome)
        if outcome.status == "done":
            self.speed.add(self.offset + start, self.offset + stop, outcome.voxels)
        self._counted += 1
        spent = outcome.seconds.total - outcome.seconds.wait
        if len(self._slowest) < SLOWEST or spent > self._slowest[0][0]:
            box = str(self._blocks.block(outcome.block).write)
            entry = (spent, -self._counted, SlowBlock(run, box, outcome))
            (heapq.heappushpop if len(self._slowest) == SLOWEST else heapq.heappush)(self._slowest, entry)

    def close(self, page: _Page, run: RunFacts) -> None:
        """Count a run as a whole."""
        if run.ours:
            self._begins.append((run.number, self.offset))
            self.offset += page.span
            self._seconds += run.work.seconds
            self._workers_seconds += run.work.seconds * run.work.workers

    def history(self, runs: list[RunFacts]) -> History:
        """All of it."""
        work = self.work.report(self._seconds)
        idle = max(0.0, 1 - work.phases.predict / self._workers_seconds) if self._workers_seconds else None
        slowest = tuple(entry[-1] for entry in sorted(self._slowest, reverse=True))
        return History(tuple(runs), work, idle, self.speed, tuple(self._begins), slowest)


class _Page:
    """What the record of one run has told so far."""

    def __init__(self, blocks: Blocks, number: int, fingerprint: Any) -> None:
        self.span = 0.0
        """Seconds from its beginning to its last block."""
        self.lines = 0
        self._blocks, self._number, self._fingerprint = blocks, number, fingerprint
        self._work = Tally(blocks, 0)
        self._start: dict[str, Any] = {}
        self._ours = True
        self._began: datetime | None = None
        self._last: datetime | None = None
        self._end: str | None = None
        self._seconds: float | None = None
        self._lost = 0
        self._notices: list[str] = []

    def add(self, line: dict[str, Any] | None, book: _Book) -> None:
        """Take in a line; None is one that cannot be read."""
        self.lines += 1
        try:
            self._take(line or {}, book)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            self._lost += 1

    def _take(self, line: dict[str, Any], book: _Book) -> None:
        at = time_of(line)
        if at is None:
            raise ValueError("no time")
        self._began = self._began or at
        self._last = max(self._last or at, at)
        match line["event"]:
            case "started":
                self._start = line
                self._ours = line.get("fingerprint") == self._fingerprint
            case "block" if self._ours:
                self._count(line, max(0.0, (at - self._began).total_seconds()), book)
            case "retried" if self._ours:
                for tally in (self._work, book.work):
                    tally.retry(int(line["block"]), _text(line["cause"]))
            case "noticed" if len(self._notices) < NOTICES:
                self._notices.append(_text(line["message"]))
            case "ended":
                report = dict(line["report"])
                self._end, self._seconds = _how_it_ended(report), _sound(report["seconds"])

    def _count(self, line: dict[str, Any], seconds: float, book: _Book) -> None:
        """Count a block that has ended so many seconds after the run began."""
        outcome = Outcome.from_json(line)
        if outcome.block >= len(self._blocks):
            raise ValueError("no block of this plan")
        self._work.count(outcome)
        self.span = max(self.span, seconds)
        book.add(self._number, max(0.0, seconds - outcome.seconds.total), seconds, outcome)

    def facts(self) -> RunFacts:
        """All of it."""
        return RunFacts(
            number=self._number,
            ours=self._ours,
            start=self._start,
            began=self._began,
            last=self._last,
            end=self._end,
            work=self._work.report(self.span if self._seconds is None else self._seconds),
            lost=self._lost,
            notices=tuple(self._notices),
        )


def _sound(seconds: Any) -> float:
    """A time that was written down, if it is one."""
    if not 0 <= seconds < LONGEST:
        raise ValueError(f"no time: {seconds}")
    return float(seconds)


def _text(words: Any) -> str:
    """What is said in a line, if it is text."""
    if not isinstance(words, str):
        raise TypeError("no text")
    return words


def _how_it_ended(report: dict[str, Any]) -> str:
    """The end of a run in words, from the report in its record."""
    failed, left, unbuilt, number = (int(report.get(name) or 0) for name in ("failed", "left", "unbuilt", "signal"))
    missing = [
        f"{count} {what}"
        for count, what in ((failed, "failed"), (left, "left"), (unbuilt, "units of coarser levels left"))
        if count
    ]
    if number and (left or unbuilt):
        names = {int(each): each.name for each in signal.Signals}
        return f"stopped by {names.get(number, number)}: {', '.join(missing)}"
    return ", ".join(missing) or "all blocks done"
