"""Settings of a SLURM site that apply to each of its jobs, in one TOML file; see ``deploy/slurm/``."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from emseg.settings.toml import read_toml, to_toml
from emseg_core.errors import InputError
from emseg_core.store.files.place import Place, sibling

JOB_NUMBERS_FILE = "jobs"
"""File in the folder of logs with the numbers of all submitted jobs, one per line."""
TIME_PATTERN = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
GPU_PATTERN = re.compile(r"gpu(:[\w.-]+)?:(\d+)")


@dataclass(frozen=True, slots=True)
class Site:
    """Settings of a SLURM site; empty ones leave the choice to the site.

    Raises
    ------
    InputError
        If SLURM would not accept a value.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    """Time limit of a job, ``hours:minutes:seconds`` or ``days-hours``; the site's own limit if empty."""
    gres: str = ""
    """Resources of each worker besides cores and memory, such as ``gpu:1`` or ``gpu:a100:1``."""
    cpus: int = 0
    """Cores of each worker; 0 for one per thread of its predictor."""
    memory: str = ""
    """Memory of each worker, such as ``16G``; what the plan needs if empty."""
    scratch: str = ""
    """Folder on each node for the workers' temporary files, such as ``/scratch/$USER``; their default folder if empty."""
    interface: str = ""
    """Network interface between the nodes, such as ``ib0``; detected if empty."""
    modules: tuple[str, ...] = ()
    """Environment modules to load in each job."""
    setup: tuple[str, ...] = ()
    """Shell lines to run in each job before modules are loaded."""
    options: tuple[str, ...] = ()
    """Further ``sbatch`` options for each job, such as ``--constraint=a100``."""

    def __post_init__(self) -> None:
        if self.time and parse_time(self.time) is None:
            raise InputError(f"time is {self.time!r}, but SLURM takes hours:minutes:seconds, days-hours, or minutes: change it")
        if self.memory and not re.fullmatch(r"\d+[KMGT]?", self.memory):
            raise InputError(f"memory is {self.memory!r}, but SLURM takes a whole number and a unit: give it like 16G")
        if self.cpus < 0:
            raise InputError(
                f"cpus is {self.cpus}, but a worker needs at least 1 core: give a number, or 0 for 1 core per thread"
            )
        if any("\n" in text for text in (*self.options, self.partition, self.account, self.qos, self.gres, self.scratch)):
            raise InputError("a value of the site has a line break: give each option separately")

    @property
    def seconds(self) -> float | None:
        """Time limit of a job in seconds; None for the site's own limit."""
        return parse_time(self.time)

    @property
    def task_options(self) -> tuple[str, ...]:
        """Options that give each task of a job the resources in `gres`."""
        if match := GPU_PATTERN.fullmatch(self.gres):
            kind, count = match.groups()
            return (f"--gpus-per-task={kind[1:] + ':' if kind else ''}{count}",)
        return (f"--gres={self.gres}",) if self.gres else ()

    @property
    def job_options(self) -> tuple[str, ...]:
        """Options of each job, except for its size."""
        named = (f"--{name}={value}" for name in ("partition", "account", "qos", "time") if (value := getattr(self, name)))
        return (*named, *self.options)

    @property
    def prologue(self) -> tuple[str, ...]:
        """Shell lines for the start of each job."""
        return (*self.setup, *(f"module load {module}" for module in self.modules))

    def to_toml(self) -> str:
        """Format the site as a file that `read_site` reads.

        Returns
        -------
        str
            TOML.
        """
        return to_toml(asdict(self))

    def replaced(self, **others: Any) -> Self:
        """Return a copy with other values, where they are given.

        Parameters
        ----------
        others
            Values by the names of the fields; empty ones change nothing.

        Returns
        -------
        Site
            The copy.

        Raises
        ------
        InputError
            If SLURM would not accept a value.
        """
        return type(self)(**{**asdict(self), **{name: value for name, value in others.items() if value}})


def read_site(path: Path | None) -> Site:
    """Read a site from a TOML file.

    Parameters
    ----------
    path
        Path of the file.

    Returns
    -------
    Site
        The site; one with only defaults if `path` is None.

    Raises
    ------
    InputError
        If the file is missing or invalid.
    """
    return Site() if path is None else read_toml(path, Site)


def logs_of(output: Place) -> Path:
    """Return the folder next to an output with the job script and the logs of its jobs.

    Parameters
    ----------
    output
        Place of the output.

    Returns
    -------
    Path
        Local path.
    """
    return sibling(output, f"{output.name}.slurm")


def submitted_job(output: Place) -> str:
    """Return the number of the last job that was submitted for an output.

    Parameters
    ----------
    output
        Place of the output.

    Returns
    -------
    str
        Number; empty if there is none.
    """
    try:
        numbers = (logs_of(output) / JOB_NUMBERS_FILE).read_text().split()
    except OSError:
        return ""
    return numbers[-1] if numbers and numbers[-1].isdecimal() else ""


def parse_time(time: str) -> float | None:
    """Convert a time as SLURM reads and prints it to seconds.

    Parameters
    ----------
    time
        ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``, or ``days-hours``, optionally followed by minutes and
        seconds.

    Returns
    -------
    float or None
        Seconds; None for ``UNLIMITED`` and other words, or an empty text.

    Examples
    --------
    >>> parse_time("1-02:03:04"), parse_time("2:05"), parse_time("90"), parse_time("UNLIMITED")
    (93784.0, 125.0, 5400.0, None)
    """
    if not TIME_PATTERN.fullmatch(time):
        return None
    days, _, clock = time.rpartition("-")
    given = [int(part) for part in clock.split(":")]
    whole = [*given, 0, 0][:3] if days else {1: [0, *given, 0], 2: [0, *given], 3: given}[len(given)]
    hours, minutes, seconds = whole
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)
