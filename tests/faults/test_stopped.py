"""Test that a stopped run leaves no process behind, and that the same command resumes it to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from runs import bytes_of, emseg_process, run_emseg, save_volume, shards, slowed, texture, worker_processes

PATIENCE = 60
"""Seconds that a run may take to stop: the grace period of its blocks, and as long again for a busy machine."""


class Undisturbed:
    """A volume that takes some seconds, and the output of a run that was not stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_volume(folder / "volume.zarr", texture((32, 150, 150)), (32, 64, 64))
        self.output = folder / "undisturbed.zarr"
        done = run_emseg("run", "volume.zarr", "-o", self.output, "--workers", "0", cwd=folder)
        assert done.returncode == 0, done.stderr

    def start(self, output: Path) -> subprocess.Popen[str]:
        """Start a run with two workers in a new process group, and wait until it has written some blocks."""
        command = ("run", "volume.zarr", "-o", output, "--workers", "2")
        process = emseg_process(*command, cwd=self.folder, env=slowed(0.3))
        while process.poll() is None and len(shards(output)) < 3:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
        return process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("signals"))


def family_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return all processes that a run has started."""
    return list(psutil.Process(process.pid).children(recursive=True))


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the Dask workers that a run has started."""
    workers = worker_processes(process.pid)
    assert len(workers) == 2
    return workers


@pytest.mark.parametrize(
    ("number", "group", "code"),
    [
        pytest.param(signal.SIGINT, True, 130, id="Ctrl-C in a terminal"),
        pytest.param(signal.SIGINT, False, 130, id="SIGINT to the driver"),
        pytest.param(signal.SIGTERM, True, 143, id="SIGTERM of a batch system"),
        pytest.param(signal.SIGTERM, False, 143, id="SIGTERM to the driver"),
        pytest.param(signal.SIGKILL, False, -9, id="SIGKILL to the driver"),
    ],
)
def test_stopped_and_gone_on_with(number: int, group: bool, code: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    process = undisturbed.start(output)
    family = family_of(process)
    (os.killpg if group else os.kill)(process.pid, number)
    _, printed = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert "Traceback" not in printed
    assert "KeyError" not in printed
    if code > 0:
        assert "run the same command again to continue" in printed.splitlines()[-1]
    _, orphans = psutil.wait_procs(family, timeout=PATIENCE)
    assert not orphans
    written = len(shards(output))
    done = run_emseg("run", "volume.zarr", "-o", output, "--workers", "0", "--json", cwd=undisturbed.folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert 3 <= written <= report["blocks"]
    assert report["skipped"] == written or (code < 0 and report["skipped"] < written)  # not recorded yet
    assert report["done"] == report["blocks"] - report["skipped"]
    assert bytes_of(output) == bytes_of(undisturbed.output)


def test_stopped_before_it_began(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """It is stopped while the workers start. Nothing is written."""
    output = tmp_path / "out.zarr"
    process = emseg_process("run", "volume.zarr", "-o", output, "--workers", "2", cwd=undisturbed.folder)
    while len(family := family_of(process)) < 2:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    _, printed = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert "Traceback" not in printed
    _, orphans = psutil.wait_procs(family, timeout=PATIENCE)
    assert not orphans
    assert not output.exists()


def test_a_killed_worker_costs_no_byte(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    process = undisturbed.start(output)
    workers_of(process)[0].kill()
    _, printed = process.communicate(timeout=100)
    assert process.returncode == 0, printed
    assert bytes_of(output) == bytes_of(undisturbed.output)


def test_eight_workers(undisturbed: Undisturbed, tmp_path: Path) -> None:
    done = run_emseg("run", "volume.zarr", "-o", tmp_path / "out.zarr", "--workers", "8", cwd=undisturbed.folder)
    assert done.returncode == 0, done.stderr
    assert "on 8 worker processes" in done.stderr
    assert bytes_of(tmp_path / "out.zarr") == bytes_of(undisturbed.output)
