"""Progress of a run on the terminal: two live lines where lines can be redrawn, plain lines elsewhere."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from time import perf_counter
from typing import Self, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from emseg.access import link_for_logs, token_file
from emseg.runs.events import BlockEnded, BlockRetried, Event, Noticed, RunEnded, RunStarted, StopRequested, WorkerLeft
from emseg.runs.pace import Pace, format_duration, format_time_left
from emseg.runs.tally import MAX_IDLE_SHARE, Report, quantity
from emseg_core.grid.plan import Plan
from emseg_core.printable import PrintableStream, printable, printable_lines
from emseg_core.store.files.place import Place

MIN_SHOWN_SHARE = 0.005
"""Fraction of time below which a phase is not shown while a run is in progress."""
LIVE_SECONDS = 0.25
"""Interval between updates where lines can be redrawn."""
PLAIN_SECONDS = 10.0
"""Interval between reports where they cannot."""
FEW_BLOCKS_PER_WORKER = 10
"""Number of blocks per worker below which the first and the last blocks leave workers idle for a notable time."""
STAGE_NAMES = {"cut": "fragments", "sew": "merging across blocks", "paint": "writing labels"}
"""Names of the stages of instance labelling, as they are shown."""
PHASE_NAMES = {
    "read": "reading",
    "wait": "waiting for the network",
    "predict": "network",
    "write": "writing",
    "stitch": "stitching",
}
"""Names of the phases of a block, as they are shown."""
MAX_SHOWN = 10
"""Maximum number of failed, and of retried, blocks that are named as they come and at the end."""


class RunConsole:
    """An observer that writes the progress of a run to stderr; stdout is for results."""

    def __init__(self) -> None:
        self._console = Console(
            file=getattr(sys.stderr, "stream", sys.stderr), highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._pace: Pace | None = None
        self._drawn = 0.0
        self._retried = 0
        self._brief = False
        """Whether a later stage is running, of which less is shown."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if self._pace is not None:
            self._pace.record(event, perf_counter())
        match event:
            case Noticed(message):
                self._say(f"note: {message}")
            case RunStarted():
                self._start(event)
            case StopRequested():
                self._say(f"stopping: {_finishing(event)}")
            case BlockEnded(outcome) if outcome.status == "failed" and self._pace and self._pace.failed <= MAX_SHOWN:
                self._say(f"failed     block {outcome.block}: {outcome.cause}")
            case BlockRetried(block, cause, delay):
                self._retried += 1
                if self._retried <= MAX_SHOWN:
                    self._say(f"retry      block {block} in {delay:.0f} s: {cause}")
            case WorkerLeft(worker, cause):
                self._say(f"worker     {worker} left: {cause}")
            case RunEnded(report):
                self._live.stop()
                self._finish(report)
                self._pace = None
        self._redraw()

    def _say(self, line: str) -> None:
        self._console.print(Text(printable(line)))

    def _start(self, event: RunStarted) -> None:
        blocks, self._brief = event.blocks, bool(event.stage)
        what = f"{quantity(len(blocks), 'block')} of {' x '.join(map(str, blocks.unit))} voxels"
        if event.stage in STAGE_NAMES:
            self._say(f"labelling  {STAGE_NAMES[event.stage]}: {what}")
        elif event.stage:
            self._say(f"{event.stage:<11}{what}")
        else:
            where = "this process"
            if event.workers:
                where = "1 worker process" if event.workers == 1 else f"{event.workers} worker processes"
            tiles = f" in tiles of {' x '.join(map(str, blocks.tile))}" if isinstance(blocks, Plan) else ""
            self._say(f"output     {event.output}")
            self._say(f"plan       {what}{tiles}, on {where}")
        if event.outside:
            self._say(f"outside    {quantity(event.outside, 'block')} outside the mask")
        if event.already_done > event.outside:
            written = event.already_done - event.outside
            self._say(f"resuming   {quantity(written, 'block')} {'is' if written == 1 else 'are'} already written")
        if event.dashboard and not event.stage:
            self._say(f"dashboard  {self._shown(event.dashboard, event.output)}")
        if event.map:
            self._say(f"map        {self._shown(event.map, event.output)}")
        self._drawn = perf_counter()
        self._pace = Pace(blocks, event.already_done, event.workers, self._drawn)
        if self._console.is_terminal:
            self._live.start()  # from now on it draws stderr above its own lines, control sequences included
            sys.stderr = cast("TextIO", PrintableStream(sys.stderr))

    def _shown(self, link: str, output: Place) -> str:
        """Return a link in a form that may be shown: output that is not a terminal may be a log that others can read."""
        return link if self._console.file.isatty() else link_for_logs(link, token_file(output))

    def _redraw(self) -> None:
        """Show the progress if the last update is long enough ago."""
        now = perf_counter()
        if self._pace is None or now < self._drawn + (LIVE_SECONDS if self._console.is_terminal else PLAIN_SECONDS):
            return
        self._drawn = now
        lines = [line for line in progress_lines(self._pace, now, brief=self._brief) if line]
        if self._console.is_terminal:
            self._live.update(Text(printable_lines(lines)))
        else:
            for line in lines:
                self._say(line)

    def _finish(self, report: Report) -> None:
        if report.signal and report.left:
            ended = f"stopped    after {report.done} of {quantity(report.blocks - report.outside, 'block')}"
        else:
            ended = f"done       {quantity(report.done, 'block')}"
        self._say(
            f"{ended} in {format_duration(report.seconds)}, {report.megavoxels_per_second:.2f} Mvoxel/s; "
            f"{report.skipped} skipped, {report.failed} failed"
            + (f", {'1 retry' if report.retried == 1 else f'{report.retried} retries'}" if report.retried else "")
            + (f", {report.left} left" if report.left else "")
        )
        if not self._brief:
            self._show_time(report)
        for retry in report.retries[:MAX_SHOWN]:
            self._say(f"retried    block {retry.block} at {retry.box}, by {retry.worker}: {retry.cause}")
        if len(report.retries) > MAX_SHOWN:
            self._say(f"retried    and {len(report.retries) - MAX_SHOWN} more: see the run record in the output")
        for failure in report.failures[:MAX_SHOWN]:
            self._say(f"failed     block {failure.block} at {failure.box}: {failure.cause}")
        if report.failed > MAX_SHOWN:
            self._say(f"failed     and {report.failed - MAX_SHOWN} more: see the run record in the output")

    def _show_time(self, report: Report) -> None:
        spent = ", ".join(f"{PHASE_NAMES[phase]} {seconds:.1f} s" for phase, seconds in _longest_first(asdict(report.phases)))
        self._say(
            f"time       {spent}, summed over all blocks; peak memory of a worker {report.worker_peak_bytes / 2**20:.0f} MiB"
        )
        if report.idle is None:
            return
        why = ""
        ended = report.done + report.failed
        if report.idle >= MAX_IDLE_SHARE and report.workers > 1 and ended < FEW_BLOCKS_PER_WORKER * report.workers:
            why = f" (too few blocks to keep {report.workers} busy)"
        self._say(f"limited by: {report.bottleneck}. Workers idle {report.idle * 100:.0f} % of the time{why}")


