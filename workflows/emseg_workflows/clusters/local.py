"""A Dask cluster of worker processes on this machine, into which nobody else has a way."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from time import monotonic
from typing import Any

from dask.system import CPU_COUNT
from distributed import Client, Nanny, Security, SpecCluster, Status, nanny
from distributed.process import AsyncProcess
from distributed.scheduler import DEFAULT_EXTENSIONS
from distributed.spans import SpansSchedulerExtension
from distributed.system import MEMORY_LIMIT
from distributed.utils import format_dashboard_link
from tornado.ioloop import PeriodicCallback

from emseg.errors import InputError
from emseg_workflows.access import link_with
from emseg_workflows.clusters.certificates import run_security
from emseg_workflows.clusters.guard import GuardedScheduler, SilentWorker
from emseg_workflows.clusters.lifeline import TyingName
from emseg_workflows.clusters.lifetime import START, StillbornError, Tell, closed_at_last, started, untold
from emseg_workflows.clusters.private_folder import private_folder

LOOPBACK = "127.0.0.1"
DASHBOARD_PORT = 8787
FAR = ("SSH_CONNECTION", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID")
"""Variables that processes have which were started from another machine."""
LOOK = 2.0
"""Seconds between two looks for workers that are lost."""
DEATH = 60
"""Seconds for which a worker on another host looks for its scheduler."""
STILLBORN = 10
"""Workers that may be lost in a row with none at work; then there is no hope."""
WORKER = "emseg_workflows.clusters.worker"
"""The module that a worker on another host runs."""
LAST = 10.0
"""Seconds for what is left of a cluster whose workers did not close."""
GIVE_UP = 20.0
"""Seconds without a process after which a nanny is taken for lost."""


def default_workers(threads: int) -> int:
    """Worker processes that keep each core this process may use busy, with this many threads per predictor."""
    return max(1, int(CPU_COUNT) // max(1, threads))


def workers_within(needed: int) -> int:
    """Worker processes that have a core, and so many bytes of memory, each; at least one."""
    return max(1, min(default_workers(1), int(MEMORY_LIMIT) // needed))


def memory_share(threads: int) -> int:
    """Bytes of this machine's memory for each of its `default_workers`."""
    return int(MEMORY_LIMIT) // default_workers(threads)


@dataclass(frozen=True, slots=True)
class Elastic:
    """How the number of workers follows the number of blocks that are left."""

    least: int
    """Workers that stay, though there is nothing to do for them."""
    first: int
    """Workers to begin with."""


@contextmanager
def local_cluster(
    workers: int,
    blocks_in_flight: int,
    host: str = LOOPBACK,
    security: Security | None = None,
    elastic: Elastic | None = None,
    tell: Tell = untold,
) -> Iterator[Client]:
    """A client of a new cluster with this many worker processes; its threads are the blocks in flight.

    Scheduler and workers listen on the address ``host`` alone, in TLS that nobody joins without the certificate of
    ``security``; without one, nobody but this user's processes here. The dashboard listens on loopback always, and is seen
    by whoever has its link. Each worker has an equal share of this machine's memory, and is started anew when it
    takes more. SIGINT and SIGTERM do not reach the workers: they are for the caller to heed. What cannot be ended in time
    at the end is told, and left to the system.

    Raises
    ------
    InputError
        If ``host`` is not an address of this machine, there is no place for temporary files, or a worker does not come up.
    """
    _check_own(host)
    with ExitStack() as held:
        folder = held.enter_context(private_folder())
        security = security or held.enter_context(run_security(folder / "tls"))
        options = {
            "host": host,
            "security": security,
            "local_directory": str(folder),
            "nthreads": blocks_in_flight,
            "memory_limit": MEMORY_LIMIT // workers,
            "death_timeout": START,
            "dashboard": False,
            "silence_logs": logging.CRITICAL,
        }
        with signals_held_back():
            spec = {name: {"cls": SturdyNanny, "options": options} for name in range(workers)}
            cluster = started(lambda: GuardedCluster(spec, host, security, folder, elastic))
            held.enter_context(closed_at_last(cluster, tell))
            client = held.enter_context(closed_at_last(Client(cluster), tell))
        yield client


def worker_command(client: Client, blocks_in_flight: int) -> str:
    """The command line that adds a worker process on another host to a `local_cluster` with certificate files.

    The other host must see this Python environment and the files under the same paths.
    """
    words = [sys.executable, "-m", WORKER, client.scheduler_info()["address"]]
    return shlex.join([*words, *worker_options(client.security, blocks_in_flight)])


