"""`emseg status`: what of an output is written, whether somebody runs on it, and how fast. Needs no cluster, no torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np

from emseg.errors import OutputError
from emseg.printable import printable_lines
from emseg.store.lease import State, tenure
from emseg.store.ledger import Output
from emseg.store.output import is_taken, open_output
from emseg.store.place import Place, place_of
from emseg.store.records import Records
from emseg_workflows.flows.record import all_lines_of, recipe_of, recorded_runs, time_of
from emseg_workflows.flows.whole import Flaw, flaws_of
from emseg_workflows.pace import clock
from emseg_workflows.report import Failure
from emseg_workflows.site import logs_of, submitted_job
from emseg_workflows.slurm_job import SlurmJob

RECENT = timedelta(minutes=5)
"""What the speed is taken over."""
LOOKING = 0.1
"""Most of the time that may go into looking: each look lists the folders of all blocks."""
SHOWN = 20
"""Blocks that are named in text; JSON names all."""


@dataclass(frozen=True, slots=True)
class Status:
    """How far an output is."""

    output: str
    blocks: int
    """Blocks of the plan."""
    done: int
    """Blocks that are written, by any run."""
    failed: tuple[Failure, ...]
    """Blocks that are not written, and failed when they were last tried."""
    run: int
    """Number of the newest lease; 0 if there never was one."""
    state: State
    """Whether its run goes on: held; else it was given back, or its process has died."""
    holder: str
    """The process that holds the lease or held it last; empty if that is not known."""
    seen: float
    """Seconds since its last heartbeat."""
    runs: int
    """Runs that have left a record."""
    last_activity: str | None
    """Time of the newest line of any record, ISO 8601; None if there is none."""
    volume: str | None
    """Where the newest run found the volume; None if no record says."""
    model: str | None
    """Where the newest run found the model; None if no record says."""
    megavoxels_per_second: float | None
    """Speed over the last minutes of the run that goes on; None if there is none, or nothing to tell it by."""
    seconds_left: float | None
    """Until all blocks are written at that speed; None without a speed."""
    outside: int = 0
    """Blocks that a mask leaves out."""
    units: int = 0
    """Write units of all coarser levels."""
    built: int = 0
    """Of these, how many are written."""
    flaws: tuple[Flaw, ...] = ()
    """What is missing or damaged of all else that is stored, as far as that is known without reading voxels."""
    job: str = ""
    """Number and state of the SLURM job that was submitted for it; empty if there is none."""
    unreadable: int = 0
    """Lines of the records that cannot be read."""

    @property
    def left(self) -> int:
        """Blocks that are not written and have not failed."""
        return self.blocks - self.outside - self.done - len(self.failed)

    @property
    def running(self) -> bool:
        """Whether a run goes on."""
        return self.state == "held"

    @property
    def exit_code(self) -> int:
        """0 if every block is written, and each coarser level, and nothing else is missing or damaged, else 3."""
        return 0 if (self.done + self.outside, self.built, self.flaws) == (self.blocks, self.units, ()) else 3

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "left": self.left, "running": self.running}

    def __str__(self) -> str:
        who = f"run {self.run}, {self.holder or 'process not known'}, seen {self.seen:.0f} s ago"
        running = {"held": who, "dead": f"no: {who}, has died", "released": "no"}[self.state]
        lines = [
            f"output     {self.output}",
            f"blocks     {self.done} of {self.blocks} done, {len(self.failed)} failed, {self.left} left"
            + (f", {self.outside} outside" if self.outside else ""),
            *(f"levels     {self.built} of {self.units} units of coarser levels done" for _ in range(bool(self.units))),
            *(f"damaged    {flaw}" for flaw in self.flaws[:SHOWN]),
            f"running    {running}",
            *(f"slurm      {self.job}" for _ in range(bool(self.job))),
            f"runs       {self.runs}, last activity {self.last_activity or 'not recorded'}"
            + (f"; {self.unreadable} lines of their records cannot be read" if self.unreadable else ""),
            f"volume     {self.volume or 'not recorded'}",
            f"model      {self.model or 'not recorded'}",
        ]
        if self.megavoxels_per_second is not None:
            left = "" if self.seconds_left is None else f", {clock(self.seconds_left)} left"
            lines.append(f"speed      {self.megavoxels_per_second:.3g} Mvoxel/s{left}")
        return printable_lines([*lines, *named("failed", self.failed)])


def status(output: str | Place) -> Status:
    """How far an output is; may be asked while a run goes on, and of an output that may only be read.

    Raises
    ------
    OutputError
        If there is no output, or it is damaged.
    """
    place = place_of(output).absolute()
    job = _job_of(place)
    if job and not is_taken(place):
        raise OutputError(f"{output} has not been begun yet by its SLURM {job}: ask again later, or look into {logs_of(place)}")
    stored = open_output(output)
    plan, records = recipe_of(stored).plan, _ReadableRecords(stored.files)
    lease = tenure(records)
    history = _History(stored, lease.run)
    done = stored.done_units().ravel()
    outside = int(stored.outside.sum())
    coarser = [level.done() for level in stored.levels[1:]]
    failures = sorted((block, why) for block, why in history.failed.items() if block < len(plan) and not done[block])
    speed = history.speed if lease.state == "held" else None
    voxels_left = plan.region.voxels * (1 - np.count_nonzero(done) / len(plan))
    return Status(
        output=str(stored.path),
        blocks=len(plan),
        done=int(np.count_nonzero(done)) - outside,
        outside=outside,
        failed=tuple(Failure(block, str(plan.block(block).write), why) for block, why in failures),
        run=lease.run,
        state=lease.state,
        holder=str(lease.holder or ""),
        seen=max(0.0, lease.age),
        runs=len({Path(name).parent for name in records.names("run-") if name.endswith(".jsonl")}),
        last_activity=history.last.isoformat() if history.last else None,
        volume=history.volume,
        model=history.model,
        megavoxels_per_second=speed / 1e6 if speed is not None else None,
        seconds_left=voxels_left / speed if speed else None,
        units=sum(level.size for level in coarser),
        built=sum(int(np.count_nonzero(level)) for level in coarser),
        flaws=flaws_of(stored),
        job=job,
        unreadable=history.unreadable,
    )


def _job_of(output: Place) -> str:
    number = submitted_job(output)
    return f"job {number}: {SlurmJob(number).state() or 'ended, or not known here'}" if number else ""


def watch(output: str | Place, every: float) -> Iterator[Status]:
    """How far an output is, again and again until no run goes on there; a look takes at most a part of the time.

    Parameters
    ----------
    every
        Seconds between two looks; more where a look takes long, see `LOOKING`.

    Raises
    ------
    OutputError
        As `status`.
    """
    while True:
        began = monotonic()
        found = status(output)
        yield found
        if not found.running:
            return
        sleep(max(every, (monotonic() - began) / LOOKING))


def named(what: str, failures: tuple[Failure, ...]) -> Iterator[str]:
    """A line for each of the first `SHOWN` failures, and one that counts the others."""
    for failure in failures[:SHOWN]:
        yield f"{what:<11}block {failure.block} at {failure.box}: {failure.cause}"
    if len(failures) > SHOWN:
        yield f"{what:<11}and {len(failures) - SHOWN} more: see --json"


class _History:
    """What the records of all runs tell together; the memory it takes grows with the failures, not with the blocks."""

    def __init__(self, stored: Output, newest: int) -> None:
        self.failed: dict[int, str] = {}
        """Cause for each block whose newest outcome is failed."""
        self.last: datetime | None = None
        self.volume: str | None = None
        self.model: str | None = None
        self._recent: deque[tuple[datetime, int]] = deque()
        """Time and voxels of each block that the newest run has written of late; its start counts as a block of none."""
        self.unreadable = 0
        """Lines that are damaged."""
        for run in (runs := recorded_runs(stored)):
            self._recent.clear()
            ours = True
            for line in all_lines_of(stored, run):
                at = None if line is None else time_of(line)
                if line is None or at is None:
                    self.unreadable += 1
                    continue
                self.last = max(self.last or at, at)
                if line.get("event") == "started":
                    # An output that was begun anew keeps the records of its former self: its blocks were others.
                    ours = line.get("fingerprint") == stored.attributes.get("fingerprint")
                if ours:
                    self._add(line, at)
        if newest not in runs:  # it has written nothing
            self._recent.clear()

    @property
    def speed(self) -> float | None:
        """Voxels in a second, lately."""
        if len(self._recent) < 2:
            return None
        seconds = (self._recent[-1][0] - self._recent[0][0]).total_seconds()
        return sum(voxels for _, voxels in list(self._recent)[1:]) / seconds if seconds > 0 else None

    def _add(self, line: dict[str, Any], at: datetime) -> None:
        match line:
            case {"event": "started", "volume": str(volume), "model": str(model)}:
                self.volume, self.model = volume, model
                self._pace(at, 0)
            case {"event": "block", "block": int(block), "status": "done", "voxels": int(voxels)}:
                self.failed.pop(block, None)
                self._pace(at, voxels)
            case {"event": "block", "block": int(block), "status": "failed"}:
                cause = line.get("cause")
                self.failed[block] = cause if cause and isinstance(cause, str) else "unknown"

    def _pace(self, at: datetime, voxels: int) -> None:
        self._recent.append((at, voxels))
        while self._recent[0][0] < at - RECENT:
            self._recent.popleft()


class _ReadableRecords(Records):
    """Records of an output that may be read-only."""

    def age(self, name: str) -> float | None:
        """As for any records, but by this host's clock where the clock of the file system cannot be asked."""
        try:
            return super().age(name)
        except OutputError:
            then = self.put_at(name)
            return None if then is None else max(0.0, time.time() - then)
