"""Dask workers under SLURM: as steps of the job that this process runs in, or each as a job of its own.

Both use TLS with the certificate of the run. Lost workers are replaced; workers that are no longer needed are cancelled.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Security, Status
from distributed.deploy.spec import ProcessInterface
from distributed.utils import get_ip
from psutil import net_if_addrs

from emseg.clusters.lifetime import Notify, closing_safely, ignore_message
from emseg.clusters.local import DEATH_TIMEOUT_SECONDS, WORKER_CLASS, WORKER_MODULE, Elastic, GuardedCluster, worker_options
from emseg.clusters.private_folder import private_folder
from emseg.slurm.job import REPLY_TIMEOUT_SECONDS, SlurmJob, environment_for_jobs, environment_for_steps, job_states
from emseg.slurm.options import Option, without_patterns
from emseg.slurm.site import Site
from emseg_core.errors import InputError

_on_interrupt = signal.getsignal(signal.SIGINT)
from dask_jobqueue.slurm import SLURMJob  # noqa: E402

signal.signal(signal.SIGINT, _on_interrupt)  # dask-jobqueue replaces the handler on import: Ctrl-C would end a run at once

LOST_WORKER_TIMEOUT = "5s"
"""Time that a worker has to come back before its job is replaced."""
STEP_GRACE_SECONDS = 10.0
"""Time that a step has to end."""


@contextmanager
def step_cluster(
    workers: int, blocks_in_flight: int, site: Site, security: Security, logs: Path, notify: Notify = ignore_message
) -> Iterator[Client]:
    """Start a cluster whose workers are steps of this job, one task each.

    Parameters
    ----------
    workers
        Number of workers.
    blocks_in_flight
        Threads of each worker.
    site
        Values of the SLURM site.
    security
        TLS of the run.
    logs
        Folder of the workers' logs.
    notify
        Called with messages about workers that did not end.

    Yields
    ------
    Client
        A client of the cluster.

    Raises
    ------
    InputError
        If this process is in no job, or the cluster cannot be started.
    """
    if SlurmJob.here() is None:
        raise InputError("--cluster srun starts workers within a SLURM job, but this process is not in one: use `emseg submit`")
    options = [*worker_options(security, blocks_in_flight), *_interface(site), "--memory-limit", _dask_memory(site)]
    options += ["--local-directory", os.path.expandvars(site.scratch)] if site.scratch else []
    spec = {}
    for name in (f"emseg-{number}" for number in range(workers)):
        srun = ["srun", "--nodes=1", "--ntasks=1", "--exact", "--input=none", "--export=ALL", f"--job-name={name}"]
        srun += [*site.step_options(), f"--chdir={Path.cwd()}", f"--output=%j-{name}.log", "--open-mode=append"]
        spec[name] = {"cls": _Step, "options": {"srun": srun, "worker": options, "logs": logs}}
    one_node = os.environ.get("SLURM_JOB_NUM_NODES") == "1"
    yield from _client(_Steps, spec, driver_address(site, one_node=one_node), security, None, notify)


@contextmanager
def job_cluster(
    workers: int,
    blocks_in_flight: int,
    site: Site,
    security: Security,
    logs: Path,
    elastic: Elastic | None = None,
    notify: Notify = ignore_message,
) -> Iterator[Client]:
    """Start a cluster whose workers are separate jobs, which start, are lost and are replaced independently.

    Parameters
    ----------
    workers
        Maximum number of workers.
    blocks_in_flight
        Threads of each worker.
    site
        Values of the SLURM site.
    security
        TLS of the run.
    logs
        Folder of the workers' logs.
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
    options = _job_options(blocks_in_flight, site, security, logs)
    names = [f"emseg-{number}" for number in range(workers)]
    spec = {name: {"cls": _Job, "options": {**options, "name": name}} for name in names}
    with dask.config.set({"distributed.deploy.lost-worker-timeout": LOST_WORKER_TIMEOUT}):
        yield from _client(_Jobs, spec, driver_address(site), security, elastic, notify)


def _job_options(blocks_in_flight: int, site: Site, security: Security, logs: Path) -> dict[str, Any]:
    tls = security.get_tls_config_for_role("worker")
    files = [
        (f"--tls-{name.replace('_', '-')}", shlex.quote(tls[name])) for name in ("ca_file", "cert", "key") if tls.get(name)
    ]
    return {
        "cores": blocks_in_flight,
        "memory": "1GiB",  # not used: see `_Job.worker_process_memory`
        "memory_limit": _dask_memory(site),
        "processes": 1,
        "log_directory": str(logs),
        "local_directory": f'"{site.scratch}"' if site.scratch else None,  # variables are filled in on the node
        "death_timeout": DEATH_TIMEOUT_SECONDS,
        "python": shlex.quote(sys.executable),
        "worker_command": WORKER_MODULE,
        "worker_extra_args": ["--no-dashboard", "--worker-class", WORKER_CLASS, *chain(*files), *_interface(site)],
        "job_extra_directives": site.job_options(
            1,
            Option("job-name", "emseg-worker"),
            *(Option(name, f"{without_patterns(logs)}/emseg-worker-%J.{name[:3]}") for name in ("output", "error")),
        ),
        "job_script_prologue": [*site.prologue, "export OMP_NUM_THREADS=1"],
    }


