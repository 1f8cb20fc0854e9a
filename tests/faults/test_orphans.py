"""Test that no worker outlives its driver, however the driver ends, and that no worker is ended earlier."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from runs import save_volume, texture, worker_processes

from emseg.clusters.local import local_cluster

Start = Callable[..., subprocess.Popen[str]]
PATIENCE = 120
"""Seconds after which a process that still runs counts as left behind."""

CLUSTER = """
import sys, time
from pathlib import Path

if __name__ == "__mp_main__" and "slow" in sys.argv:
    Path("importing").touch()
    time.sleep(3600)

from emseg.clusters import lifetime
from emseg.clusters import local

if "hurry" in sys.argv:
    local.START_SECONDS = lifetime.START_SECONDS = 1.0

if __name__ == "__main__":
    with local.local_cluster(2, 1) as client:
        blocks = [client.submit(time.sleep, 3600, pure=False) for _ in range(2)]
        while len(client.processing()) < 2 or not all(client.processing().values()):
            time.sleep(0.1)
        Path("computing").touch()
        time.sleep(3600)
"""
UNGUARDED = """
from emseg import segment

segment("volume.zarr", "out.zarr", workers=2)
"""
FAILS_IN_WORKERS = """
from emseg.clusters.local import local_cluster

if __name__ != "__main__":
    raise LookupError("there is nothing for a worker here")
with local_cluster(1, 1):
    pass
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a script in a new session."""
    drivers: list[subprocess.Popen[str]] = []

    def start(script: str, *words: str) -> subprocess.Popen[str]:
        (tmp_path / "script.py").write_text(script)
        command = [sys.executable, "script.py", *words]
        drivers.append(subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True))
        return drivers[0]

    yield start
    with drivers[0], suppress(ProcessLookupError):
        os.killpg(drivers[0].pid, signal.SIGKILL)


def wait_for(driver: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def session_of(driver: subprocess.Popen[str]) -> list[int]:
    """Return the processes of a driver's session that still run, whoever their parent is."""
    found = []
    for process in psutil.process_iter():
        try:
            session = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[3]
            if int(session) == driver.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (OSError, psutil.Error):
            pass
    return found


def assert_gone(driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while left := session_of(driver):
        assert time.monotonic() < deadline, [psutil.Process(pid).cmdline() for pid in left]
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("moment", ["starting", "importing", "computing", "suspended", "all suspended"])
def test_nobody_outlives_a_driver_that_is_killed(moment: str, start: Start, tmp_path: Path) -> None:
    driver = start(CLUSTER, *["slow"] * (moment == "importing"))
    if moment == "starting":
        wait_for(driver, lambda: bool(worker_processes(driver.pid)))
    else:
        wait_for(driver, (tmp_path / ("importing" if moment == "importing" else "computing")).exists)
    workers = worker_processes(driver.pid)
    if "suspended" in moment:
        for process in {*workers, *(worker.parent() for worker in workers if moment == "all suspended")}:
            assert process is not None
            assert process.pid != driver.pid
            process.suspend()
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert_gone(driver)


def test_a_worker_that_never_comes_up(start: Start, tmp_path: Path) -> None:
    driver = start(CLUSTER, "slow", "hurry")
    printed = driver.communicate(timeout=PATIENCE)[1]
    assert driver.returncode == 1
    assert "was not ready within 1 s" in printed.splitlines()[-1]
    assert_gone(driver)


def test_a_script_without_the_guard(start: Start, tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", texture((5, 40, 40)))
    driver = start(UNGUARDED)
    (line,) = driver.communicate(timeout=PATIENCE)[1].splitlines()
    assert driver.returncode == 2
    assert line.startswith(f"error: each worker process imports {tmp_path / 'script.py'}")
    assert line.endswith('the two lines `if __name__ == "__main__":` and `    main()`')
    assert_gone(driver)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py", "volume.zarr"]


def test_a_script_that_fails_in_workers(start: Start, tmp_path: Path) -> None:
    driver = start(FAILS_IN_WORKERS)
    printed = driver.communicate(timeout=PATIENCE)[1]
    assert driver.returncode == 1
    assert printed.count("LookupError: there is nothing for a worker here") == 1
    assert "a worker process ended with exit code 1: read what it has printed" in printed.splitlines()[-1]
    assert_gone(driver)


def test_a_worker_that_is_suspended_when_its_cluster_closes() -> None:
    """It is killed, and the ``with`` block ends normally."""
    with local_cluster(2, 1) as client:
        workers = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
        workers[0].suspend()
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1]
