"""A run on the terminal: a live line where there is one to draw on, plain lines elsewhere."""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from emseg.grid.plan import Plan
from emseg.outcome import Outcome
from emseg_workflows.events import BlockEnded, BlockRetried, Event, Noticed, RunEnded, RunStarted, WorkerLeft
from emseg_workflows.report import Report

PLAIN_EVERY = 10.0
"""Seconds between two lines where nothing can be redrawn."""
RECENT = 60.0
"""Seconds that the speed is taken over."""
SHOWN_FAILURES = 10
"""Failed blocks that are named as they come, and again at the end."""


class RunConsole:
    """An observer of a run that writes to stderr; stdout stays free for results."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._progress: Progress | None = None
        self._last_line = 0.0
        self._retried = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Noticed(message):
                self._console.print(f"note: {message}", markup=False)
            case RunStarted():
                self._start(event)
            case BlockEnded(outcome):
                self._advance(outcome)
            case BlockRetried(block, cause, delay):
                self._retried += 1
                if self._retried <= SHOWN_FAILURES:
                    self._console.print(f"retry      block {block} in {delay:.0f} s: {cause}", markup=False)
            case WorkerLeft(worker, cause):
                self._console.print(f"worker     {worker} is gone: {cause}", markup=False)
            case RunEnded(report):
                self._live.stop()
                self._finish(report)

    def _start(self, event: RunStarted) -> None:
        plan = event.plan
        where = f"{event.workers} worker processes" if event.workers else "this process"
        self._console.print(f"output     {event.output}", markup=False)
        self._console.print(
            f"plan       {len(plan)} blocks of {' x '.join(map(str, plan.unit))} voxels in tiles of "
            f"{' x '.join(map(str, plan.tile))}, on {where}"
        )
        if event.already_done:
            self._console.print(f"resuming   {event.already_done} blocks are already written")
        if event.dashboard:
            self._console.print(f"dashboard  {event.dashboard}", markup=False)
        self._progress = Progress(plan, event.already_done)
        self._last_line = perf_counter()
        if self._console.is_terminal:
            self._live.start()

    def _advance(self, outcome: Outcome) -> None:
        if self._progress is None:
            return
        self._progress.count(outcome)
        if outcome.status == "failed" and self._progress.failed <= SHOWN_FAILURES:
            self._console.print(f"failed     block {outcome.block}: {outcome.cause}", markup=False)
        if self._console.is_terminal:
            self._live.update(Text(str(self._progress)))
        elif perf_counter() - self._last_line >= PLAIN_EVERY:
            self._console.print(str(self._progress), markup=False)
            self._last_line = perf_counter()

    def _finish(self, report: Report) -> None:
        phases = report.phases
        self._console.print(
            f"done       {report.done} blocks in {_clock(report.seconds)}, {report.megavoxels_per_second:.2f} Mvoxel/s; "
            f"{report.skipped} skipped, {report.failed} failed"
            + (f", {report.retried} tries made again" if report.retried else "")
            + (f", {report.left} left" if report.left else "")
        )
        self._console.print(
            f"time       read {phases.read:.1f} s, wait {phases.wait:.1f} s, predict {phases.predict:.1f} s, "
            f"write {phases.write:.1f} s over all blocks; worker peak {report.worker_peak_bytes / 2**20:.0f} MiB"
        )
        for failure in report.failures[:SHOWN_FAILURES]:
            self._console.print(f"failed     block {failure.block} at {failure.box}: {failure.cause}", markup=False)
        if report.failed > SHOWN_FAILURES:
            self._console.print(f"failed     and {report.failed - SHOWN_FAILURES} more, see the run record in the output")


class Progress:
    """The progress line: blocks, speed, time left, failures."""

    def __init__(self, plan: Plan, already_done: int) -> None:
        self._blocks = len(plan)
        self._ended = already_done
        self.failed = 0
        self._left = plan.region.voxels * (1 - already_done / self._blocks)
        self._recent: deque[tuple[float, int]] = deque([(perf_counter(), 0)])

    def count(self, outcome: Outcome) -> None:
        """Add one block."""
        now = perf_counter()
        self._ended += 1
        self.failed += outcome.status == "failed"
        self._left -= outcome.voxels
        self._recent.append((now, outcome.voxels))
        while len(self._recent) > 2 and self._recent[0][0] < now - RECENT:
            self._recent.popleft()

    def __str__(self) -> str:
        seconds = self._recent[-1][0] - self._recent[0][0]
        voxels = sum(voxels for _, voxels in self._recent) - self._recent[0][1]
        speed = voxels / seconds if seconds else 0.0
        left = _clock(max(self._left, 0) / speed) if speed else "?"
        failed = f", {self.failed} failed" if self.failed else ""
        return f"blocks     {self._ended}/{self._blocks}{failed}, {speed / 1e6:.2f} Mvoxel/s, {left} left"


def _clock(seconds: float) -> str:
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
