"""The facts of a site: what its batch system must be told for each job. One TOML file, see ``deploy/slurm/``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from emseg.errors import InputError
from emseg.store.place import Place, beside
from emseg_workflows.strict_toml import read_toml

JOBS = "jobs"
"""File in the folder of logs with the number of each job that was submitted, a line each."""
TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
GPUS = re.compile(r"gpu(:[\w.-]+)?:(\d+)")


@dataclass(frozen=True, slots=True)
class Site:
    """What a SLURM site wants to be told; empty where its own default will do.

    Raises
    ------
    InputError
        If a value is not what SLURM understands.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    """Longest that a job may take, ``hours:minutes:seconds`` or ``days-hours``; the site's own limit if empty."""
    gres: str = ""
    """What each worker needs besides cores and memory, ``gpu:1`` or ``gpu:a100:1``."""
    cpus: int = 0
    """Cores of each worker; 0 for as many as its predictor has threads."""
    memory: str = ""
    """Memory of each worker, ``16G``; what the plan needs if empty."""
    scratch: str = ""
    """Folder on each node for what workers put aside, ``/scratch/$USER``; their own temporary folder if empty."""
    interface: str = ""
    """Network between the nodes, ``ib0``; found by itself if empty."""
    modules: tuple[str, ...] = ()
    """Modules to load in each job."""
    setup: tuple[str, ...] = ()
    """Lines of shell to run in each job before that."""
    options: tuple[str, ...] = ()
    """More options of ``sbatch`` for each job, ``--constraint=a100``."""

    def __post_init__(self) -> None:
        if self.time and seconds_of(self.time) is None:
            raise InputError(f"time is {self.time!r}, but SLURM wants hours:minutes:seconds, days-hours, or minutes")
        if self.memory and not re.fullmatch(r"\d+[KMGT]?", self.memory):
            raise InputError(f"memory is {self.memory!r}, but SLURM wants a whole number and a unit, 16G")
        if self.cpus < 0:
            raise InputError(f"cpus is {self.cpus}, but a worker needs at least one core; 0 is for one per thread")
        if any("\n" in text for text in (*self.options, self.partition, self.account, self.qos, self.gres, self.scratch)):
            raise InputError("a value of the site has a line break: give each option of its own")

    @property
    def seconds(self) -> float | None:
        """Longest that a job may take; None for the site's own limit."""
        return seconds_of(self.time)

    @property
    def each_task(self) -> tuple[str, ...]:
        """The options that give each task of a job what `gres` asks for."""
        if match := GPUS.fullmatch(self.gres):
            kind, count = match.groups()
            return (f"--gpus-per-task={kind[1:] + ':' if kind else ''}{count}",)
        return (f"--gres={self.gres}",) if self.gres else ()

    @property
    def header(self) -> tuple[str, ...]:
        """The options of each job, but for its size."""
        named = {"partition": self.partition, "account": self.account, "qos": self.qos, "time": self.time}
        return (*(f"--{name}={value}" for name, value in named.items() if value), *self.options)

    @property
    def prologue(self) -> tuple[str, ...]:
        """Lines of shell for the beginning of each job."""
        return (*self.setup, *(f"module load {module}" for module in self.modules))

    def to_toml(self) -> str:
        """The file that `read_site` reads."""
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in asdict(self).items())

    def but(self, **others: Any) -> Self:
        """This site with other values, where they are given."""
        return type(self)(**{**asdict(self), **{name: value for name, value in others.items() if value}})


def read_site(path: Path | None) -> Site:
    """The site that a TOML file describes; one without any wish if there is no file.

    Raises
    ------
    InputError
        If the file is not as it should be.
    """
    return Site() if path is None else read_toml(path, Site)


def logs_of(output: Place) -> Path:
    """The folder beside an output with the job script and the logs of its jobs."""
    return beside(output, f"{output.name}.slurm")


def submitted_job(output: Place) -> str:
    """Number of the job that was submitted last for an output; empty if none was."""
    try:
        numbers = (logs_of(output) / JOBS).read_text().split()
    except OSError:
        return ""
    return numbers[-1] if numbers and numbers[-1].isdecimal() else ""


def seconds_of(time: str) -> float | None:
    """Seconds of a time as SLURM reads and prints it; None for ``UNLIMITED`` and the like, or nothing.

    Minutes, minutes:seconds, hours:minutes:seconds, or days-hours with any of these behind.

    Examples
    --------
    >>> seconds_of("1-02:03:04"), seconds_of("2:05"), seconds_of("90"), seconds_of("UNLIMITED")
    (93784.0, 125.0, 5400.0, None)
    """
    if not TIME.fullmatch(time):
        return None
    days, _, clock = time.rpartition("-")
    given = [int(part) for part in clock.split(":")]
    whole = [*given, 0, 0][:3] if days else {1: [0, *given, 0], 2: [0, *given], 3: given}[len(given)]
    hours, minutes, seconds = whole
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)
