"""Dask workers under SLURM: as steps of the job that this process runs in, or each as a job of its own.

Both speak TLS with the certificate of the run alone. What is lost is replaced; what is no longer wanted is cancelled.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Security, Status
from distributed.deploy.spec import ProcessInterface
from distributed.utils import get_ip, get_ip_interface

from emseg.errors import InputError
from emseg_workflows.clusters.lifetime import Tell, closed_at_last, untold
from emseg_workflows.clusters.local import DEATH, WORKER, Elastic, GuardedCluster, worker_class_name, worker_options
from emseg_workflows.clusters.private_folder import private_folder
from emseg_workflows.site import Site
from emseg_workflows.slurm_job import ANSWER, SlurmJob, states_of_jobs

_on_interrupt = signal.getsignal(signal.SIGINT)
from dask_jobqueue.slurm import SLURMJob  # noqa: E402

signal.signal(signal.SIGINT, _on_interrupt)  # dask-jobqueue takes it on import: Ctrl-C would end a run at once

GONE = "5s"
"""Time that a worker has to come back before its job is replaced."""
GRACE = 10.0
"""Seconds that a step has to end."""


@contextmanager
def step_cluster(
    workers: int, blocks_in_flight: int, site: Site, security: Security, logs: Path, tell: Tell = untold
) -> Iterator[Client]:
    """A client of a new cluster whose workers are steps of this job, a task each; its threads are the blocks in flight.

    Raises
    ------
    InputError
        If this process is in no job.
    """
    if SlurmJob.here() is None:
        raise InputError("--cluster srun starts workers within a SLURM job, but this process is in none: use `emseg submit`")
    options = worker_options(security, blocks_in_flight)
    options += ["--local-directory", os.path.expandvars(site.scratch)] if site.scratch else []
    options += ["--interface", site.interface] if site.interface else []
    spec = {}
    for name in (f"emseg-{number}" for number in range(workers)):
        srun = ["srun", "--nodes=1", "--ntasks=1", "--exact", "--input=none", "--export=ALL", f"--job-name={name}"]
        srun += [f"--cpus-per-task={max(1, site.cpus)}", *(f"--mem={site.memory}" for _ in range(bool(site.memory)))]
        srun += [*site.each_task, f"--output={logs / f'%j-{name}.log'}", "--open-mode=append"]
        spec[name] = {
            "cls": _Step,
            "options": {"srun": srun, "worker": [*options, "--memory-limit", _dask_memory(site.memory)]},
        }
    yield from _client(_Steps, spec, site, security, tell=tell)


@contextmanager
def job_cluster(
    workers: int,
    blocks_in_flight: int,
    site: Site,
    security: Security,
    logs: Path,
    elastic: Elastic | None = None,
    tell: Tell = untold,
) -> Iterator[Client]:
    """A client of a new cluster whose workers are jobs of their own, started, lost and replaced one by one."""
    options = _job_options(blocks_in_flight, site, security, logs)
    names = [f"emseg-{number}" for number in range(workers)]
    spec = {name: {"cls": _Job, "options": {**options, "name": name}} for name in names}
    with dask.config.set({"distributed.deploy.lost-worker-timeout": GONE}):
        yield from _client(_Jobs, spec, site, security, elastic, tell)


def _job_options(blocks_in_flight: int, site: Site, security: Security, logs: Path) -> dict[str, Any]:
    return {
        "cores": blocks_in_flight,
        "memory": _dask_memory(site.memory),
        "processes": 1,
        "job_cpu": max(1, site.cpus),
        "job_mem": site.memory or None,
        "job_name": "emseg-worker",
        "log_directory": str(logs),
        "local_directory": site.scratch or None,
        "security": security,
        "death_timeout": DEATH,
        "python": shlex.quote(sys.executable),
        "worker_command": WORKER,
        "worker_extra_args": ["--no-dashboard", "--worker-class", worker_class_name()]
        + (["--interface", site.interface] if site.interface else []),
        "job_directives_skip": [" -t "],  # half an hour, where the site was not asked for any time
        "job_extra_directives": [*site.header, *(f"--gres={site.gres}" for _ in range(bool(site.gres)))],
        "job_script_prologue": [*site.prologue, "export OMP_NUM_THREADS=1"],
    }


def _client(
    kind: type[GuardedCluster],
    spec: dict[Any, Any],
    site: Site,
    security: Security,
    elastic: Elastic | None = None,
    tell: Tell = untold,
) -> Iterator[Client]:
    host = get_ip_interface(site.interface) if site.interface else get_ip()
    with ExitStack() as held:
        folder = held.enter_context(private_folder())
        try:
            cluster = held.enter_context(closed_at_last(kind(spec, host, security, folder, elastic), tell))
        except RuntimeError as error:
            raise InputError(
                f"no cluster could be started ({' '.join(str(error).split())}): check the site's values"
            ) from error
        yield held.enter_context(closed_at_last(Client(cluster), tell))


def _dask_memory(memory: str) -> str:
    """Memory as Dask reads it: SLURM's ``16G`` is 16 GiB, and a number alone is MiB."""
    if not memory:
        return "auto"
    return memory + "iB" if memory[-1].isalpha() else memory + "MiB"


class _Step(ProcessInterface):
    """A worker as a step of this job."""

    left = ""
    """What is left to the system, as it was not gone in time."""

    def __init__(self, scheduler: str, name: Any, srun: list[str], worker: list[str]) -> None:
        super().__init__(scheduler=scheduler, name=name)  # type: ignore[no-untyped-call]
        self._command = [*srun, sys.executable, "-m", WORKER, scheduler, "--name", str(name), *worker]
        self._name = name
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(*self._command, start_new_session=True)
        await super().start()  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), GRACE)
            self.abandon()
        await super().close()  # type: ignore[no-untyped-call]

    def abandon(self) -> None:
        """Kill the process that stands for the step, and wait no longer."""
        if self._process is not None and self._process.returncode is None:
            self.left = f"step {self._name}"
            with suppress(ProcessLookupError):
                self._process.kill()

    def is_alive(self) -> bool:
        """Whether the step goes on, or waits for its turn."""
        return self._process is not None and self._process.returncode is None


class _Job(SLURMJob):
    """A worker as a job of its own."""

    left = ""
    """What is left to SLURM, which could not be asked."""

    @contextmanager
    def job_file(self) -> Iterator[str]:
        """The script of the job, in a file that nobody else can put another in the place of."""
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(self.job_script())  # type: ignore[no-untyped-call]
            file.flush()
            yield file.name

    async def close(self) -> None:
        try:
            await super().close()  # type: ignore[no-untyped-call]
        except Exception:  # there is no `scancel`, or it hangs: the worker ends without its scheduler
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
    """Worker jobs, which SLURM is asked for now and then."""

    lasting = True

    def stop_growing(self) -> None:
        """Start no more jobs, and cancel those that wait."""
        super().stop_growing()
        states = states_of_jobs() or {}
        waiting = [number for job in self.workers.values() if states.get(number := str(job.job_id)) == "PENDING"]
        if waiting:
            subprocess.run(["scancel", *waiting], capture_output=True, timeout=ANSWER)

    async def _lost(self) -> set[Any]:
        states = await asyncio.to_thread(states_of_jobs)
        return set() if states is None else {name for name, job in self.workers.items() if str(job.job_id) not in states}
