"""The SLURM job that this process runs in: its number, how long it lasts, and how it is queued again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import dataclass
from time import time
from typing import NoReturn, Self

from emseg_workflows.site import seconds_of

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

    @property
    def restarts(self) -> int:
        """How often this process's job was queued again."""
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")  # not set at first
        return int(restarts) if restarts.isdecimal() else 0

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
        return _squeue(f"--jobs={self.number}", f"--format={what}") or ""


def states_of_jobs() -> dict[str, str] | None:
    """``RUNNING``, ``PENDING``, ... for each job of this user, by its number; None if SLURM does not answer."""
    said = _squeue("--me", "--format=%A %T")
    return None if said is None else dict(line.split(maxsplit=1) for line in said.splitlines() if " " in line)


def _squeue(*options: str) -> str | None:
    """What ``squeue`` says; None if it does not answer, or refuses."""
    try:
        done = subprocess.run(["squeue", "--noheader", *options], capture_output=True, text=True, timeout=ANSWER)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()
