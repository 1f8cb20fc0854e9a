"""Test that no one else can access a cluster, that signals do not reach its workers, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from dashboards import Door
from distributed import Client, Security, Worker
from distributed.comm.core import connect
from runs import own_address, worker_processes

from emseg.clusters import local
from emseg.clusters.certificates import run_security
from emseg.clusters.local import (
    DASHBOARD_PORT,
    LOOPBACK,
    Elastic,
    local_cluster,
    tunnel_command,
    worker_command,
)
from emseg_core.errors import InputError
from emseg_core.machine import usable_memory

PATIENCE = 120
"""Maximum seconds to wait on a busy machine."""


OWN = own_address()


def listening() -> set[tuple[str, int]]:
    """Return the address and port of every listening socket of this process and its children."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    connections = [connection for process in family for connection in process.net_connections("inet")]
    return {tuple(connection.laddr) for connection in connections if connection.status == psutil.CONN_LISTEN}


def workers(client: Client) -> dict[str, int]:
    """Return the address and process of each worker."""
    return dict(client.run(os.getpid))


def wait_until(predicate: Callable[[], bool]) -> None:
    end = monotonic() + PATIENCE
    while not predicate():
        assert monotonic() < end
        sleep(0.1)


def knock(address: str, security: Security) -> None:
    """Open and close a connection as a client does."""

    async def open_and_close() -> None:
        comm = await connect(address, timeout=2, **security.get_connection_args("client"))
        await comm.close()

    asyncio.run(open_and_close())


@contextmanager
def refused() -> Iterator[None]:
    """Check that a connection is refused within the ``with`` block, at any step and with the message of any layer."""
    with pytest.raises(OSError):  # noqa: PT011
        yield


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local_cluster(2, 2) as client:
        yield client


