"""A run on the terminal: two live lines where there is one to draw on, plain lines elsewhere."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Self, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from emseg.grid.plan import Plan
from emseg.outcome import Outcome
from emseg.printable import PrintableStream, printable, printable_lines
from emseg.store.place import Place
from emseg_workflows.access import link_for_logs, token_file
from emseg_workflows.events import BlockEnded, BlockRetried, Event, Noticed, RunEnded, RunStarted, WorkerLeft
from emseg_workflows.pace import Pace, clock, time_left
from emseg_workflows.report import Report

LIVE_EVERY = 0.25
"""Seconds between two drawings where lines can be redrawn."""
PLAIN_EVERY = 10.0
"""Seconds between two reports where nothing can be redrawn."""
SHOWN = 10
"""Blocks that failed, and blocks that were tried again, which are named as they come and at the end."""


class RunConsole:
    """An observer of a run that writes to stderr; stdout stays free for results."""

    def __init__(self) -> None:
        self._console = Console(
            file=getattr(sys.stderr, "stream", sys.stderr), highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._pace: Pace | None = None
        self._drawn = 0.0
        self._retried = 0
        self._brief = False
        """Whether what goes on is a later stage, of which less is told."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if self._pace is not None:
            self._pace.tell(event, perf_counter())
        match event:
            case Noticed(message):
                self._say(f"note: {message}")
            case RunStarted():
                self._start(event)
            case BlockEnded(outcome):
                self._name_failure(outcome)
            case BlockRetried(block, cause, delay):
                self._retried += 1
                if self._retried <= SHOWN:
                    self._say(f"retry      block {block} in {delay:.0f} s: {cause}")
            case WorkerLeft(worker, cause):
                self._say(f"worker     {worker} is gone: {cause}")
            case RunEnded(report):
                self._live.stop()
                self._finish(report)
                self._pace = None
        self._redraw()

    def _say(self, line: str) -> None:
        self._console.print(Text(printable(line)))

    def _start(self, event: RunStarted) -> None:
        blocks, self._brief = event.blocks, bool(event.stage)
        what = f"{len(blocks)} blocks of {' x '.join(map(str, blocks.unit))} voxels"
        if event.stage:
            self._say(f"{event.stage:<11}{what}")
        else:
            where = f"{event.workers} worker processes" if event.workers else "this process"
            tiles = f" in tiles of {' x '.join(map(str, blocks.tile))}" if isinstance(blocks, Plan) else ""
            self._say(f"output     {event.output}")
            self._say(f"plan       {what}{tiles}, on {where}")
        if event.outside:
            self._say(f"outside    {event.outside} blocks lie outside the mask")
        if event.already_done > event.outside:
            self._say(f"resuming   {event.already_done - event.outside} blocks are already written")
        if event.dashboard and not event.stage:
            self._say(f"dashboard  {self._shown(event.dashboard, event.output)}")
        if event.map:
            self._say(f"map        {self._shown(event.map, event.output)}")
        self._drawn = perf_counter()
        self._pace = Pace(blocks, event.already_done, event.workers, self._drawn)
        if self._console.is_terminal:
            self._live.start()  # until it stops, it has the error stream drawn above its own lines, control sequences and all
            sys.stderr = cast("TextIO", PrintableStream(sys.stderr))

    def _shown(self, link: str, output: Place) -> str:
        """A link; what is no terminal may be a log that others read."""
        return link if self._console.file.isatty() else link_for_logs(link, token_file(output))

    def _name_failure(self, outcome: Outcome) -> None:
        if outcome.status == "failed" and self._pace is not None and self._pace.failed <= SHOWN:
            self._say(f"failed     block {outcome.block}: {outcome.cause}")

    def _redraw(self) -> None:
        """Show how far the run is, but not too often."""
        now = perf_counter()
        if self._pace is None or now < self._drawn + (LIVE_EVERY if self._console.is_terminal else PLAIN_EVERY):
            return
        self._drawn = now
        lines = [line for line in lines_of(self._pace, now) if line]
        if self._console.is_terminal:
            self._live.update(Text(printable_lines(lines)))
        else:
            for line in lines:
                self._say(line)

    def _finish(self, report: Report) -> None:
        self._say(
            f"done       {report.done} blocks in {clock(report.seconds)}, {report.megavoxels_per_second:.2f} Mvoxel/s; "
            f"{report.skipped} skipped, {report.failed} failed"
            + (f", {report.retried} tries made again" if report.retried else "")
            + (f", {report.left} left" if report.left else "")
        )
        if not self._brief:
            self._tell_time(report)
        for retry in report.retries[:SHOWN]:
            self._say(f"retried    block {retry.block} at {retry.box}, by {retry.worker}: {retry.cause}")
        if len(report.retries) > SHOWN:
            self._say(f"retried    and {len(report.retries) - SHOWN} more, see the run record in the output")
        for failure in report.failures[:SHOWN]:
            self._say(f"failed     block {failure.block} at {failure.box}: {failure.cause}")
        if report.failed > SHOWN:
            self._say(f"failed     and {report.failed - SHOWN} more, see the run record in the output")

    def _tell_time(self, report: Report) -> None:
        phases = report.phases
        self._say(
            f"time       read {phases.read:.1f} s, wait {phases.wait:.1f} s, predict {phases.predict:.1f} s, "
            f"stitch {phases.stitch:.1f} s, write {phases.write:.1f} s over all blocks; "
            f"worker peak {report.worker_peak_bytes / 2**20:.0f} MiB"
        )
        if report.idle is not None:
            self._say(f"bottleneck {report.bottleneck}; devices idle {report.idle:.0%}")


def lines_of(pace: Pace, now: float) -> tuple[str, str]:
    """How far the run is, and where its time goes: a line each, the second empty before the first block has ended."""
    failed = f", {pace.failed} failed" if pace.failed else ""
    to_go = time_left(*(pace.seconds_left(now) or (None, None)))
    speed = f"{pace.speed(now) / 1e6:.3g} Mvoxel/s"
    blocks = f"blocks     {pace.done} of {pace.blocks} done{failed}, {pace.left} left; {speed}; {to_go} to go"
    idle, shares, slowest = pace.idle(now), pace.shares(), pace.slowest()
    if idle is None or shares is None:
        return blocks, ""
    spent = ", ".join(f"{stage} {share:.0%}" for stage, share in shares.items())
    return blocks, f"time       {spent}; devices idle {idle:.0%}" + (f"; slowest {slowest}" if slowest else "")
