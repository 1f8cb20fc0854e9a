"""A Dask cluster of worker processes on this machine, to which no other user has access."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

from distributed import Client, Nanny, Security, SpecCluster, Status, nanny
from distributed.process import AsyncProcess
from distributed.scheduler import DEFAULT_EXTENSIONS
from distributed.spans import SpansSchedulerExtension
from tornado.ioloop import PeriodicCallback

from emseg.access import hub_address, link_with
from emseg.clusters.certificates import run_security
from emseg.clusters.fork_server import fork_server, launch, signals_blocked
from emseg.clusters.guard import GuardedScheduler, SilentWorker, dashboard_address
from emseg.clusters.lifetime import START_SECONDS, Notify, WorkerStartError, closing_safely, ignore_message, start_cluster
from emseg.clusters.private_folder import private_folder
from emseg_core.errors import InputError
from emseg_core.machine import usable_memory

LOOPBACK = "127.0.0.1"
DASHBOARD_PORT = 8787
REMOTE_VARIABLES = ("SSH_CONNECTION", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID")
"""Environment variables of processes that were started from another machine."""
POLL_SECONDS = 2.0
"""Interval between checks for lost workers."""
DEATH_TIMEOUT_SECONDS = 60
"""Time for which a worker on another host tries to reach its scheduler."""
FIRST_STARTS = 3
"""Number of times that a worker of a new cluster is started if something kills it before it is ready."""
MAX_FAILED_STARTS = 10
"""Number of workers that may be lost in a row while none is running, before the cluster gives up."""
WORKER_MODULE = "emseg.clusters.worker"
"""Module that a worker on another host runs."""
WORKER_CLASS = f"{SilentWorker.__module__}.{SilentWorker.__qualname__}"
"""Its class, for the command ``dask worker``."""
ABANDON_SECONDS = 10.0
"""Time to close the rest of a cluster whose workers did not close."""
GIVE_UP_SECONDS = 20.0
"""Time without a process after which a nanny is considered lost."""


@dataclass(frozen=True, slots=True)
class Elastic:
    """Rule that adapts the number of workers to the number of blocks left."""

    least: int
    """Minimum number of workers, kept even if idle."""
    first: int
    """Initial number of workers."""


@contextmanager
def local_cluster(
    workers: int,
    blocks_in_flight: int,
    host: str = LOOPBACK,
    security: Security | None = None,
    elastic: Elastic | None = None,
    notify: Notify = ignore_message,
) -> Iterator[Client]:
    """Start a cluster with this many worker processes on this machine.

    Scheduler and workers listen on the address ``host`` only, with TLS that needs the certificate of ``security`` to join;
    without one, only this user's processes here can join. The dashboard always listens on loopback, and is visible to anyone
    who has its link. Each worker has an equal share of this machine's memory, and is restarted when it takes more. SIGINT and
    SIGTERM do not reach the workers: the caller handles them.

    Parameters
    ----------
    workers
        Maximum number of worker processes.
    blocks_in_flight
        Threads of each worker.
    host
        Address to listen on.
    security
        TLS of the run; None for a certificate of its own.
    elastic
        How the number of workers follows the number of blocks left; None if it is fixed.
    notify
        Called with messages about processes that did not end in time.

    Yields
    ------
    Client
        A client of the cluster.

    Raises
    ------
    InputError
        If ``host`` is not an address of this machine, there is no place for temporary files, or a worker does not start.
    """
    _check_own(host)
    with private_folder() as folder, fork_server(), ExitStack() as held:
        security = security or held.enter_context(run_security(folder / "tls"))
        options = {
            "host": host,
            "security": security,
            "local_directory": str(folder),
            "nthreads": blocks_in_flight,
            "memory_limit": usable_memory() // workers,
            "death_timeout": START_SECONDS,
            "dashboard": False,
            "silence_logs": logging.CRITICAL,
        }
        spec = {name: {"cls": SturdyNanny, "options": options} for name in range(workers)}
        yield held.enter_context(connected(lambda: GuardedCluster(spec, host, security, folder, elastic), notify))


@contextmanager
def connected(start: Callable[[], GuardedCluster], notify: Notify) -> Iterator[Client]:
    """Start a cluster on this machine with `start` and connect to it, until the end of the ``with``.

    Yields
    ------
    Client
        A client of the cluster.
    """
    with ExitStack() as held:
        with signals_blocked():
            cluster = held.enter_context(closing_safely(start_cluster(start), notify))
            client = held.enter_context(closing_safely(Client(cluster), notify))
        yield client


def worker_command(client: Client, blocks_in_flight: int) -> str:
    """Return the command line that adds a worker process on another host to a `local_cluster` with certificate files.

    The other host must have this Python environment and the files under the same paths.

    Parameters
    ----------
    client
        Client of the cluster.
    blocks_in_flight
        Number of blocks that a worker processes at a time.

    Returns
    -------
    str
        A shell command.
    """
    words = [sys.executable, "-m", WORKER_MODULE, client.scheduler_info()["address"]]
    return shlex.join([*words, *worker_options(client.security, blocks_in_flight)])


def worker_options(security: Any, blocks_in_flight: int) -> list[str]:
    """Return the options of `WORKER_MODULE` on another host that sees the certificate's files.

    Parameters
    ----------
    security
        Certificate and key as files.
    blocks_in_flight
        Number of blocks that a worker processes at a time.

    Returns
    -------
    list of str
        Options of ``dask worker``.
    """
    options = {
        "--tls-ca-file": security.tls_ca_file,
        "--tls-cert": security.tls_worker_cert,
        "--tls-key": security.tls_worker_key,
        "--nthreads": blocks_in_flight,
        "--worker-class": WORKER_CLASS,
        "--death-timeout": DEATH_TIMEOUT_SECONDS,
    }
    return ["--no-dashboard", *(str(word) for option in options.items() for word in option)]


def tunnel_command(client: Client) -> str:
    """Return the command line that forwards the dashboard of a `local_cluster` to the same port of the user's machine.

    Parameters
    ----------
    client
        Client of the cluster.

    Returns
    -------
    str
        A shell command.
    """
    port = client.scheduler_info()["services"]["dashboard"]
    return shlex.join(["ssh", "-N", "-L", f"{port}:{LOOPBACK}:{port}", socket.gethostname()])


def hub_advice(client: Client) -> str | None:
    """Return the command that lets JupyterHub's proxy show the dashboard of a `local_cluster`.

    Parameters
    ----------
    client
        Client of the cluster.

    Returns
    -------
    str or None
        A shell command; None if this process is not under JupyterHub, or the hub's address is known.
    """
    cluster: Any = client.cluster
    path = hub_address("{port}")
    if path is None or not path.startswith("/") or cluster.proxy is not None:
        return None
    return f"export DASK_DISTRIBUTED__DASHBOARD__LINK={shlex.quote(f'https://HUB{path}status')}"


def is_remote() -> bool:
    """Return whether the user is probably at another machine: this process came by SSH, or runs in a batch job.

    Returns
    -------
    bool
        Whether one of `REMOTE_VARIABLES` is set.
    """
    return any(os.environ.get(name) for name in REMOTE_VARIABLES)


@contextmanager
def running_cluster(
    address: str, tls: tuple[Path, Path, Path] | None = None, notify: Notify = ignore_message
) -> Iterator[Client]:
    """Connect to a Dask cluster that is already running.

    Parameters
    ----------
    address
        Address of its scheduler.
    tls
        Files of the certificate authority, the certificate and its key; None without TLS.
    notify
        Called with a message if the client does not close properly.

    Yields
    ------
    Client
        A client of the cluster.

    Raises
    ------
    InputError
        If no scheduler answers at the address.
    """
    try:
        client = Client(address, timeout="20s", security=None if tls is None else _external_security(*tls))
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address} ({error}): check the address") from error
    with closing_safely(client, notify):
        yield client


class TiedProcess(AsyncProcess):
    """The process of a worker, which ends with this one from its first moment on."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)  # type: ignore[no-untyped-call]
        process: Any = self._process
        process._Popen = launch


