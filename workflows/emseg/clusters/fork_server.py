"""Start worker processes as forks of one process that has imported what they need.

The server is started early, and imports while the driver does the same; each worker shares what is imported. The server has
a single thread and computes nothing, so that its forks are like new processes. A worker is forked only if a new process would
find the same environment, import path and working directory as the server did; else a new process is started, as it is where
there is no server, or when the server was killed.

    driver                        server                               worker
    _Fork: pipes        ------>   os.fork()                   ------>  what a spawned process does
    exit code           <------   waits for its forks         <------  exits

The server ends when the driver does, as its socket closes then, and a worker ends with its server, see `lifeline`. There is no
address in the file system to which others could connect.

Everything here needs only the standard library, so that the server is started before anything else is imported.
"""

from __future__ import annotations

import gc
import io
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing import forkserver, popen_forkserver, reduction, resource_tracker, spawn, util
from multiprocessing.context import set_spawning_popen
from multiprocessing.popen_spawn_posix import Popen as Spawn
from pathlib import Path
from typing import Any, NoReturn

from emseg.clusters.lifeline import TyingName, wake_at_death_of_parent
from emseg_core.machine import raise_file_limit

NANNY_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "6640",
}
"""What a nanny adds to the environment of its workers, unless it is configured otherwise, where it is not set yet."""
PARENT_VARIABLE = "__DASK_PARENT_PID"
"""Variable to which it sets the number of its process."""
START = "import sys; sys.path[:] = {path!r}; from emseg.clusters.fork_server import serve; serve({descriptor})"
"""Program of the server."""
MODULES = (
    "emseg.clusters.local",
    "emseg.executors.dask",
    "emseg.tasks.labelling",
    "numpy.random",
    "prometheus_client",
    "tornado.platform.asyncio",
)
"""What the server imports for its forks; none of it starts a thread, as OpenVINO and torch do."""
MAX_DESCRIPTORS = 64
"""Maximum number of open files that a worker inherits."""
NUMBER = struct.Struct("q")
"""A process id or an exit code."""


