"""History of an output from the records of all its runs: when and where they took place, their speed and their stages."""

from __future__ import annotations

import heapq
import signal
from collections.abc import Iterator
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


@dataclass(slots=True)
class RunFacts:
    """Facts from the lines of the record of one run."""

    number: int
    tally: Tally
    """Counts the blocks that finished or failed in it."""
    current: bool = True
    """Whether its blocks belong to the output, which may have been restarted since."""
    start: dict[str, Any] = field(default_factory=dict)
    """First line of the record; empty if it is lost."""
    began: datetime | None = None
    last: datetime | None = None
    """Time of the last line."""
    end: str | None = None
    """Description of how it ended; None if that is not recorded."""
    seconds: float | None = None
    """Its duration; None if that is not recorded."""
    span: float = 0.0
    """Seconds from its start to its last block."""
    lost: int = 0
    """Number of lines that cannot be read."""
    notices: tuple[str, ...] = ()

    @property
    def work(self) -> Report:
        """Report on the blocks that finished or failed in it."""
        return self.tally.report(self.span if self.seconds is None else self.seconds)


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
    reader = _Reader(blocks, stored.attributes.get("fingerprint"))
    for number in recorded_runs(stored):
        reader.read(number, all_lines_of(stored, number))
    return reader.history()


class _Reader:
    """Reads the records of all runs."""

    def __init__(self, blocks: Blocks, fingerprint: Any) -> None:
        self._blocks, self._fingerprint = blocks, fingerprint
        self._runs: list[RunFacts] = []
        self._work = Tally(blocks, 0)
        self._speed = Speed()
        self._offset = 0.0
        """Duration of all earlier runs in seconds."""
        self._begins: list[tuple[int, float]] = []
        self._seconds = self._workers_seconds = 0.0
        self._slowest: list[tuple[float, int, SlowBlock]] = []
        self._counted = 0

    def read(self, number: int, lines: Iterator[dict[str, Any] | None]) -> None:
        """Read the record of a run. A line that cannot be read is returned as None."""
        run, any_lines = RunFacts(number, Tally(self._blocks, 0)), False
        for line in lines:
            any_lines = True
            try:
                self._take(run, line or {})
            except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
                run.lost += 1
        if not any_lines:  # `emseg label` takes a lease too, but keeps no record
            return
        self._runs.append(run)
        if run.current:
            self._begins.append((number, self._offset))
            self._offset += run.span
            self._seconds += run.work.seconds
            self._workers_seconds += run.work.seconds * run.work.workers

    def history(self) -> History:
        """Return the history of the runs."""
        work = self._work.report(self._seconds)
        idle = max(0.0, 1 - work.phases.predict / self._workers_seconds) if self._workers_seconds else None
        slowest = tuple(entry[-1] for entry in sorted(self._slowest, reverse=True))
        return History(tuple(self._runs), work, idle, self._speed, tuple(self._begins), slowest)

    def _take(self, run: RunFacts, line: dict[str, Any]) -> None:
        at = time_of(line)
        if at is None:
            raise ValueError("invalid time")
        run.began = run.began or at
        run.last = max(run.last or at, at)
        match line["event"]:
            case "started":
                run.start = line
                run.current = line.get("fingerprint") == self._fingerprint
            case "block" if run.current:
                self._count(run, line, max(0.0, (at - run.began).total_seconds()))
            case "retried" if run.current:
                for tally in (run.tally, self._work):
                    tally.retry(int(line["block"]), _text(line["cause"]))
            case "noticed" if len(run.notices) < MAX_NOTICES:
                run.notices += (_text(line["message"]),)
            case "ended":
                report = dict(line["report"])
                run.end, run.seconds = _how_it_ended(report), _duration(report["seconds"])

    def _count(self, run: RunFacts, line: dict[str, Any], stop: float) -> None:
        """Count a block that ended `stop` seconds after the start of its run."""
        outcome = Outcome.from_json(line)
        if outcome.block >= len(self._blocks):
            raise ValueError("not a block of this plan")
        run.span = max(run.span, stop)
        for tally in (run.tally, self._work):
            tally.count(outcome)
        if outcome.status == "done":
            start = max(0.0, stop - outcome.seconds.total)
            self._speed.add(self._offset + start, self._offset + stop, outcome.voxels)
        self._counted += 1
        spent = outcome.seconds.total - outcome.seconds.wait
        if len(self._slowest) < MAX_SLOW_BLOCKS or spent > self._slowest[0][0]:
            box = str(self._blocks.block(outcome.block).write)
            entry = (spent, -self._counted, SlowBlock(run.number, box, outcome))
            (heapq.heappushpop if len(self._slowest) == MAX_SLOW_BLOCKS else heapq.heappush)(self._slowest, entry)


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
