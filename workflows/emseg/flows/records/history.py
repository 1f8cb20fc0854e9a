"""History of an output from the records of all its runs: when and where they took place, their speed and their stages."""

from __future__ import annotations

import heapq
import signal
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from emseg.flows.records.run_log import all_lines_of, recorded_runs, time_of
from emseg.runs.tally import Report, Tally, quantity
from emseg_core.grid.blocks import Blocks
from emseg_core.outcome import MAX_SECONDS, Outcome
from emseg_core.store.outputs.output import Output

MAX_BINS = 120
"""Largest number of bins of the speed over time; from a minute on, at least half as many are used."""
MAX_SLOW_BLOCKS = 10
"""Number of slowest blocks to keep."""
MAX_NOTICES = 20
"""Largest number of notices to keep per run."""


@dataclass(slots=True)
class Speed:
    """Voxels written over time, in bins whose width doubles as time passes."""

    width: float = 1.0
    """Width of a bin in seconds."""
    voxels: list[float] = field(default_factory=list)
    """Voxels of each bin; the last one ends with the last block."""
    end: float = 0.0
    """Time of the end of the last block, in seconds."""

    def add(self, start: float, stop: float, voxels: int) -> None:
        """Distribute voxels evenly over the time in which they were computed, in seconds from the beginning.

        Parameters
        ----------
        start
            When the first voxel was computed, in seconds.
        stop
            When the last one was computed, in seconds.
        voxels
            Number of voxels.
        """
        self.end = max(self.end, stop)
        while stop > MAX_BINS * self.width:
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
        """Speed in each bin."""
        whole = len(self.voxels) - 1
        lengths = [self.width] * whole + [max(1.0, self.end - self.width * whole)]
        return [voxels / length / 1e6 for voxels, length in zip(self.voxels, lengths, strict=False)]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts from the record of one run."""

    number: int
    current: bool
    """Whether its blocks belong to the output, which may have been restarted since."""
    start: dict[str, Any]
    """First line of the record; empty if it is lost."""
    began: datetime | None
    last: datetime | None
    """Time of the last line."""
    end: str | None
    """Description of how it ended; None if that is not recorded."""
    work: Report
    """Report on the blocks that finished or failed in it."""
    lost: int
    """Number of lines that cannot be read."""
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SlowBlock:
    """One of the slowest blocks."""

    run: int
    box: str
    """Its voxels, in the format of ``--roi``."""
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class History:
    """Summary of the records of all runs."""

    runs: tuple[RunFacts, ...]
    work: Report
    """Report on all runs whose blocks belong to the output; a block that several runs computed counts several times."""
    idle: float | None
    """Fraction of the workers' time in which they did not predict; None if no block has finished."""
    speed: Speed
    """Speed over time, without the time between runs."""
    begins: tuple[tuple[int, float], ...]
    """Number of each of these runs, and its start in seconds, without the time between runs."""
    slowest: tuple[SlowBlock, ...]
    """Slowest blocks, the slowest first; waiting does not count."""


def read_history(stored: Output, blocks: Blocks) -> History:
    """Read the history of an output. Memory depends neither on the number of blocks nor on the time.

    Parameters
    ----------
    stored
        The open output.
    blocks
        Its blocks.

    Returns
    -------
    History
        The history; of damaged records, it has the number of lines that cannot be read.
    """
    totals = _Totals(blocks)
    runs = []
    for number in recorded_runs(stored):
        reader = _RunReader(blocks, number, stored.attributes.get("fingerprint"))
        for line in all_lines_of(stored, number):
            reader.add(line, totals)
        if reader.lines:  # `emseg label` takes a lease too, but keeps no record
            runs.append(reader.facts())
            totals.close(reader.span, runs[-1])
    return totals.history(runs)