def _finishing(event: StopRequested) -> str:
    """Describe the work of a run before it stops."""
    if not event.blocks:
        return "no block is in progress"
    blocks = "block" if event.blocks == 1 else f"{event.blocks} blocks"
    again = "; Ctrl-C again to stop now" if event.signal == signal.SIGINT else ""
    return f"finishing the {blocks} in progress (up to {event.seconds:.0f} s){again}"


def _longest_first(phases: dict[str, float]) -> list[tuple[str, float]]:
    """Sort phases by the time spent in them."""
    return sorted(phases.items(), key=lambda phase: -phase[1])


def progress_lines(pace: Pace, now: float, *, brief: bool = False) -> tuple[str, str]:
    """Format the progress of a run, and where its time goes.

    Parameters
    ----------
    pace
        The speed of the run.
    now
        The time, by the clock of `pace`.
    brief
        Whether a later stage is running, which uses no network.

    Returns
    -------
    progress : str
        Blocks, speed and remaining time.
    time : str
        Fractions of time; empty before the first block has ended.
    """
    failed = f", {pace.failed} failed" if pace.failed else ""
    if not pace.began:
        first = "" if brief else " (the first takes longest)"
        return f"blocks     waiting for the first of {quantity(pace.left, 'block')}{first}", ""
    seconds, plus_minus = pace.seconds_left(now) or (None, None)
    to_go = format_time_left(seconds, plus_minus)
    speed = f"{pace.speed(now) / 1e6:.3g} Mvoxel/s"
    blocks = f"blocks     {pace.done} of {pace.blocks} done{failed}, {pace.left} left; {speed}; {to_go} to go"
    idle, shares, slowest = pace.idle(now), pace.shares(), pace.slowest()
    if idle is None or shares is None:
        return blocks, ""
    names = PHASE_NAMES | {"predict": "computing", "wait": "waiting"} if brief else PHASE_NAMES
    spent = ", ".join(
        f"{names[phase]} {share * 100:.0f} %" for phase, share in _longest_first(shares) if share >= MIN_SHOWN_SHARE
    )
    return blocks, f"time       {spent}; workers idle {idle * 100:.0f} %" + (f"; slowest {slowest}" if slowest else "")
