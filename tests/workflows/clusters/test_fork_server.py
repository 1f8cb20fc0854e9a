"""Test that forked workers are like spawned ones, and that neither they nor their server are left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, Nanny
from runs import worker_processes

from emseg.clusters import fork_server as module
from emseg.clusters.fork_server import NANNY_ENVIRONMENT, PARENT_VARIABLE, fork_server, launch
from emseg.clusters.local import local_cluster

PATIENCE = 120
"""Maximum seconds to wait on a busy machine."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


def parents(client: Client) -> set[int]:
    return set(client.run(os.getppid).values())


def servers() -> list[psutil.Process]:
    """Return the fork servers of this process."""
    return [child for child in psutil.Process().children() if "fork_server" in " ".join(child.cmdline())]


def environments(client: Client) -> list[dict[str, str]]:
    return list(client.run(lambda: dict(os.environ)).values())


def blocked(client: Client) -> list[set[int]]:
    """Return the signals that each worker blocks."""
    return list(client.run(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [])).values())


def test_workers_are_forked_from_one_thread() -> None:
    with local_cluster(2, 1) as client:
        (server,) = servers()
        assert parents(client) == {server.pid}
        assert server.num_threads() == 1
        assert {worker.pid for worker in worker_processes(os.getpid())} == set(client.run(os.getpid).values())
        assert all(signals >= {signal.SIGINT, signal.SIGTERM} for signals in blocked(client))
    assert not servers()


def test_the_environment_is_that_of_spawned_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server starts before Dask's configuration can be read: if it adds something else, nothing is forked."""
    for name in NANNY_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a nanny adds its folder, and this one is never closed

    async def added() -> dict[str, str]:
        return Nanny("tcp://127.0.0.1:1").pre_spawn_env

    assert asyncio.run(added()) == NANNY_ENVIRONMENT
    with local_cluster(1, 1) as client:
        (found,) = environments(client)
        assert found.items() >= NANNY_ENVIRONMENT.items()
        assert parents(client) == {servers()[0].pid}


def test_two_clusters_share_the_server() -> None:
    with fork_server():
        (server,) = servers()
        for _ in range(2):
            with local_cluster(1, 1) as client:
                assert parents(client) == {server.pid}
        assert servers() == [server]
    assert not psutil.pid_exists(server.pid)


def test_the_server_lives_as_long_as_the_last_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # clusters that do not end in turn leave their folders there
    first, second = local_cluster(1, 1), local_cluster(1, 1)
    with dask.config.set(scheduler=None):  # clients that do not end in turn leave it set
        first.__enter__()
        client = second.__enter__()
        try:
            (server,) = servers()
            first.__exit__(None, None, None)
            assert servers() == [server]
            assert parents(client) == {server.pid}
        finally:
            second.__exit__(None, None, None)
    assert not servers()


@pytest.mark.parametrize("change", ["environment", "folder", "path"])
def test_what_changes_after_the_server_started_is_seen_by_workers(
    change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with fork_server():
        if change == "environment":
            monkeypatch.setenv("EMSEG_TEST_COLOUR", "green")
        elif change == "folder":
            monkeypatch.chdir(tmp_path)
        else:
            monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        with local_cluster(1, 1) as client:
            assert parents(client) == {os.getpid()}
            (found,) = environments(client)
            assert found.get("EMSEG_TEST_COLOUR") == os.environ.get("EMSEG_TEST_COLOUR")
            assert client.run(os.getcwd).popitem()[1] == str(Path.cwd())
            assert client.run(lambda: [*sys.path]).popitem()[1][-1] == sys.path[-1]


def test_workers_end_with_a_server_that_is_killed_and_others_are_started() -> None:
    with local_cluster(2, 1) as client:
        (server,) = servers()
        before = worker_processes(os.getpid())
        assert len(before) == 2
        server.kill()
        assert not psutil.wait_procs(before, timeout=PATIENCE)[1]
        deadline = monotonic() + PATIENCE
        while len(found := client.run(os.getppid, on_error="ignore")) < 2 or set(found.values()) != {os.getpid()}:
            assert monotonic() < deadline
            sleep(0.1)
        assert client.submit(sum, [1, 2]).result() == 3


def test_without_a_server_workers_are_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(module, "ForkServer", full)
    with local_cluster(1, 1) as client:
        assert parents(client) == {os.getpid()}


@pytest.mark.parametrize(
    ("target", "number", "code"), [(sys.exit, 0, 0), (os._exit, 7, 7), (signal.raise_signal, signal.SIGKILL, -signal.SIGKILL)]
)
def test_the_exit_code_of_a_fork_is_told(
    target: Callable[[int], object], number: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fork_server():
        process: Any = get_context("spawn").Process(target=target, args=(number,))
        process._Popen = launch
        for name, value in {**NANNY_ENVIRONMENT, **os.environ, PARENT_VARIABLE: str(os.getpid())}.items():
            monkeypatch.setenv(name, value)
        process.start()
        assert type(process._popen).__module__ == module.__name__
        process.join(PATIENCE)
        assert process.exitcode == code


EARLY = """
import sys
from emseg.clusters.fork_server import fork_server
with fork_server():
    print("started", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_server_ends_with_its_driver_also_while_it_imports(killed: bool) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", EARLY], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        family = psutil.Process(driver.pid).children(recursive=True)
        assert any("fork_server" in " ".join(process.cmdline()) for process in family)
        if killed:
            driver.kill()
        _, printed = driver.communicate("\n", timeout=PATIENCE)
    assert not psutil.wait_procs(family, timeout=PATIENCE)[1]
    assert not printed


def test_a_module_in_the_working_directory_shadows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of data may belong to someone else."""
    for name in ("emseg", "zarr", "select"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w')")
    monkeypatch.chdir(tmp_path)
    with local_cluster(1, 1) as client:
        assert parents(client) == {servers()[0].pid}
    assert not (tmp_path / "imported").exists()