class _Totals:
    """Totals over all runs."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self.work = Tally(blocks, 0)
        self.speed = Speed()
        self.offset = 0.0
        """Duration of all earlier runs in seconds."""
        self._begins: list[tuple[int, float]] = []
        self._seconds = self._workers_seconds = 0.0
        self._slowest: list[tuple[float, int, SlowBlock]] = []
        self._counted = 0

    def add(self, run: int, start: float, stop: float, outcome: Outcome) -> None:
        """Count a block with its start and end in seconds since the start of its run."""
        self.work.count(outcome)
        if outcome.status == "done":
            self.speed.add(self.offset + start, self.offset + stop, outcome.voxels)
        self._counted += 1
        spent = outcome.seconds.total - outcome.seconds.wait
        if len(self._slowest) < MAX_SLOW_BLOCKS or spent > self._slowest[0][0]:
            box = str(self._blocks.block(outcome.block).write)
            entry = (spent, -self._counted, SlowBlock(run, box, outcome))
            (heapq.heappushpop if len(self._slowest) == MAX_SLOW_BLOCKS else heapq.heappush)(self._slowest, entry)

    def close(self, span: float, run: RunFacts) -> None:
        """Add a run as a whole, whose last block ended `span` seconds after its start."""
        if run.current:
            self._begins.append((run.number, self.offset))
            self.offset += span
            self._seconds += run.work.seconds
            self._workers_seconds += run.work.seconds * run.work.workers

    def history(self, runs: list[RunFacts]) -> History:
        """Return the history of the runs."""
        work = self.work.report(self._seconds)
        idle = max(0.0, 1 - work.phases.predict / self._workers_seconds) if self._workers_seconds else None
        slowest = tuple(entry[-1] for entry in sorted(self._slowest, reverse=True))
        return History(tuple(runs), work, idle, self.speed, tuple(self._begins), slowest)


class _RunReader:
    """Facts from the lines of one run's record that were read so far."""

    def __init__(self, blocks: Blocks, number: int, fingerprint: Any) -> None:
        self.span = 0.0
        """Seconds from the start of the run to its last block."""
        self.lines = 0
        self._blocks, self._number, self._fingerprint = blocks, number, fingerprint
        self._work = Tally(blocks, 0)
        self._start: dict[str, Any] = {}
        self._current = True
        self._began: datetime | None = None
        self._last: datetime | None = None
        self._end: str | None = None
        self._seconds: float | None = None
        self._lost = 0
        self._notices: list[str] = []

    def add(self, line: dict[str, Any] | None, totals: _Totals) -> None:
        """Add a line; None is one that cannot be read."""
        self.lines += 1
        try:
            self._take(line or {}, totals)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            self._lost += 1

    def _take(self, line: dict[str, Any], totals: _Totals) -> None:
        at = time_of(line)
        if at is None:
            raise ValueError("invalid time")
        self._began = self._began or at
        self._last = max(self._last or at, at)
        match line["event"]:
            case "started":
                self._start = line
                self._current = line.get("fingerprint") == self._fingerprint
            case "block" if self._current:
                self._count(line, max(0.0, (at - self._began).total_seconds()), totals)
            case "retried" if self._current:
                for tally in (self._work, totals.work):
                    tally.retry(int(line["block"]), _text(line["cause"]))
            case "noticed" if len(self._notices) < MAX_NOTICES:
                self._notices.append(_text(line["message"]))
            case "ended":
                report = dict(line["report"])
                self._end, self._seconds = _how_it_ended(report), _duration(report["seconds"])

    def _count(self, line: dict[str, Any], seconds: float, totals: _Totals) -> None:
        """Count a block that ended `seconds` after the start of the run."""
        outcome = Outcome.from_json(line)
        if outcome.block >= len(self._blocks):
            raise ValueError("not a block of this plan")
        self._work.count(outcome)
        self.span = max(self.span, seconds)
        totals.add(self._number, max(0.0, seconds - outcome.seconds.total), seconds, outcome)

    def facts(self) -> RunFacts:
        """Return the facts."""
        return RunFacts(
            number=self._number,
            current=self._current,
            start=self._start,
            began=self._began,
            last=self._last,
            end=self._end,
            work=self._work.report(self.span if self._seconds is None else self._seconds),
            lost=self._lost,
            notices=tuple(self._notices),
        )


def _duration(seconds: Any) -> float:
    """Return a recorded duration if it is valid."""
    if not 0 <= seconds < MAX_SECONDS:
        raise ValueError(f"invalid duration: {seconds}")
    return float(seconds)


def _text(words: Any) -> str:
    """Return a recorded text if it is one."""
    if not isinstance(words, str):
        raise TypeError("not a text")
    return words


def _how_it_ended(report: dict[str, Any]) -> str:
    """Describe the end of a run from the report in its record."""
    failed, left, unbuilt, number = (int(report.get(name) or 0) for name in ("failed", "left", "unbuilt", "signal"))
    missing = [f"{count} {what}" for count, what in ((failed, "failed"), (left, "left")) if count]
    if unbuilt:
        missing.append(f"{quantity(unbuilt, 'unit')} of coarser levels left")
    if number and (left or unbuilt):
        names = {int(each): each.name for each in signal.Signals}
        return f"stopped by {names.get(number, number)}: {', '.join(missing)}"
    return ", ".join(missing) or "all blocks done"