def _interface(site: Site) -> list[str]:
    return ["--interface", site.interface] if site.interface else []


def driver_address(site: Site, *, one_node: bool = False) -> str:
    """Return the address of this machine at which workers reach the driver.

    Parameters
    ----------
    site
        Values of the SLURM site.
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


def _client(
    kind: type[GuardedCluster], spec: dict[Any, Any], host: str, security: Security, elastic: Elastic | None, notify: Notify
) -> Iterator[Client]:
    with private_folder() as folder, ExitStack() as held:
        try:
            cluster = held.enter_context(closing_safely(kind(spec, host, security, folder, elastic), notify))
        except RuntimeError as error:
            raise InputError(
                f"the cluster could not be started ({' '.join(str(error).split())}): check the values of the site file"
            ) from error
        yield held.enter_context(closing_safely(Client(cluster), notify))


def _dask_memory(site: Site) -> str:
    """Return Dask's limit of a worker's memory: SLURM's ``16G`` is 16 GiB, and a number alone is in MiB; 0 is no limit."""
    memory = site.worker_memory
    if not memory:
        return "0" if site.memory or site.option("memory") else "auto"  # SLURM knows how much the job has
    return memory + "iB" if memory[-1].isalpha() else memory + "MiB"


class _Step(ProcessInterface):
    """A worker as a step of this job."""

    left = ""
    """Name of the step if it did not end in time."""

    def __init__(self, scheduler: str, name: Any, srun: list[str], worker: list[str], logs: Path) -> None:
        super().__init__(scheduler=scheduler, name=name)  # type: ignore[no-untyped-call]
        self._logs = logs
        self._command = [*srun, sys.executable, "-m", WORKER_MODULE, scheduler, "--name", str(name), *worker]
        self._name = name
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        # `srun` replaces patterns such as %u in a folder's name even if the % is doubled: from there, it needs no folder
        self._process = await asyncio.create_subprocess_exec(
            *self._command, start_new_session=True, cwd=self._logs, env=environment_for_steps()
        )
        await super().start()  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STEP_GRACE_SECONDS)
            self.abandon()
        await super().close()  # type: ignore[no-untyped-call]

    def abandon(self) -> None:
        """Kill the process that stands for the step, and do not wait for it."""
        if self._process is not None and self._process.returncode is None:
            self.left = f"step {self._name}"
            with suppress(ProcessLookupError):
                self._process.kill()

    def is_alive(self) -> bool:
        """Whether the step runs or is queued."""
        return self._process is not None and self._process.returncode is None


class _Job(SLURMJob):
    """A worker as a job of its own."""

    left = ""
    """Name of the job if SLURM could not be asked to end it."""

    def __init__(self, scheduler: str, *, memory_limit: str, job_extra_directives: tuple[str, ...], **options: Any) -> None:
        self._memory_limit = memory_limit
        super().__init__(scheduler, **options)  # type: ignore[no-untyped-call]
        # dask-jobqueue's own lines cannot leave the memory out, and break at spaces and % in paths
        self.job_header = "\n".join(f"#SBATCH {shlex.quote(option)}" for option in job_extra_directives)

    @property
    def worker_process_memory(self) -> str:
        """Dask's limit of the worker's memory."""
        return self._memory_limit

    async def _submit_job(self, script_filename: str) -> str:
        return str(await self._call(["sbatch", script_filename], env=environment_for_jobs()))  # type: ignore[no-untyped-call]

    @contextmanager
    def job_file(self) -> Iterator[str]:
        """Write the job's script to a file that no other user can replace."""
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(self.job_script())  # type: ignore[no-untyped-call]
            file.flush()
            yield file.name

    async def close(self) -> None:
        try:
            await super().close()  # type: ignore[no-untyped-call]
        except Exception:  # `scancel` is missing or hangs: the worker ends on its own without a scheduler
            self.abandon()
        self.status = Status.closed

    def abandon(self) -> None:
        """Leave the job to SLURM."""
        self.left = f"job {self.job_id}"


class _Steps(GuardedCluster):
    """Worker steps; one that has ended does not come back."""

    async def _lost(self) -> set[Any]:
        return {name for name, step in self.workers.items() if not step.is_alive()}


class _Jobs(GuardedCluster):
    """Worker jobs, whose states SLURM is asked for at intervals."""

    replaces_workers = True

    def stop_growing(self) -> None:
        """Start no more jobs, and cancel those that are queued."""
        super().stop_growing()
        states = job_states() or {}
        waiting = [number for job in self.workers.values() if states.get(number := str(job.job_id)) == "PENDING"]
        if waiting:
            subprocess.run(["scancel", *waiting], capture_output=True, timeout=REPLY_TIMEOUT_SECONDS)

    async def _lost(self) -> set[Any]:
        states = await asyncio.to_thread(job_states)
        return set() if states is None else {name for name, job in self.workers.items() if str(job.job_id) not in states}