def worker_options(security: Any, blocks_in_flight: int) -> list[str]:
    """Options of `WORKER` on another host that sees the certificate's files."""
    options = {
        "--tls-ca-file": security.tls_ca_file,
        "--tls-cert": security.tls_worker_cert,
        "--tls-key": security.tls_worker_key,
        "--nthreads": blocks_in_flight,
        "--worker-class": worker_class_name(),
        "--death-timeout": DEATH,
    }
    return ["--no-dashboard", *(str(word) for option in options.items() for word in option)]


def worker_class_name() -> str:
    """What the command ``dask worker`` calls the class of workers."""
    return f"{SilentWorker.__module__}.{SilentWorker.__qualname__}"


def tunnel_command(client: Client) -> str:
    """The command line that brings the dashboard of a `local_cluster` to the same port of the machine you sit at."""
    port = client.scheduler_info()["services"]["dashboard"]
    return shlex.join(["ssh", "-N", "-L", f"{port}:{LOOPBACK}:{port}", socket.gethostname()])


def far_away() -> bool:
    """Whether the user probably sits at another machine: this process came by SSH, or runs in a batch job."""
    return any(os.environ.get(name) for name in FAR)


@contextmanager
def running_cluster(address: str, tls: tuple[Path, Path, Path] | None = None, tell: Tell = untold) -> Iterator[Client]:
    """A client of a Dask cluster that somebody else has started, which may want an authority, a certificate and its key.

    Raises
    ------
    InputError
        If no scheduler answers at the address.
    """
    try:
        client = Client(address, timeout="20s", security=None if tls is None else _security_of(*tls))
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address} ({error}): check the address") from error
    with closed_at_last(client, tell):
        yield client


