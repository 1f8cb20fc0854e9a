"""Test that a run whose output is removed writes nothing into a new output at the same path."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from runs import (
    PLANAR,
    bytes_of,
    emseg_process,
    run_emseg,
    save_random_model,
    save_volume,
    shards,
    slowed,
    texture,
    worker_processes,
)

from emseg.flows.segment import segment
from emseg.runs.events import BlockEnded, Event, Noticed

MODELS = ("first", "other")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume, two models, and the output of an undisturbed run with the second one."""
    folder = tmp_path_factory.mktemp("reused")
    save_volume(folder / "volume.zarr", texture((8, 150, 150)), (8, 64, 64))
    for seed, model in enumerate(MODELS):
        save_random_model(folder / f"{model}.safetensors", PLANAR, seed)
    assert run(folder, "undisturbed.zarr", "other").returncode == 0
    return folder


def words(output: str, model: str, workers: int) -> tuple[object, ...]:
    return ("run", "volume.zarr", "-o", output, "--model", f"{model}.safetensors", "--workers", workers, "--probabilities")


def run(folder: Path, output: str, model: str) -> subprocess.CompletedProcess[str]:
    """Run to the end in one process."""
    return run_emseg(*words(output, model, 0), cwd=folder)


@pytest.fixture
def older(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a slow run with the first model, and wait until it has written some blocks."""
    shutil.rmtree(folder / "out.zarr", ignore_errors=True)
    process = emseg_process(*words("out.zarr", "first", 2), cwd=folder, env=slowed(0.5))
    wait_for(lambda: process.poll() is not None or len(shards(folder / "out.zarr")) >= 2)
    assert process.poll() is None
    yield process
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
    process.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds. If it never does, the test's own time limit ends it."""
    while not condition():
        time.sleep(0.02)


def test_a_run_that_lives_writes_not_one_byte_into_the_next_output(folder: Path, older: subprocess.Popen[str]) -> None:
    """The run also reports why it ends."""
    shutil.rmtree(folder / "out.zarr")
    assert run(folder, "out.zarr", "other").returncode == 0
    after = bytes_of(folder / "out.zarr")
    out, err = older.communicate()
    assert older.returncode == 3, err
    assert "run 1 may not write any more, as the output was removed" in out + err
    assert "Traceback" not in err
    assert bytes_of(folder / "out.zarr") == after == bytes_of(folder / "undisturbed.zarr")
    checked = run_emseg("verify", "out.zarr", "--checksums", cwd=folder)
    assert checked.returncode == 0, checked.stdout
    assert not list(folder.glob(".emseg-*"))


def test_a_removed_output_does_not_come_back(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []

    def remove(event: Event) -> None:
        match event:
            case BlockEnded() if (tmp_path / "out.zarr").exists():
                shutil.rmtree(tmp_path / "out.zarr")
            case Noticed(message):
                told.append(message)

    report = segment(
        folder / "volume.zarr", tmp_path / "out.zarr", model=folder / "first.safetensors", workers=0, on_event=remove
    )
    assert report.exit_code == 3
    assert any("the output was removed" in message for message in told)
    assert not list(tmp_path.iterdir())


def test_a_worker_that_was_suspended_comes_back_too_late(folder: Path, older: subprocess.Popen[str]) -> None:
    """Its driver has died meanwhile, and another output was started."""
    workers = worker_processes(older.pid)
    assert workers
    for worker in workers:
        worker.suspend()
    older.kill()
    older.wait()
    shutil.rmtree(folder / "out.zarr")
    assert run(folder, "out.zarr", "other").returncode == 0
    for worker in workers:
        if worker.is_running():
            os.kill(worker.pid, signal.SIGCONT)
    wait_for(lambda: not any(alive(worker) for worker in workers))
    assert bytes_of(folder / "out.zarr") == bytes_of(folder / "undisturbed.zarr")


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_lost_lease_locks_no_output(folder: Path) -> None:
    """Some programs copy folders without the leases."""
    shutil.copytree(folder / "undisturbed.zarr", folder / "copied.zarr")
    (lease,) = (folder / "copied.zarr" / "emseg").glob("run-*/lease.json")
    lease.unlink()
    for left in lease.parent.iterdir():
        left.touch()
    shards(folder / "copied.zarr")[0].unlink()
    refused = run(folder, "copied.zarr", "other")
    assert refused.returncode == 2
    assert "try again in 60 s" in refused.stderr
    for left in (*lease.parent.iterdir(), lease.parent):
        os.utime(left, (0, time.time() - 100))
    assert run(folder, "copied.zarr", "other").returncode == 0
    assert bytes_of(folder / "copied.zarr") == bytes_of(folder / "undisturbed.zarr")
