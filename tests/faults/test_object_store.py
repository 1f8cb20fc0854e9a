"""Test volume and output on an object store: processes are killed, the store is away for 20 s, the bytes are the same."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import ObjectStore, object_store
from runs import bytes_of, emseg_process, run_emseg, save_volume, slowed, texture, worker_processes

from emseg.flows.status import status
from emseg_core.store.files.files import open_files
from emseg_core.store.files.place import parse_place

SHAPE = (32, 150, 150)
AWAY = 20.0
"""Seconds in which the store refuses connections."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


def units(output: str) -> int:
    """Return the number of write units of the labels."""
    return len(list(open_files(parse_place(output)).sizes("labels/classes/0/c")))


def wait_for(output: str, more: int) -> None:
    """Wait until this many write units exist."""
    deadline = time.monotonic() + 120
    while units(output) < more:
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.2)


def test_killed_resumed_and_cut_off(store: ObjectStore, tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", texture(SHAPE), (32, 64, 64))
    undisturbed = tmp_path / "undisturbed.zarr"
    assert run_emseg("run", "volume.zarr", "-o", undisturbed, "--workers", "0", cwd=tmp_path).returncode == 0
    volume, output = store.upload(tmp_path / "volume.zarr", "volume.zarr"), store.address("out.zarr")
    command = ("run", volume, "-o", output, "--workers", "2", "--json")

    driver = emseg_process(*command, cwd=tmp_path, env=slowed(1.0))
    wait_for(output, 4)
    worker_processes(driver.pid)[0].kill()
    wait_for(output, 8)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    killed = units(output)
    assert killed < status(output).blocks

    driver = emseg_process(*command, cwd=tmp_path, env=slowed(1.0))
    wait_for(output, killed + 3)
    again = store.stop()
    time.sleep(AWAY)
    again()
    out, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    report = json.loads(out)
    assert (report["left"], report["failed"]) == (0, 0)
    assert report["skipped"] >= killed - 8, "what was written is not computed again"

    files = open_files(parse_place(output))
    for name in files.names():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(files.read(name) or b"")
    assert bytes_of(tmp_path / "copy") == bytes_of(undisturbed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "undisturbed.zarr", "volume.zarr"]
