"""Dask workers as jobs of a batch system, through dask-jobqueue's classes: what all batch systems have in common."""

from __future__ import annotations

import shlex
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any

import dask
from dask.utils import parse_bytes
from distributed import Client, Security, Status
from distributed.utils import get_ip
from psutil import net_if_addrs

from emseg.clusters.lifetime import Notify, closing_safely, ignore_message
from emseg.clusters.local import (
    DEATH_TIMEOUT_SECONDS,
    GIVE_UP_SECONDS,
    WORKER_CLASS,
    WORKER_MODULE,
    Elastic,
    GuardedCluster,
)
from emseg.clusters.private_folder import private_folder
from emseg.slurm.site import Site
from emseg_core.errors import InputError

_on_interrupt = signal.getsignal(signal.SIGINT)
from dask_jobqueue.core import Job  # noqa: E402
from dask_jobqueue.lsf import LSFJob as LSFJob  # noqa: E402, PLC0414  each cluster imports its own from here
from dask_jobqueue.pbs import PBSJob as PBSJob  # noqa: E402, PLC0414
from dask_jobqueue.sge import SGEJob as SGEJob  # noqa: E402, PLC0414
from dask_jobqueue.slurm import SLURMJob as SLURMJob  # noqa: E402, PLC0414

signal.signal(signal.SIGINT, _on_interrupt)  # dask-jobqueue replaces the handler on import: Ctrl-C would end a run at once

LOST_WORKER_TIMEOUT = "5s"
"""Time that a worker has to come back before its job is replaced."""
JOB_NAME = "emseg-worker"


@contextmanager
def adapted_cluster(
    system: Any,
    workers: int,
    blocks_in_flight: int,
    site: Site,
    security: Security,
    logs: Path,
    elastic: Elastic | None = None,
    notify: Notify = ignore_message,
) -> Iterator[Client]:
    """Start a cluster whose workers are jobs of another batch system than SLURM.

    Parameters
    ----------
    system
        Module with the class of its jobs, `WorkerJob`, and with `requests`, what they ask for at a site.
    workers, blocks_in_flight, site, security, logs, elastic, notify
        As for `emseg.clusters.slurm.job_cluster`.

    Yields
    ------
    Client
        A client of the cluster.

    Raises
    ------
    InputError
        If the batch system has no such setting, or the cluster cannot be started.
    """
    options = {**worker_job_options(blocks_in_flight, site, security, logs), **system.requests(site)}
    names = [f"emseg-{number}" for number in range(workers)]
    spec = {name: {"cls": system.WorkerJob, "options": {**options, "name": name}} for name in names}
    yield from started_client(JobWorkers, spec, driver_address(site), security, elastic, notify)


def worker_job_options(blocks_in_flight: int, site: Site, security: Security, logs: Path) -> dict[str, Any]:
    """Return the options of dask-jobqueue that are the same for all batch systems.

    Parameters
    ----------
    blocks_in_flight
        Threads of each worker.
    site
        Values of the site.
    security
        TLS of the run.
    logs
        Folder of the workers' logs.

    Returns
    -------
    dict
        Keywords of its classes of jobs.
    """
    tls = security.get_tls_config_for_role("worker")
    files = [
        (f"--tls-{name.replace('_', '-')}", shlex.quote(tls[name])) for name in ("ca_file", "cert", "key") if tls.get(name)
    ]
    return {
        "cores": blocks_in_flight,
        "memory": f"{memory_bytes(site)}B",
        "processes": 1,
        "job_name": JOB_NAME,
        "log_directory": str(logs),
        "local_directory": f'"{site.scratch}"' if site.scratch else None,  # variables are filled in on the node
        "death_timeout": DEATH_TIMEOUT_SECONDS,
        "python": shlex.quote(sys.executable),
        "worker_command": WORKER_MODULE,
        "worker_extra_args": ["--no-dashboard", "--worker-class", WORKER_CLASS, *chain(*files), *interface_options(site)],
        "job_extra_directives": [*site.options],
        "job_script_prologue": [*site.prologue, "export OMP_NUM_THREADS=1"],
    }


def refuse(site: Site, system: str, *names: str) -> None:
    """Refuse settings that a batch system does not have.

    Parameters
    ----------
    site
        Values of the site.
    system
        Name of the batch system.
    *names
        Fields of `Site`.

    Raises
    ------
    InputError
        If one of them is set.
    """
    for name in names:
        if value := getattr(site, name):
            raise InputError(
                f"{name} is {value!r}, but emseg does not request it from {system}: give the option for it in options"
            )


