"""Settings of a SLURM site that apply to each of its jobs, in one TOML file; see ``deploy/slurm/``."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from emseg.settings.toml import read_toml, to_toml
from emseg.slurm.options import Option, parse_options, replaced
from emseg_core.errors import InputError
from emseg_core.store.files.place import Place, sibling

JOB_NUMBERS_FILE = "jobs"
"""File in the folder of logs with the numbers of all submitted jobs, one per line."""
TIME_PATTERN = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
GPU_PATTERN = re.compile(r"gpu(?::(?=[^:]*[^:\d])(?P<type>[^:]+))?(?::(?P<count>[1-9]\d*))?")
PLACEHOLDER = re.compile(r"<[a-z]+( [a-z]+)*>")
"""What the example file has in place of a site's own values."""
NO_MEMORY = "none"
"""Memory of a site that takes no option for it."""
DECIDES = {name: {name} for name in ("partition", "account", "qos", "time", "cpus", "memory")} | {"gres": {"gres", "gpus"}}
"""The kinds of options that each field decides."""


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
    """Resources besides cores and memory: GPUs of each worker, such as ``gpu:1`` or ``gpu:a100:1``; others count per node."""
    cpus: int = 0
    """Cores of each worker; 0 for one per thread of its predictor."""
    memory: str = ""
    """Memory of each worker, such as ``16G``; what the plan needs if empty; ``none`` where the site takes no such option."""
    scratch: str = ""
    """Folder on each node for the workers' temporary files, such as ``/scratch/$USER``; their default folder if empty."""
    interface: str = ""
    """Network interface between the nodes, such as ``ib0``; detected if empty."""
    driver_interface: str = ""
    """Network interface at which the driver waits for the workers; `interface` if empty."""
    modules: tuple[str, ...] = ()
    """Environment modules to load in each job."""
    setup: tuple[str, ...] = ()
    """Shell lines to run in each job before modules are loaded."""
    options: tuple[str, ...] = ()
    """Further ``sbatch`` options for each job, such as ``--constraint=a100``; they replace those that emseg would give."""

    def __post_init__(self) -> None:
        if self.time and parse_time(self.time) is None:
            raise InputError(f"time is {self.time!r}, but SLURM takes hours:minutes:seconds, days-hours, or minutes: change it")
        if self.memory and self.memory != NO_MEMORY and not re.fullmatch(r"\d+[KMGT]?", self.memory):
            raise InputError(
                f"memory is {self.memory!r}, but SLURM takes a whole number and a unit: give it like 16G, or none for no option"
            )
        if self.cpus < 0:
            raise InputError(
                f"cpus is {self.cpus}, but a worker needs at least 1 core: give a number, or 0 for 1 core per thread"
            )
        if any("\n" in text for text in (*self.options, self.partition, self.account, self.qos, self.gres, self.scratch)):
            raise InputError("a value of the site has a line break: give each option separately")

        parse_options(self.options)

    @property
    def theirs(self) -> tuple[Option, ...]:
        """The options that the user wrote out."""
        return parse_options(self.options)

    def option(self, kind: str) -> Option | None:
        """Return the user's own option of a kind.

        Parameters
        ----------
        kind
            What it decides, such as ``memory``.

        Returns
        -------
        Option or None
            None if there is none.
        """
        return next((option for option in self.theirs if kind in option.kinds), None)

    @property
    def seconds(self) -> float | None:
        """Time limit of a job in seconds; None for the site's own limit."""
        asked = self.option("time")
        return parse_time(asked.value or "" if asked else self.time)

    @property
    def cores(self) -> int:
        """Cores of each worker."""
        asked = self.option("cpus")
        value = asked.value or "" if asked and asked.name == "cpus-per-task" else ""
        return max(1, int(value) if value.isdecimal() else self.cpus)

    @property
    def worker_memory(self) -> str:
        """Memory of each worker; empty if emseg asks for none, so that the user's option or the site decides."""
        return "" if self.memory == NO_MEMORY or self.option("memory") else self.memory

    @property
    def has_gpus(self) -> bool:
        """Whether workers get GPUs."""
        return bool(self._gpus or self.option("gpus"))

    @property
    def _gpus(self) -> str:
        """GPUs of each worker as ``--gpus-per-task`` takes them, such as ``a100:1``."""
        matches = filter(None, map(GPU_PATTERN.fullmatch, self._resources))
        return ",".join(
            f"{found['type']}:{found['count'] or 1}" if found["type"] else found["count"] or "1" for found in matches
        )

    @property
    def per_node(self) -> str:
        """Resources other than GPUs, of which SLURM counts out as many on each node."""
        return ",".join(resource for resource in self._resources if not GPU_PATTERN.fullmatch(resource))

    @property
    def _resources(self) -> list[str]:
        return [resource.strip() for resource in self.gres.split(",") if resource.strip()]

    @property
    def task_options(self) -> tuple[str, ...]:
        """Options that give a job the resources in `gres`: GPUs to each task, others on each node."""
        return tuple(map(str, self._gres_options))

    @property
    def _gres_options(self) -> tuple[Option, ...]:
        gpus = (Option("gpus-per-task", self._gpus),) if self._gpus else ()
        return (*gpus, Option("gres", self.per_node)) if self.per_node else gpus

    def job_options(self, tasks: int, *others: Option) -> tuple[str, ...]:
        """Return the options of a job whose tasks are workers.

        Parameters
        ----------
        tasks
            Number of its workers.
        *others
            Further options; those of the user replace them, too.

        Returns
        -------
        tuple of str
            Each once.
        """
        size = (Option("ntasks", str(tasks)), Option("cpus-per-task", str(self.cores)))
        return self._with_theirs(*size, *self._gres_options, *self._job_memory(tasks), *others)

    def driver_options(self, memory: str, *others: Option) -> tuple[str, ...]:
        """Return the options of a job that only drives workers in jobs of their own.

        Parameters
        ----------
        memory
            Memory of the driver.
        *others
            Further options; those of the user replace them, too.

        Returns
        -------
        tuple of str
            Each once.
        """
        size = (Option("ntasks", "1"), Option("cpus-per-task", "1"))
        options = self._with_theirs(*size, *(() if self.memory == NO_MEMORY else (Option("mem", memory),)), *others)
        # a driver without a GPU has no memory per GPU
        return (
            options
            if self.option("gpus")
            else tuple(o for o in options if not o.startswith(("--mem-per-gpu", "--cpus-per-gpu")))
        )

    def step_options(self) -> tuple[str, ...]:
        """Return the options of a step that is one worker, within a job with `job_options`.

        Options for a whole node or job, such as ``--mem=0`` or ``--gpus=8``, are shared by its steps.

        Returns
        -------
        tuple of str
            Each once.
        """
        options = [Option("cpus-per-task", str(self.cores))]
        memory, gpus, cpus = (self.option(kind) for kind in ("memory", "gpus", "cpus"))
        if memory is not None:
            options.append(Option("mem", "0") if memory.name == "mem" else memory)
        elif self.worker_memory:
            options.append(Option("mem", self.worker_memory))
        if self.has_gpus:
            own = gpus if gpus is not None and gpus.name in ("gpus-per-task", "tres-per-task") else None
            options.append(own or Option("gpus-per-task", self._gpus or "1"))
        elif self.per_node or self.option("gres"):
            options.append(Option("gres", "none"))  # by default a step takes all of its job's, and the next one waits
        return tuple(map(str, replaced(options, [cpus] if cpus is not None else [])))

    def _with_theirs(self, *ours: Option) -> tuple[str, ...]:
        named = (Option(name, value) for name in ("partition", "account", "qos", "time") if (value := getattr(self, name)))
        return tuple(map(str, replaced((*ours, *named), self.theirs)))

    def _job_memory(self, tasks: int) -> tuple[Option, ...]:
        """Return the option for the memory of a job whose tasks may lie on any nodes."""
        if not self.worker_memory:
            return ()
        number, unit = re.fullmatch(r"(\d+)([KMGT]?)", self.worker_memory).groups()  # type: ignore[union-attr]
        kilobytes = int(number) * {"K": 1, "": 2**10, "M": 2**10, "G": 2**20, "T": 2**30}[unit]
        if tasks == 1 or not kilobytes:  # 0: all memory of a node
            return (Option("mem", self.worker_memory),)
        return (Option("mem-per-cpu", f"{math.ceil(kilobytes / 1024 / self.cores)}M"),)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return notes on what may surprise the user of a job at this site."""
        notes = []
        for name, default in (("partition", "SLURM's default partition"), ("time", "the partition's default limit")):
            if not getattr(self, name) and not self.option(name):
                notes.append(f"no --{name} is given, so {default} applies")
        if self.per_node and not self.option("gres"):
            notes.append(f"--gres={self.per_node} counts per node: its workers share it")
        return tuple(notes)

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
        given = {name: value for name, value in others.items() if value}
        decided = set().union(*(DECIDES.get(name, set()) for name in given))
        kept = tuple(shlex.quote(str(option)) for option in self.theirs if not option.kinds & decided)
        return replace(self, **{"options": kept if len(kept) < len(self.theirs) else self.options, **given})


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
        If the file is missing or invalid, or is an example that was not filled in.
    """
    if path is None:
        return Site()
    site = read_toml(path, Site)
    lines = ((number, line.partition("#")[0].strip()) for number, line in enumerate(path.read_text().splitlines(), 1))
    if unfilled := [f"line {number}, {line}" for number, line in lines if PLACEHOLDER.search(line)]:
        raise InputError(
            f"{path} has placeholders ({'; '.join(unfilled)}): fill in what your site needs, and delete other lines"
        )
    return site


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
