"""Test little or no shared memory, where workers keep semaphores: enough is enough, and too little refuses a run at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mounts import with_mount
from runs import save_volume, texture

from emseg.clusters.semaphores import SEMAPHORES_PER_WORKER, SHARED_MEMORY

PAGE = os.sysconf("SC_PAGE_SIZE")
ENOUGH = 2 * SEMAPHORES_PER_WORKER * PAGE


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Make a volume for the bundled network."""
    return save_volume(tmp_path / "v.zarr", texture((8, 64, 64)), voxel_size=[10, 10, 10])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (f"size={ENOUGH - PAGE}", f"No space left on device; 0 of {(ENOUGH - PAGE) // 1024} KiB are free"),
        ("size=1m,ro", "Read-only file system; 1024 of 1024 KiB are free"),
    ],
    ids=["full", "read-only"],
)
def test_too_little_is_refused_at_once(options: str, why: str, volume: Path, tmp_path: Path) -> None:
    ran = with_mount(options, SHARED_MEMORY, "emseg", "run", volume, "--output", tmp_path / "o.zarr", "--workers", 2)
    assert (ran.returncode, ran.stderr) == (
        2,
        f"error: a run with 2 worker processes needs {2 * SEMAPHORES_PER_WORKER} semaphores in /dev/shm, but they cannot be "
        f"made there ({why}): mount a writable tmpfs of 64 MiB there (docker run --shm-size 64m), or compute without them "
        "(--workers 0)\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["v.zarr"]


@pytest.mark.parametrize(("options", "workers"), [(f"size={ENOUGH}", 2), ("size=1m,ro", 0)])
def test_enough_is_enough(options: str, workers: int, volume: Path, tmp_path: Path) -> None:
    ran = with_mount(options, SHARED_MEMORY, "emseg", "run", volume, "--output", tmp_path / "o.zarr", "--workers", workers)
    assert ran.returncode == 0, ran.stderr


def test_a_worker_on_a_node_says_it_in_its_log() -> None:
    ran = with_mount("size=1m,ro", SHARED_MEMORY, "emseg.clusters.worker", "tls://127.0.0.1:9")
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: a worker on ")
    assert f"needs {SEMAPHORES_PER_WORKER} semaphores in /dev/shm" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