nanny.AsyncProcess = TiedProcess  # type: ignore[attr-defined]  # a nanny has no option for it


class SturdyNanny(Nanny):
    """A nanny that survives the death of a worker during its start, and does not wait for one that cannot be ended.

    Its workers serve no HTTP.

    distributed's nanny has one slot for its worker's process, and a start waits there for a message from that process. If the
    process dies first and another is started in the same slot, the two starts take each other's messages, and one waits
    forever.
    """

    left = ""
    """Name of the process if it did not end in time."""
    _ended_with: int | None = None

    def __init__(self, scheduler: str, **options: Any) -> None:
        super().__init__(scheduler, worker_class=SilentWorker, **options)

    async def instantiate(self) -> Status:
        """Start the worker process; in a new cluster, again if it is killed.

        Returns
        -------
        Status
            Status of the worker.

        Raises
        ------
        WorkerStartError
            If the process ended before it was ready.
        """
        starts = FIRST_STARTS if self.status in (Status.init, Status.starting) else 1  # later, the nanny itself starts it again
        while True:
            if self.process is not None and self.process.status in (Status.stopped, Status.failed):
                self.process = None
            self._ended_with = None
            status = await super().instantiate()
            if status == Status.running or self._ended_with is None:
                return status
            starts -= 1
            if not starts or self._ended_with >= 0:  # one that ends by itself does so each time
                raise WorkerStartError(self._ended_with)

    async def kill(self, timeout: float = 5, reason: str = "nanny-kill") -> None:
        """Stop the worker process; while this nanny closes, that never fails."""
        try:
            await super().kill(timeout, reason)
        except Exception:
            if self.status != Status.closing:
                raise
            self.abandon()

    def abandon(self) -> None:
        """Kill the worker process, and do not wait for it."""
        process = self.process.process if self.process is not None else None
        if process is not None and process.is_alive():
            self.left = f"process {process.pid}"
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def _on_worker_exit_sync(self, exitcode: int) -> None:
        self._ended_with = exitcode
        super()._on_worker_exit_sync(exitcode)  # type: ignore[no-untyped-call]


