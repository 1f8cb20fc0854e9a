"""A Dask cluster of worker processes on this machine, into which nobody else has a way."""

from __future__ import annotations

import logging
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from dask.system import CPU_COUNT
from distributed import Client, Nanny, Scheduler, Security, SpecCluster, Status
from distributed.system import MEMORY_LIMIT
from distributed.utils import format_dashboard_link
from tornado.ioloop import PeriodicCallback

from emseg.errors import InputError

LOOPBACK = "127.0.0.1"
DASHBOARD_PORT = 8787
LOOK = 2.0
"""Seconds between two looks for workers that are lost."""
GIVE_UP = 20.0
"""Seconds without a process after which a nanny is taken for lost."""


def default_workers(threads: int) -> int:
    """Worker processes that keep each core this process may use busy, with this many threads per predictor."""
    return max(1, int(CPU_COUNT) // threads)


@contextmanager
def local_cluster(
    workers: int, blocks_in_flight: int, host: str = LOOPBACK, security: Security | None = None
) -> Iterator[Client]:
    """A client of a new cluster with this many worker processes; its threads are the blocks in flight.

    Scheduler and workers listen on the address ``host`` alone: in plain TCP on loopback, elsewhere in TLS that nobody
    joins without the certificate of ``security``; without one, nobody else at all. Whatever speaks HTTP knows no login,
    and listens on loopback always. Each worker has an equal share of this machine's memory, and is started anew when it
    takes more. SIGINT and SIGTERM do not reach the workers: they are for the caller to heed.

    Raises
    ------
    InputError
        If ``host`` is not an address of this machine.
    """
    _check_own(host)
    if security is None and host != LOOPBACK:
        security = Security.temporary()
    with ExitStack() as held:
        with _signals_held_back():
            cluster = held.enter_context(_Cluster(workers, blocks_in_flight, host, security))
            client = held.enter_context(Client(cluster))
        yield client


def worker_command(client: Client, blocks_in_flight: int) -> str:
    """The command line that adds a worker process on another host to a `local_cluster` with certificate files.

    The other host must see this Python environment and the files under the same paths.
    """
    security = client.security
    options = {
        "--tls-ca-file": security.tls_ca_file,
        "--tls-cert": security.tls_worker_cert,
        "--tls-key": security.tls_worker_key,
        "--nthreads": blocks_in_flight,
        "--dashboard-address": f"{LOOPBACK}:0",  # else its HTTP server listens everywhere, even without a dashboard
        "--death-timeout": 60,  # seconds after which it no longer looks for a run that has ended
    }
    words = [sys.executable, "-m", "dask", "worker", client.scheduler_info()["address"], "--no-dashboard"]
    return shlex.join(words + [str(word) for option in options.items() for word in option])


def tunnel_command(client: Client) -> str:
    """The command line that brings the dashboard of a `local_cluster` to the same port of the machine you sit at."""
    port = urlsplit(client.dashboard_link).port
    return shlex.join(["ssh", "-N", "-L", f"{port}:{LOOPBACK}:{port}", socket.gethostname()])


@contextmanager
def running_cluster(address: str) -> Iterator[Client]:
    """A client of a Dask cluster that somebody else has started.

    Raises
    ------
    InputError
        If no scheduler answers at the address.
    """
    try:
        client = Client(address, timeout="20s")
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address} ({error}): check the address") from error
    with client:
        yield client


class _Nanny(Nanny):
    """A nanny that survives the death of a worker that is just starting.

    distributed's has one place for its worker's process, in which a start waits for word from that process. If it dies
    first, and the next one is started in the same place, the two starts take each other's messages, and one waits for ever.
    """

    async def instantiate(self) -> Status:
        if self.process is not None and self.process.status in (Status.stopped, Status.failed):
            self.process = None
        return await super().instantiate()


class _Cluster(SpecCluster):
    """A `distributed.LocalCluster` whose HTTP servers are on loopback, wherever its scheduler and workers are.

    A nanny whose first worker dies while it starts gives up for good, in silence; here another one takes its place.
    """

    def __init__(self, workers: int, blocks_in_flight: int, host: str, security: Security | None) -> None:
        scheduler = {
            "host": host,
            "security": security,
            "dashboard": True,
            "dashboard_address": f"{LOOPBACK}:{_free_port(DASHBOARD_PORT)}",
        }
        worker = {
            "host": host,
            "security": security,
            "nthreads": blocks_in_flight,
            "memory_limit": MEMORY_LIMIT // workers,
            "dashboard": False,
            "dashboard_address": f"{LOOPBACK}:0",
            "silence_logs": logging.CRITICAL,
        }
        super().__init__(  # type: ignore[no-untyped-call]
            scheduler={"cls": Scheduler, "options": scheduler},
            workers={name: {"cls": _Nanny, "options": worker} for name in range(workers)},
            security=security,
            silence_logs=logging.CRITICAL,
        )

    async def _start(self) -> None:
        self._dead_since: dict[Any, float] = {}
        self._watch = PeriodicCallback(self._replace_lost, 1000 * LOOK)
        await super()._start()  # type: ignore[no-untyped-call]
        self._watch.start()

    async def _close(self) -> None:
        self._watch.stop()
        await super()._close()  # type: ignore[no-untyped-call]

    async def _replace_lost(self) -> None:
        for name, nanny in list(self.workers.items()):
            if nanny.is_alive():
                self._dead_since.pop(name, None)
            elif nanny.status in (Status.closed, Status.failed):
                del self.workers[name]
            elif monotonic() > self._dead_since.setdefault(name, monotonic()) + GIVE_UP:
                del self.workers[name]
                await nanny.close()
        if self.worker_spec.keys() - self.workers.keys() and self.status == Status.running:
            with suppress(Exception):  # one that does not start is tried again at the next look
                await self._correct_state()  # type: ignore[no-untyped-call]

    @property
    def dashboard_link(self) -> str:
        """Address of the dashboard's first page."""
        return str(format_dashboard_link(LOOPBACK, self.scheduler_info["services"]["dashboard"]))


@contextmanager
def _signals_held_back() -> Iterator[None]:
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


def _check_own(host: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise InputError(
            f"no scheduler can listen on {host} ({error.strerror or error}): give an address of this machine that others reach"
        ) from error


def _free_port(wanted: int) -> int:
    """`wanted` if nothing listens there, else 0, which lets the system choose."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return 0
    return wanted
