"""Dask workers under SLURM: as steps of the job that this process runs in, or as separate jobs.

Both use TLS with the certificate of the run. Lost workers are replaced; workers that are no longer needed are cancelled.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed import Client, Security
from distributed.deploy.spec import ProcessInterface

from emseg.clusters.jobs import (
    JOB_NAME,
    JobWorker,
    SLURMJob,
    dask_memory,
    driver_address,
    interface_options,
    started_client,
    worker_job_options,
)
from emseg.clusters.lifetime import Notify, ignore_message
from emseg.clusters.local import WORKER_MODULE, Elastic, GuardedCluster, worker_options
from emseg.slurm.job import REPLY_TIMEOUT_SECONDS, SlurmJob, environment_for_jobs, environment_for_steps, job_states
from emseg.slurm.options import Option, without_patterns
from emseg.slurm.site import Site
from emseg_core.errors import InputError

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
    options = [*worker_options(security, blocks_in_flight), *interface_options(site), "--memory-limit", dask_memory(site)]
    options += ["--local-directory", os.path.expandvars(site.scratch)] if site.scratch else []
    spec = {}
    for name in (f"emseg-{number}" for number in range(workers)):
        srun = ["srun", "--nodes=1", "--ntasks=1", "--exact", "--input=none", "--export=ALL", f"--job-name={name}"]
        srun += [*site.step_options(), f"--chdir={Path.cwd()}", f"--output=%j-{name}.log", "--open-mode=append"]
        spec[name] = {"cls": _Step, "options": {"srun": srun, "worker": options, "logs": logs}}
    one_node = os.environ.get("SLURM_JOB_NUM_NODES") == "1"
    yield from started_client(_Steps, spec, driver_address(site, one_node=one_node), security, None, notify)


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
    yield from started_client(_Jobs, spec, driver_address(site), security, elastic, notify)


def _job_options(blocks_in_flight: int, site: Site, security: Security, logs: Path) -> dict[str, Any]:
    return {
        **worker_job_options(blocks_in_flight, site, security, logs),
        "memory": "1GiB",  # not used: see `_Job.worker_process_memory`
        "memory_limit": dask_memory(site),
        "job_extra_directives": site.job_options(
            1,
            Option("job-name", JOB_NAME),
            *(Option(name, f"{without_patterns(logs)}/{JOB_NAME}-%J.{name[:3]}") for name in ("output", "error")),
        ),
    }


class _Step(ProcessInterface):
    """A worker as a step of this job."""

    left = ""
    """Name of the step if it did not end in time."""

    def __init__(self, scheduler: str, name: Any, srun: list[str], worker: list[str], logs: Path | None = None) -> None:
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
        """Kill the process that represents the step, without waiting for it."""
        if self._process is not None and self._process.returncode is None:
            self.left = f"step {self._name}"
            with suppress(ProcessLookupError):
                self._process.kill()

    def is_alive(self) -> bool:
        """Return whether the step runs or is queued."""
        return self._process is not None and self._process.returncode is None


class _Job(JobWorker, SLURMJob):
    """A worker as a separate job."""

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