class ForkServer:
    """A process whose forks are workers, started by this one."""

    def __init__(self) -> None:
        """Start the process.

        Raises
        ------
        OSError
            If there can be no more processes or open files.
        """
        self._environment = {**NANNY_ENVIRONMENT, **os.environ, PARENT_VARIABLE: str(os.getpid())}
        self._path, self._folder = [*sys.path], _folder()
        self._channel, theirs = socket.socketpair()
        program = START.format(path=self._path, descriptor=theirs.fileno())
        flags = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
        with theirs, signals_blocked():
            self._process = subprocess.Popen(
                [spawn.get_executable(), "-P", *flags, "-c", program],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    @property
    def pid(self) -> int:
        """Number of its process."""
        return self._process.pid

    @property
    def fits(self) -> bool:
        """Whether a fork would find what a new process finds."""
        path = sys.path[-len(self._path) :]  # Dask puts folders of its own in front
        same = (dict(os.environ), path, _folder()) == (self._environment, self._path, self._folder)
        return same and self._process.poll() is None

    def fork(self, descriptors: Sequence[int]) -> None:
        """Ask for a fork that inherits these descriptors: of its data, of its exit code, of the resource tracker, and others.

        Raises
        ------
        OSError
            If the server has ended.
        """
        socket.send_fds(self._channel, [b"\0"], descriptors)

    def stop(self) -> None:
        """End the process, and its workers."""
        self._channel.close()
        self._process.kill()
        self._process.wait()


_server: ForkServer | None = None
_users = 0
_lock = threading.Lock()


@contextmanager
def fork_server() -> Iterator[None]:
    """Have workers forked where that is possible, until the end of the ``with``; all that overlap share one server."""
    global _server, _users  # noqa: PLW0603
    with _lock:
        _users += 1
        if _server is None and sys.platform == "linux":  # elsewhere, libraries of the system may not be used in a fork
            with suppress(OSError):  # then each worker is a new process, or the reason is reported when it starts
                _server = ForkServer()
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _server is not None and not _users:
                _server.stop()
                _server = None


def launch(process: Any) -> Any:
    """Start a process of multiprocessing that ends with its parent: a fork of the server if it fits, else a new process.

    Parameters
    ----------
    process
        A process object.

    Returns
    -------
    Popen
        What multiprocessing knows a started process by.
    """
    server = _server
    if server is not None and server.fits:
        process.name = TyingName(process.name, server.pid)
        with suppress(OSError, EOFError):  # the server has just been killed
            return _Fork(process, server)
    process.name = TyingName(process.name, os.getpid())
    return Spawn(process)


class _Fork(popen_forkserver.Popen):
    """What multiprocessing knows a fork of our server by."""

    _fds: list[int]

    def __init__(self, process: Any, server: ForkServer) -> None:
        self._server = server
        super().__init__(process)

    def _launch(self, process: Any) -> None:
        data = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process.name), data)
            reduction.dump(process, data)
        finally:
            set_spawning_popen(None)
        reader, writer = os.pipe()
        self.sentinel, status = os.pipe()
        kept = os.dup(writer)  # open for as long as the parent of the process lives
        self.finalizer = util.Finalize(self, _close, (kept, self.sentinel))
        tracker: Any = resource_tracker.getfd()
        try:
            self._server.fork([reader, status, tracker, *self._fds])
        except OSError:
            os.close(writer)
            raise
        finally:
            os.close(reader)
            os.close(status)
        with os.fdopen(writer, "wb") as stream:
            stream.write(data.getbuffer())
        self.pid = _received(self.sentinel)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit code, and None if the process still runs; one whose server was killed has ended with it."""
        if self.returncode is None and (flag != os.WNOHANG or select.select([self.sentinel], [], [], 0)[0]):
            try:
                self.returncode = _received(self.sentinel)
            except (OSError, EOFError):
                self.returncode = -signal.SIGKILL
        return self.returncode


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM in threads and processes that are started within the ``with``.

    Ctrl-C in a terminal, and a batch system near its limit, signal every process of a job. The driver alone decides then; its
    workers continue with the blocks in progress. A signal that arrives meanwhile is handled after the ``with``.

    Yields
    ------
    None
        While the signals are blocked.
    """
    resource_tracker.ensure_running()  # started later, in the event loop's thread, it would unblock the signals there
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _folder() -> Path | None:
    """Return the working directory; None if it was removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def _received(descriptor: int) -> int:
    """Return a number that the server has sent."""
    if len(number := os.read(descriptor, NUMBER.size)) < NUMBER.size:
        raise EOFError("the fork server has ended")
    return int(NUMBER.unpack(number)[0])


def serve(descriptor: int) -> None:
    """Import modules, and fork a worker for each request, until the driver ends: what the server's process does.

    Parameters
    ----------
    descriptor
        Socket to the driver.
    """
    wake_at_death_of_parent()
    raise_file_limit()  # the driver may do so later
    for module in MODULES:
        import_module(module)
    gc.freeze()  # else the first collection in each fork copies all of it
    channel = socket.socket(fileno=descriptor)
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    reports: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([descriptor, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _report(reports)
        if descriptor in ready:
            _, descriptors, _, _ = socket.recv_fds(channel, 1, MAX_DESCRIPTORS)
            if not descriptors:
                return
            data, status, *inherited = descriptors
            pid = os.fork()
            if not pid:
                _close(channel.detach(), woken, wakes, status, *reports.values())
                _become_worker(data, inherited)
            reports[pid] = status
            _send(status, pid)
            _close(data, *inherited)


def _report(reports: dict[int, int]) -> None:
    """Send the exit codes of workers that have ended."""
    while reports:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        _send(reports[pid], os.waitstatus_to_exitcode(status))
        os.close(reports.pop(pid))


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _send(descriptor: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the driver no longer waits for this worker
        os.write(descriptor, NUMBER.pack(number))


def _become_worker(data: int, inherited: Sequence[int]) -> NoReturn:
    """Do what a spawned process does, and end."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        tracker: Any = resource_tracker
        inherits: Any = forkserver
        tracker._resource_tracker._fd, *inherits._forkserver._inherited_fds = inherited
        code = spawn._main(data, os.dup(data))
    except EOFError:
        pass  # the driver ended first
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            util._flush_std_streams()  # type: ignore[attr-defined]
        os._exit(code)
