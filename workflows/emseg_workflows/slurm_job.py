"""The SLURM job that this process runs in: its number, how long it lasts, and how it is queued again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from time import time
from typing import NoReturn, Self

ANSWER = 20.0
"""Seconds that SLURM has to answer a question."""


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A job of SLURM."""

    number: str

    @classmethod
    def here(cls) -> Self | None:
        """The job that this process runs in, if there is one."""
        number = os.environ.get("SLURM_JOB_ID", "")
        return cls(number) if number.isdecimal() else None

    def state(self) -> str:
        """``RUNNING``, ``PENDING (Resources)``, ...; empty if SLURM does not know the job any more, or does not answer."""
        return re.sub(r" \(None\)$", "", self._ask("%T (%r)"))

    def seconds_left(self) -> float | None:
        """Seconds until SLURM ends the job; None if it has no end, or nobody says."""
        end = os.environ.get("SLURM_JOB_END_TIME", "")  # from SLURM 23.02 on
        if self == SlurmJob.here() and end.isdecimal():
            return int(end) - time()
        return seconds_of(self._ask("%L"))

    def requeue(self) -> NoReturn:
        """Queue the job again, as the last act of this process: SLURM signals it in the middle of that."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            signal.signal(number, signal.SIG_IGN)
        os.execvp("scontrol", ["scontrol", "requeue", self.number])

    def _ask(self, what: str) -> str:
        if not shutil.which("squeue"):
            return ""
        try:
            done = subprocess.run(
                ["squeue", "--noheader", f"--jobs={self.number}", f"--format={what}"],
                capture_output=True,
                text=True,
                timeout=ANSWER,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip()


def seconds_of(left: str) -> float | None:
    """Seconds of a time as SLURM prints it, ``days-hours:minutes:seconds``; None for ``UNLIMITED`` and the like.

    Examples
    --------
    >>> seconds_of("1-02:03:04"), seconds_of("2:05"), seconds_of("UNLIMITED")
    (93784.0, 125.0, None)
    """
    if not re.fullmatch(r"(\d+-)?(\d+:)?\d+:\d+|\d+-\d+(:\d+)?", left):
        return None
    days, _, clock = left.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    while len(parts) < 3:
        parts = [*parts, 0] if days else [0, *parts]
    hours, minutes, seconds = parts
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)