class TiedProcess(AsyncProcess):
    """The process of a worker, which ends with this one from its first moment on."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)  # type: ignore[no-untyped-call]
        self._process.name = TyingName(self._process.name)


nanny.AsyncProcess = TiedProcess  # type: ignore[attr-defined]  # a nanny cannot be told otherwise


class SturdyNanny(Nanny):
    """A nanny that survives the death of a worker that is just starting, and does not wait for one that cannot be ended.

    Its workers serve no HTTP.

    distributed's has one place for its worker's process, in which a start waits for word from that process. If it dies
    first, and the next one is started in the same place, the two starts take each other's messages, and one waits for ever.
    """

    left = ""
    """What is left to the system, as it was not gone in time."""
    _ended_with: int | None = None

    def __init__(self, scheduler: str, **options: Any) -> None:
        super().__init__(scheduler, worker_class=SilentWorker, **options)

    async def instantiate(self) -> Status:
        if self.process is not None and self.process.status in (Status.stopped, Status.failed):
            self.process = None
        self._ended_with = None
        status = await super().instantiate()
        if status != Status.running and self._ended_with is not None:
            raise StillbornError(self._ended_with)
        return status

    async def kill(self, timeout: float = 5, reason: str = "nanny-kill") -> None:
        """Stop the worker process; when this nanny closes, that never fails."""
        try:
            await super().kill(timeout, reason)
        except Exception:
            if self.status != Status.closing:
                raise
            self.abandon()

    def abandon(self) -> None:
        """Kill the worker process, and wait no longer."""
        process = self.process.process if self.process is not None else None
        if process is not None and process.is_alive():
            self.left = f"process {process.pid}"
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def _on_worker_exit_sync(self, exitcode: int) -> None:
        self._ended_with = exitcode
        super()._on_worker_exit_sync(exitcode)  # type: ignore[no-untyped-call]


class BriefSpans(SpansSchedulerExtension):
    """Sums of what tasks took, for the dashboard, without an entry for each task.

    distributed's keeps the metadata of each submission for ever, and each block is one.
    """

    def observe_tasks(self, tss: Iterable[Any], **_: Any) -> dict[Any, dict[Any, Any]]:  # type: ignore[override]
        """The annotations of tasks that the scheduler has learnt of; of them, the groups are kept, which are few."""
        return super().observe_tasks(tss, code=(), span_metadata={})  # type: ignore[typeddict-item]


class GuardedCluster(SpecCluster):
    """A scheduler in this process, and workers anywhere; all HTTP is on loopback, wherever they are.

    Workers that are lost for good are replaced: a nanny whose first worker dies while it starts gives up, in silence.
    """

    lasting = False
    """Whether a worker that leaves is replaced by one with more time."""

    left: tuple[str, ...] = ()
    """Workers that were not gone in time, and are left to the system."""

    _elastic: Elastic | None = None

    def __init__(
        self, workers: dict[Any, Any], host: str, security: Security, folder: Path, elastic: Elastic | None = None
    ) -> None:
        """`workers` has a class and its options for the name of each worker that there may be at once; in `folder` is room."""
        self._elastic, self._most = elastic, workers
        scheduler = {
            "host": host,
            "security": security,
            "local_directory": str(folder),
            "dashboard": True,
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
        """Why no more workers are to be hoped for; empty while they are."""
        if self._stillborn < max(STILLBORN, 3 * len(self.worker_spec)):
            return ""
        return f"{self._stillborn} workers in a row ended before one was at work: look into their logs"

    def stop_growing(self) -> None:
        """Replace no worker any more."""
        self.sync(self._stop_watch)  # type: ignore[no-untyped-call]

    async def _stop_watch(self) -> None:
        self._watch.stop()

    def resize(self, useful: int, idle: set[str]) -> set[str]:
        """The number of workers is fitted to how many are of use; which of the idle ones, by address, are no longer wanted."""
        if self._elastic is None:
            return set()
        gone: set[str] = self.sync(self._resize, max(self._elastic.least, useful), idle)  # type: ignore[no-untyped-call]
        return gone

    async def _resize(self, wanted: int, idle: set[str]) -> set[str]:
        scheduler: Any = self.scheduler
        arrived = {worker.name: worker.address for worker in scheduler.workers.values()}
        spare = [name for name in self.worker_spec if arrived.get(name) is None or arrived[name] in idle]
        spare.sort(key=arrived.__contains__)  # first those that have not come yet
        going = spare[: max(0, len(self.worker_spec) - wanted)]
        for name in going:
            del self.worker_spec[name]
        missing = [name for name in self._most if name not in self.worker_spec]
        for name in missing[: max(0, wanted - len(self.worker_spec))]:
            self.worker_spec[name] = self._most[name]
        return {arrived[name] for name in going if name in arrived}

    async def _start(self) -> None:
        # Another run may take the dashboard's usual port at the same moment; any other will do.
        warnings.filterwarnings("ignore", message=r"Port \d+ is already in use")
        self._dead_since: dict[Any, float] = {}
        self._stillborn = 0
        self._watch = PeriodicCallback(self._replace_lost, 1000 * LOOK)
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
        """Wait no longer for what did not close: end the workers at once, and close the rest."""
        for worker in self.workers.values():
            with suppress(Exception):
                worker.abandon()
            worker.status = Status.closed
        self.workers.clear()
        self.worker_spec.clear()
        self.status = Status.running
        with suppress(Exception, asyncio.CancelledError):
            self.close(timeout=LAST)
        self.status = Status.closed

    async def _replace_lost(self) -> None:
        lost = await self._lost()
        self._stillborn = 0 if self.scheduler_info["workers"] else self._stillborn + len(lost)
        if self.problem:
            self._watch.stop()
            return
        for name in lost & self.workers.keys():
            worker = self.workers.pop(name)
            if worker.status not in (Status.closed, Status.failed):
                await worker.close()
        if self.worker_spec.keys() != self.workers.keys() and self.status == Status.running:
            with suppress(Exception):  # one that does not start is tried again at the next look
                await self._correct_state()  # type: ignore[no-untyped-call]

    async def _lost(self) -> set[Any]:
        """Names of workers that do not come back by themselves."""
        dead = {name for name, worker in self.workers.items() if not worker.is_alive()}
        self._dead_since = {name: self._dead_since.get(name, monotonic()) for name in dead}
        given_up = {name for name, since in self._dead_since.items() if monotonic() > since + GIVE_UP}
        return given_up | {name for name in dead if self.workers[name].status in (Status.closed, Status.failed)}

    @property
    def token(self) -> str:
        """What lets in to the dashboard."""
        scheduler: Any = self.scheduler
        return str(scheduler.guard.token)

    @property
    def dashboard_link(self) -> str:
        """The link to the dashboard's first page, with the token."""
        return link_with(format_dashboard_link(LOOPBACK, self.scheduler_info["services"]["dashboard"]), self.token)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Threads and processes that are started within the ``with`` never get SIGINT and SIGTERM.

    Ctrl-C in a terminal, and a batch system near its limit, signal every process of a job. The driver alone decides
    then; its workers go on with the blocks in hand. A signal that comes meanwhile waits until the end of the ``with``.
    """
    resource_tracker.ensure_running()  # started later, in the event loop's thread, it would let the signals in there
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _security_of(authority: Path, certificate: Path, key: Path) -> Security:
    files = {"tls_ca_file": str(authority), "tls_client_cert": str(certificate), "tls_client_key": str(key)}
    return Security(require_encryption=True, **files)


def _check_own(host: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise InputError(
            f"no scheduler can listen on {host} ({error.strerror or error}): give an address of this machine that others reach"
        ) from error


def free_port(wanted: int) -> int:
    """`wanted` if nothing listens there, else 0, which lets the system choose."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return 0
    return wanted
