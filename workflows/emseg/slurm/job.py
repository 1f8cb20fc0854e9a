"""The SLURM job in which this process runs: its number, its remaining time, and how to requeue it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import dataclass
from time import time
from typing import NoReturn, Self

from emseg.slurm.options import EXCLUSIVE
from emseg.slurm.site import parse_time

REPLY_TIMEOUT_SECONDS = 20.0
"""Time that SLURM has to answer a query."""
CLUSTER_VARIABLES = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
"""Variables that say which cluster is meant, and not what a job was given."""


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A SLURM job."""

    number: str

    @classmethod
    def here(cls) -> Self | None:
        """Return the job in which this process runs.

        Returns
        -------
        SlurmJob or None
            None outside any job.
        """
        number = os.environ.get("SLURM_JOB_ID", "")
        return cls(number) if number.isdecimal() else None

    @property
    def restarts(self) -> int:
        """How often the job of this process was requeued."""
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")  # not set before the first requeue
        return int(restarts) if restarts.isdecimal() else 0

    def state(self) -> str:
        """Query the state of the job.

        Returns
        -------
        str
            ``RUNNING``, ``PENDING (Resources)``, ...; empty if SLURM no longer knows the job, or does not answer.
        """
        return re.sub(r" \(None\)$", "", self._ask("%T (%r)"))

    def seconds_left(self) -> float | None:
        """Return the time left until SLURM ends the job.

        Returns
        -------
        float or None
            Seconds; None if the job has no time limit, or the limit is not known.
        """
        end = os.environ.get("SLURM_JOB_END_TIME", "")  # from SLURM 23.02 on
        if self == SlurmJob.here() and end.isdecimal():
            return int(end) - time()
        return parse_time(self._ask("%L"))

    def requeue(self) -> NoReturn:
        """Requeue the job and end this process, which ignores the signals that SLURM sends it meanwhile."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            signal.signal(number, signal.SIG_IGN)
        os.execvp("scontrol", ["scontrol", "requeue", self.number])

    def _ask(self, what: str) -> str:
        return _squeue(f"--jobs={self.number}", f"--format={what}") or ""


def environment_for_jobs() -> dict[str, str]:
    """Return the environment in which to submit a job, so that it inherits nothing of the job that this process runs in.

    Returns
    -------
    dict of str
        This process's environment; within a job, without the variables of that job.
    """
    within = "SLURM_JOB_ID" in os.environ
    return {
        name: value
        for name, value in os.environ.items()
        if not within or not name.startswith("SLURM") or name in CLUSTER_VARIABLES
    }


def environment_for_steps() -> dict[str, str]:
    """Return the environment in which to start a step of this job that says itself which GPUs it gets.

    Returns
    -------
    dict of str
        This process's environment without the GPUs of the whole job, which `srun` would request for each step.
    """
    of_job = {f"SLURM_{name.replace('-', '_').upper()}" for name in EXCLUSIVE["gpus"]}
    return {name: value for name, value in os.environ.items() if name not in of_job}


def job_states() -> dict[str, str] | None:
    """Query the states of all jobs of this user.

    Returns
    -------
    dict or None
        ``RUNNING``, ``PENDING``, ... by the number of the job; None if SLURM does not answer.
    """
    said = _squeue("--me", "--format=%A %T")
    return None if said is None else dict(line.split(maxsplit=1) for line in said.splitlines() if " " in line)


def _squeue(*options: str) -> str | None:
    """Return the output of ``squeue``; None if it fails or does not answer."""
    try:
        done = subprocess.run(["squeue", "--noheader", *options], capture_output=True, text=True, timeout=REPLY_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()
