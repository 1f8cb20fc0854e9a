"""`emseg status`: show the progress of an output, and whether a run is in progress and how fast. Needs no cluster, no torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np

from emseg.flows.records.completeness import find_flaws
from emseg.flows.records.progress import Status
from emseg.flows.records.run_log import all_lines_of, recipe_of, recorded_runs, time_of
from emseg.runs.tally import Failure
from emseg.slurm.job import SlurmJob
from emseg.slurm.site import logs_of, submitted_job
from emseg_core.errors import OutputError
from emseg_core.store.files.lease import lease_state
from emseg_core.store.files.place import Place, parse_place
from emseg_core.store.files.records import Records
from emseg_core.store.outputs.lifecycle import is_taken, open_output
from emseg_core.store.outputs.output import Output

SPEED_WINDOW = timedelta(minutes=5)
"""Time over which the speed is averaged."""
MAX_POLLING_FRACTION = 0.1
"""Largest fraction of the time spent on reading the status, as each reading lists the folders of all blocks."""


def status(output: str | Place) -> Status:
    """Read the progress of an output, also while a run is in progress, and also if the output is read-only.

    Parameters
    ----------
    output
        The output of a run.

    Returns
    -------
    Status
        The progress.

    Raises
    ------
    OutputError
        If there is no output, or it is damaged.
    """
    place = parse_place(output).absolute()
    job = _describe_job(place)
    if job and not is_taken(place):
        raise OutputError(
            f"{output} does not exist yet, as its SLURM {job} has not started it: try again later, or see {logs_of(place)}"
        )
    stored = open_output(output)
    plan, records = recipe_of(stored).plan, _ReadableRecords(stored.files)
    lease = lease_state(records)
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
        flaws=find_flaws(stored),
        job=job,
        unreadable=history.unreadable,
    )


def _describe_job(output: Place) -> str:
    number = submitted_job(output)
    return f"job {number}: {SlurmJob(number).state() or 'ended, or unknown here'}" if number else ""


def watch(output: str | Place, every: float) -> Iterator[Status]:
    """Read the progress of an output repeatedly until no run is in progress.

    Parameters
    ----------
    output
        The output of a run.
    every
        Seconds between two readings; longer where a reading takes long, see `MAX_POLLING_FRACTION`.

    Yields
    ------
    Status
        The progress; the last one is that of an output on which no run is in progress.

    Raises
    ------
    OutputError
        As `status`.
    """
    while True:
        started = monotonic()
        found = status(output)
        yield found
        if not found.running:
            return
        sleep(max(every, (monotonic() - started) / MAX_POLLING_FRACTION))


class _History:
    """Summary of the records of all runs. Its memory grows with the number of failures, not of blocks."""

    def __init__(self, stored: Output, newest: int) -> None:
        self.failed: dict[int, str] = {}
        """Cause of failure of each block whose latest attempt failed."""
        self.last: datetime | None = None
        self.volume: str | None = None
        self.model: str | None = None
        self._recent: deque[tuple[datetime, int]] = deque()
        """Time and voxels of each block that the newest run has written recently; its start counts as a block of 0 voxels."""
        self.unreadable = 0
        """Number of damaged lines."""
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
                    # An output that was started over keeps its earlier records, which are about other blocks.
                    ours = line.get("fingerprint") == stored.attributes.get("fingerprint")
                if ours:
                    self._add(line, at)
        if newest not in runs:  # the newest run has not written anything yet
            self._recent.clear()

    @property
    def speed(self) -> float | None:
        """Voxels per second over the last minutes; None if unknown."""
        if len(self._recent) < 2:
            return None
        seconds = (self._recent[-1][0] - self._recent[0][0]).total_seconds()
        return sum(voxels for _, voxels in list(self._recent)[1:]) / seconds if seconds > 0 else None

    def _add(self, line: dict[str, Any], at: datetime) -> None:
        match line:
            case {"event": "started", "volume": str(volume), "model": str(model)}:
                self.volume, self.model = volume, model
                self._add_recent(at, 0)
            case {"event": "block", "block": int(block), "status": "done", "voxels": int(voxels)}:
                self.failed.pop(block, None)
                self._add_recent(at, voxels)
            case {"event": "block", "block": int(block), "status": "failed"}:
                cause = line.get("cause")
                self.failed[block] = cause if cause and isinstance(cause, str) else "unknown"

    def _add_recent(self, at: datetime, voxels: int) -> None:
        self._recent.append((at, voxels))
        while self._recent[0][0] < at - SPEED_WINDOW:
            self._recent.popleft()


class _ReadableRecords(Records):
    """Records of an output that may be read-only."""

    def age(self, name: str) -> float | None:
        """Return the age in seconds, by this host's clock if the clock of the file system cannot be read."""
        try:
            return super().age(name)
        except OutputError:
            then = self.modified(name)
            return None if then is None else max(0.0, time.time() - then)