def memory_bytes(site: Site) -> int:
    """Return the memory of each worker in bytes; 0 if none is requested."""
    memory = dask_memory(site)
    return 0 if memory == "auto" else int(parse_bytes(memory))


def interface_options(site: Site) -> list[str]:
    """Return the worker's options for the network between the nodes."""
    return ["--interface", site.interface] if site.interface else []


def driver_address(site: Site, *, one_node: bool = False) -> str:
    """Return the address of this machine at which workers reach the driver.

    Parameters
    ----------
    site
        Values of the site.
    one_node
        Whether all workers are on this machine.

    Returns
    -------
    str
        An IP address.

    Raises
    ------
    InputError
        If this machine has no such interface, or workers on other nodes would be given an address of their own.
    """
    key = "driver_interface" if site.driver_interface else "interface"
    name = getattr(site, key)
    own = {
        name: address.address for name, found in net_if_addrs().items() for address in found if address.family == socket.AF_INET
    }
    there = ", ".join(f"{name} ({address})" for name, address in own.items()) or "none with an IPv4 address"
    if name and name not in own:
        raise InputError(
            f"{key} is {name!r}, but the interfaces of this machine, {socket.gethostname()}, are {there}: set one of them as "
            "driver_interface in the site file"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where no route leads outside, and returns what is checked below
        address = str(own[name] if name else get_ip())
    if ip_address(address).is_loopback and not one_node:
        raise InputError(
            f"workers on other nodes cannot reach the driver at {address}, which every machine calls itself; the interfaces of "
            f"this machine, {socket.gethostname()}, are {there}: set one that leads to the nodes as interface in the site file"
        )
    return address


def started_client(
    kind: type[GuardedCluster], spec: dict[Any, Any], host: str, security: Security, elastic: Elastic | None, notify: Notify
) -> Iterator[Client]:
    """Start a cluster and connect to it.

    Parameters
    ----------
    kind
        Class of the cluster.
    spec
        Class and options of each possible worker, by its name.
    host
        Address of the driver.
    security
        TLS of the run.
    elastic
        How the number of workers follows the number of blocks left; None if it is fixed.
    notify
        Called with messages about workers that did not end.

    Yields
    ------
    Client
        A client of the cluster.

    Raises
    ------
    InputError
        If the cluster cannot be started.
    """
    with private_folder() as folder, ExitStack() as held:
        held.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": LOST_WORKER_TIMEOUT}))
        try:
            cluster = held.enter_context(closing_safely(kind(spec, host, security, folder, elastic), notify))
        except RuntimeError as error:
            raise InputError(
                f"the cluster could not be started ({' '.join(str(error).split())}): check the values of the site file"
            ) from error
        yield held.enter_context(closing_safely(Client(cluster), notify))


def dask_memory(site: Site) -> str:
    """Return Dask's limit of a worker's memory: ``16G`` is 16 GiB, and a number alone is in MiB; 0 is no limit."""
    memory = site.worker_memory
    if not memory:
        return "0" if site.memory or site.option("memory") else "auto"  # the batch system knows how much the job has
    return memory + "iB" if memory[-1].isalpha() else memory + "MiB"


class JobWorker(Job):
    """Changes to dask-jobqueue's jobs, which are the other base class."""

    left = ""
    """Name of the job if the batch system could not be asked to end it."""

    @contextmanager
    def job_file(self) -> Iterator[str]:
        """Write the job's script to a file that no other user can replace."""
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(self.job_script())  # type: ignore[no-untyped-call]
            file.flush()
            yield file.name

    async def close(self) -> None:
        """End the job."""
        try:
            await super().close()  # type: ignore[no-untyped-call]
        except Exception:  # the command is missing or hangs: the worker ends on its own without a scheduler
            self.abandon()
        self.status = Status.closed

    def abandon(self) -> None:
        """Leave the job to the batch system."""
        self.left = f"job {self.job_id}"


class JobWorkers(GuardedCluster):
    """Worker jobs of a batch system that is not asked for their states: a worker that had joined is lost once it is away."""

    replaces_workers = True
    _joined: frozenset[Any] = frozenset()
    _away_since: Mapping[Any, float] = {}

    async def _lost(self) -> set[Any]:
        scheduler: Any = self.scheduler
        here = {worker.name for worker in scheduler.workers.values()}
        away = (self._joined & self.workers.keys()) - here
        self._away_since = {name: self._away_since.get(name, monotonic()) for name in away}
        lost = {name for name, since in self._away_since.items() if monotonic() > since + GIVE_UP_SECONDS}
        self._joined = (self._joined | here) - lost
        return lost