class BriefSpans(SpansSchedulerExtension):
    """Sums of the time that tasks took, for the dashboard, without an entry for each task.

    distributed's extension keeps the metadata of each submission forever, and each block is one.
    """

    def observe_tasks(self, tss: Iterable[Any], **_: Any) -> dict[Any, dict[Any, Any]]:  # type: ignore[override]
        """Add tasks to their groups, which are few, and keep nothing else.

        Returns
        -------
        dict
            Annotations of the tasks.
        """
        return super().observe_tasks(tss, code=(), span_metadata={})  # type: ignore[typeddict-item]


class GuardedCluster(SpecCluster):
    """A scheduler in this process with workers anywhere. All HTTP is on loopback.

    Workers that are lost for good are replaced: a nanny whose first worker dies during its start gives up silently.
    """

    replaces_workers = False
    """Whether a worker that leaves is replaced by one with more time."""

    left: tuple[str, ...] = ()
    """Workers that did not end in time, and are left to the system."""

    _elastic: Elastic | None = None

    def __init__(
        self, workers: dict[Any, Any], host: str, security: Security, folder: Path, elastic: Elastic | None = None
    ) -> None:
        """Start the cluster.

        Parameters
        ----------
        workers
            Class and options of each possible worker, by its name.
        host
            Address to listen on.
        security
            TLS of the run.
        folder
            Folder for temporary files.
        elastic
            How the number of workers follows the number of blocks left; None if it is fixed.
        """
        self._elastic, self._most = elastic, workers
        scheduler = {
            "host": host,
            "security": security,
            "local_directory": str(folder),
            "dashboard_address": f"{LOOPBACK}:{free_port(DASHBOARD_PORT)}",
        }
        super().__init__(  # type: ignore[no-untyped-call]
            scheduler={"cls": GuardedScheduler, "options": scheduler},
            workers=dict(islice(workers.items(), elastic.first if elastic else None)),
            security=security,
            silence_logs=logging.CRITICAL,
        )

    @property
    def problem(self) -> str:
        """Reason why no more workers can be expected; empty while they can."""
        if self._failed_starts < max(MAX_FAILED_STARTS, 3 * len(self.worker_spec)):
            return ""
        return f"{self._failed_starts} workers in a row ended before one was ready: read their logs"

    def stop_growing(self) -> None:
        """Replace no more workers."""
        self.sync(self._stop_watch)  # type: ignore[no-untyped-call]

    async def _stop_watch(self) -> None:
        self._watch.stop()

    def resize(self, useful: int, idle: set[str]) -> set[str]:
        """Adapt the number of workers to the number that is useful.

        Parameters
        ----------
        useful
            Number of workers that have something to do.
        idle
            Addresses of the workers without a block.

        Returns
        -------
        set of str
            Addresses of idle workers that are no longer needed.
        """
        if self._elastic is None:
            return set()
        gone: set[str] = self.sync(self._resize, max(self._elastic.least, useful), idle)  # type: ignore[no-untyped-call]
        return gone

    async def _resize(self, wanted: int, idle: set[str]) -> set[str]:
        scheduler: Any = self.scheduler
        arrived = {worker.name: worker.address for worker in scheduler.workers.values()}
        spare = [name for name in self.worker_spec if arrived.get(name) is None or arrived[name] in idle]
        spare.sort(key=arrived.__contains__)  # first those that have not joined yet
        going = spare[: max(0, len(self.worker_spec) - wanted)]
        for name in going:
            del self.worker_spec[name]
        missing = [name for name in self._most if name not in self.worker_spec]
        for name in missing[: max(0, wanted - len(self.worker_spec))]:
            self.worker_spec[name] = self._most[name]
        return {arrived[name] for name in going if name in arrived}

    async def _start(self) -> None:
        # another run may take the dashboard's default port at the same moment: any other will do
        warnings.filterwarnings("ignore", message=r"Port \d+ is already in use")
        self._dead_since: dict[Any, float] = {}
        self._failed_starts = 0
        self._watch = PeriodicCallback(self._replace_lost, 1000 * POLL_SECONDS)
        self.scheduler_spec["cls"] = GuardedScheduler
        self.scheduler_spec["options"]["extensions"] = {**DEFAULT_EXTENSIONS, "spans": BriefSpans}
        await super()._start()  # type: ignore[no-untyped-call]
        self._watch.start()

    async def _close(self) -> None:
        self._watch.stop()
        closing = [*self.workers.values()]
        await super()._close()  # type: ignore[no-untyped-call]
        self.left += tuple(filter(None, (getattr(worker, "left", "") for worker in closing)))

    def abandon(self) -> None:
        """Stop waiting for what did not close: end the workers at once, and close the rest."""
        for worker in self.workers.values():
            with suppress(Exception):
                worker.abandon()
            worker.status = Status.closed
        self.workers.clear()
        self.worker_spec.clear()
        self.status = Status.running
        with suppress(Exception, asyncio.CancelledError):
            self.close(timeout=ABANDON_SECONDS)
        self.status = Status.closed

    async def _replace_lost(self) -> None:
        lost = await self._lost()
        self._failed_starts = 0 if self.scheduler_info["workers"] else self._failed_starts + len(lost)
        if self.problem:
            self._watch.stop()
            return
        for name in lost & self.workers.keys():
            worker = self.workers.pop(name)
            if worker.status not in (Status.closed, Status.failed):
                await worker.close()
        if self.worker_spec.keys() != self.workers.keys() and self.status == Status.running:
            with suppress(Exception):  # a worker that does not start is retried at the next check
                await self._correct_state()  # type: ignore[no-untyped-call]

    async def _lost(self) -> set[Any]:
        """Return the names of workers that do not come back by themselves."""
        dead = {name for name, worker in self.workers.items() if not worker.is_alive()}
        self._dead_since = {name: self._dead_since.get(name, monotonic()) for name in dead}
        given_up = {name for name, since in self._dead_since.items() if monotonic() > since + GIVE_UP_SECONDS}
        return given_up | {name for name in dead if self.workers[name].status in (Status.closed, Status.failed)}

    @property
    def token(self) -> str:
        """Token that gives access to the dashboard."""
        scheduler: Any = self.scheduler
        return str(scheduler.guard.token)

    @property
    def proxy(self) -> str | None:
        """Host of the proxy that shows the dashboard; None if only this machine does."""
        scheduler: Any = self.scheduler
        proxy: str | None = scheduler.guard.proxy
        return proxy

    @property
    def dashboard_link(self) -> str:
        """Link to the first page of the dashboard, with the token."""
        return link_with(dashboard_address(LOOPBACK, self.scheduler_info["services"]["dashboard"]), self.token)


def _external_security(authority: Path, certificate: Path, key: Path) -> Security:
    files = {"tls_ca_file": str(authority), "tls_client_cert": str(certificate), "tls_client_key": str(key)}
    return Security(require_encryption=True, **files)


def _check_own(host: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise InputError(
            f"no scheduler can listen on {host} ({error.strerror or error}): use an address of this machine that others reach"
        ) from error


def free_port(wanted: int) -> int:
    """Return `wanted` if nothing listens there, else 0, which lets the system choose.

    Parameters
    ----------
    wanted
        Number of a port.

    Returns
    -------
    int
        A port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return 0
    return wanted