@pytest.fixture(scope="module")
def abroad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Connect to a cluster that workers on other hosts may join."""
    with run_security(tmp_path_factory.mktemp("abroad") / "run") as security, local_cluster(1, 2, OWN, security) as client:
        yield client


def test_only_loopback_listens(client: Client) -> None:
    assert len(listening()) == 6  # scheduler, dashboard, and for each of two workers nanny, tasks
    assert {host for host, _ in listening()} <= {LOOPBACK, "::1"}


@pytest.mark.parametrize(("family", "everywhere"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")])
def test_an_open_door_is_found(family: socket.AddressFamily, everywhere: str) -> None:
    """The other tests rely on this scan."""
    with socket.socket(family) as door:
        door.bind((everywhere, 0))
        door.listen()
        assert everywhere in {host for host, _ in listening()}


def test_http_is_on_loopback_also_where_the_cluster_is_not(client: Client, abroad: Client) -> None:
    port = abroad.scheduler_info()["services"]["dashboard"]
    assert (LOOPBACK, port) in listening()
    assert (OWN, port) not in listening() or OWN == LOOPBACK
    assert {host for host, _ in listening()} <= {LOOPBACK, "::1", OWN}


def test_the_dashboard_answers(client: Client, abroad: Client) -> None:
    for cluster in (client, abroad):
        assert urlsplit(cluster.dashboard_link).hostname == LOOPBACK
        door = Door.of(cluster.dashboard_link)
        assert "<html" in door.text("/status")
        assert door.ask("/status").status == 403


def test_a_taken_dashboard_port_is_no_obstacle() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((LOOPBACK, DASHBOARD_PORT))
            taken.listen()
        except OSError:
            pass  # another process has it, which is just as good
        with local_cluster(1, 1) as client:
            assert f":{DASHBOARD_PORT}/" not in client.dashboard_link


def test_workers_serve_nothing(client: Client) -> None:
    assert [about["services"] for about in client.scheduler_info()["workers"].values()] == [{}, {}]


def test_strangers_are_refused(client: Client, abroad: Client, tmp_path: Path) -> None:
    """Scheduler, workers and nannies refuse clients without certificates or with those of another run."""
    with run_security(tmp_path / "other") as other:
        for cluster, host, doors in ((client, LOOPBACK, 5), (abroad, OWN, 3)):
            info = cluster.scheduler_info()
            addresses = [info["address"], *info["workers"], *(about["nanny"] for about in info["workers"].values())]
            assert len(addresses) == doors
            for address in addresses:
                assert address.startswith(f"tls://{host}:")
                knock(address, cluster.security)
                with refused():
                    knock(address, other)
                with refused():
                    knock(address.replace("tls", "tcp"), Security())


def test_the_key_is_in_a_file_of_its_user_alone(client: Client) -> None:
    """The command lines and environments of processes do not contain it."""
    key = Path(client.security.tls_worker_key)
    (line,) = key.read_text().splitlines()[1:-1][:1]
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        assert line not in " ".join([*process.cmdline(), *process.environ().values()])
    about = [path.stat() for path in (key, key.parent, key.parents[1])]
    assert [stat.S_IMODE(one.st_mode) for one in about] == [0o600, 0o700, 0o700]
    assert {one.st_uid for one in about} == {os.geteuid()}


def test_strange_clients_are_refused(abroad: Client, tmp_path: Path) -> None:
    address = abroad.scheduler_info()["address"]
    with run_security(tmp_path / "other") as other:
        for where, security in ((address.replace("tls", "tcp"), Security()), (address, other)):
            with refused():
                Client(where, security=security, timeout="2s")
    with Client(address, security=abroad.security, timeout="10s", set_as_default=False) as friend:
        assert friend.submit(sum, (1, 2)).result() == 3


def test_a_worker_on_another_host_joins(tmp_path: Path) -> None:
    """It uses the printed command, has its own private folder, and ends with the run."""
    there = tmp_path / "there"
    there.mkdir()

    def room(dask_worker: Worker) -> str:
        return dask_worker.local_directory

    with run_security(tmp_path / "run") as security, local_cluster(1, 2, OWN, security) as client:
        mine = set(workers(client))
        command = shlex.split(worker_command(client, 2))
        other = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(there)})
        client.wait_for_workers(2, timeout=PATIENCE)
        (joined,) = set(workers(client)) - mine
        pid = client.submit(os.getpid, workers=[joined], allow_other_workers=False).result()
        assert pid in {child.pid for child in psutil.Process(other.pid).children(recursive=True)}
        (private,) = there.iterdir()
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert Path(client.run(room, workers=[joined])[joined]).is_relative_to(private)
        about = client.scheduler_info(n_workers=-1)["workers"][joined]
        assert about["nthreads"] == 2
        assert about["services"] == {}, "nor does it serve anything"
        knock(joined, security)
        with refused():
            knock(joined.replace("tls", "tcp"), Security())
    assert other.wait(PATIENCE) == 0
    assert list(tmp_path.iterdir()) == [there]
    assert not list(there.iterdir())


def test_the_tunnel_to_the_dashboard(abroad: Client) -> None:
    port = urlsplit(abroad.dashboard_link).port
    assert tunnel_command(abroad) == f"ssh -N -L {port}:{LOOPBACK}:{port} {socket.gethostname()}"


def test_who_sits_elsewhere_is_told_of_the_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in local.REMOTE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not local.is_remote()
    for name in local.REMOTE_VARIABLES:
        with monkeypatch.context() as here:
            here.setenv(name, "1")
            assert local.is_remote()


def test_workers_share_the_memory(client: Client) -> None:
    """A worker that exceeds its share is restarted."""
    for about in client.scheduler_info()["workers"].values():
        assert about["memory_limit"] == usable_memory() // 2
    assert client.cluster is not None
    for nanny in client.cluster.workers.values():
        assert nanny.memory_manager.memory_limit == usable_memory() // 2
        assert 0.9 < nanny.memory_manager.memory_terminate_fraction <= 1


def test_workers_go_when_they_are_of_no_use_and_come_back_when_they_are() -> None:
    """Only idle workers are stopped, and the minimum number always remains."""
    with local_cluster(3, 1, elastic=Elastic(least=1, first=2)) as client:
        cluster: Any = client.cluster
        first = set(workers(client))
        assert len(first) == 2
        assert cluster.resize(1, set()) == set()
        assert cluster.resize(2, first) == set()
        one, other = sorted(first)
        assert cluster.resize(0, {one, other}) in ({one}, {other})
        wait_until(lambda: len(client.nthreads()) == 1)
        assert set(client.nthreads()) < first
        assert cluster.resize(9, set()) == set()
        wait_until(lambda: len(client.nthreads()) == 3)
        assert client.submit(sum, [1, 2]).result() == 3


def assert_undisturbed(client: Client) -> None:
    """Check that workers receive signals while they compute, and continue."""

    def block() -> int:
        sleep(0.5)
        return os.getpid()

    before = workers(client)
    blocks = [client.submit(block, workers=[worker], pure=False) for worker in before]
    for pid in before.values():
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert client.gather(blocks) == list(before.values())
    assert workers(client) == before


def test_signals_do_not_reach_workers(client: Client) -> None:
    assert_undisturbed(client)


def test_nor_one_that_was_started_anew(client: Client) -> None:
    victim, *_ = workers(client).values()
    os.kill(victim, signal.SIGKILL)
    while victim in (now := set(client.run(os.getpid, on_error="ignore").values())) or len(now) < 2:
        sleep(0.1)
    assert_undisturbed(client)


@pytest.mark.timeout(120)
def test_a_worker_that_dies_while_it_starts_is_replaced() -> None:
    """Its nanny gives up in that case."""
    with local_cluster(1, 1) as client:
        for _ in range(6):
            for process in worker_processes(os.getpid()):
                with suppress(psutil.Error):  # it has ended by itself
                    process.kill()
            sleep(0.3)
        client.wait_for_workers(1, timeout=PATIENCE)
        while not (found := client.run(os.getpid, on_error="ignore")):
            sleep(0.1)
        assert len(found) == 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [1, local.FIRST_STARTS])
def test_a_worker_of_a_new_cluster_is_started_again(kills: int) -> None:
    """Whatever kills it once, such as a lack of memory that has passed, ends no run."""
    others = {process.pid for process in worker_processes(os.getpid())}
    killed: set[int] = set()
    ended = threading.Event()

    def killer() -> None:
        while len(killed) < kills and not ended.wait(0.02):
            for process in worker_processes(os.getpid()):
                with suppress(psutil.Error):
                    if process.pid not in others | killed:
                        process.kill()
                        killed.add(process.pid)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        if kills < local.FIRST_STARTS:
            with local_cluster(1, 1) as client:
                assert client.submit(sum, [1, 2]).result() == 3
        else:
            with pytest.raises(InputError, match="ended by SIGKILL"), local_cluster(1, 1):
                pytest.fail("no worker was left")
    finally:
        ended.set()
        thread.join()
    assert len(killed) == kills


def test_nor_those_of_a_caller_in_another_thread() -> None:
    raised: list[BaseException] = []

    def caller() -> None:
        try:
            with local_cluster(1, 1) as client:
                assert_undisturbed(client)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=caller)
    thread.start()
    thread.join()
    assert not raised


def test_signals_reach_the_caller(client: Client) -> None:
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


BAD_DAY = """
import os, signal, sys, time
from emseg.clusters.local import local_cluster

with local_cluster(2, 1) as client:
    victim, _ = client.run(os.getpid).values()
    os.kill(victim, signal.SIGKILL)
    while victim in (now := set(client.run(os.getpid, on_error="ignore").values())) or len(now) < 2:
        time.sleep(0.1)
    blocks = [client.submit(time.sleep, 60, pure=False) for _ in range(2)]
    print("two blocks in hand", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("driver_dies", [False, True])
def test_a_bad_day_ends_in_silence(driver_dies: bool) -> None:
    """A worker has died and was restarted, and the run ends with blocks in progress."""
    pipe = subprocess.PIPE
    # the process that tracks semaphores says which ones a killed driver has left
    command = [sys.executable, *(["-W", "ignore:resource_tracker"] if driver_dies else []), "-c", BAD_DAY]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        family = psutil.Process(driver.pid).children(recursive=True)
        assert len(family) == 4  # two workers, the server that forked them, and the process that tracks their semaphores
        if driver_dies:
            driver.kill()
        _, printed = driver.communicate("\n", timeout=PATIENCE)
    assert not psutil.wait_procs(family, timeout=PATIENCE)[1]
    assert driver.returncode == (-signal.SIGKILL if driver_dies else 0)
    assert not printed
