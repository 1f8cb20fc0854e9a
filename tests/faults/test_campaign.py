"""Whatever dies during a run, the output ends with the bytes of an undisturbed run, and little is done twice.

Each test runs whole processes and takes a minute or more, so they run only where EMSEG_FAULTS holds a seed for the
moments: ``EMSEG_FAULTS=1 pytest -s tests/faults`` is the long form.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from runs import bytes_of, emseg, emseg_process, save_volume, shards, texture

from emseg.store.output import open_output
from emseg_workflows.flows.record import lines_of

LONG = "EMSEG_FAULTS" in os.environ
SEED = int(os.environ.get("EMSEG_FAULTS", "0"))
WORKER_KILLS = 50
DRIVER_KILLS = 20
OUTAGES = 20
IN_HAND = 8
"""Two workers of two threads, each with as many blocks to come."""

pytestmark = [pytest.mark.timeout(3600), pytest.mark.skipif(not LONG, reason="EMSEG_FAULTS does not hold a seed")]


class Undisturbed:
    """A volume that takes a while, and the output of a run that nobody disturbed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_volume(folder / "volume.zarr", texture((192, 150, 150)), (32, 64, 64))
        self.output = folder / "undisturbed.zarr"
        done = emseg("run", "volume.zarr", "-o", self.output, "--workers", "0", cwd=folder)
        assert done.returncode == 0, done.stderr
        self.blocks = len(shards(self.output))
        assert self.blocks >= 24

    def start(self, output: Path, *more: object) -> subprocess.Popen[str]:
        return emseg_process("run", "volume.zarr", "-o", output, "--workers", "2", "--json", *more, cwd=self.folder)

    def finish(self, output: Path) -> dict[str, Any]:
        """The report of a run that goes on undisturbed."""
        done = emseg("run", "volume.zarr", "-o", output, "--workers", "2", "--json", cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("campaign"))


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes of a run at this moment."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
        return [child for child in family if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def blocks_done(output: Path) -> int:
    """How often any block was computed, over all runs, as far as their records tell."""
    stored = open_output(output)
    runs = len(list((output / "emseg").glob("run-*")))
    return sum(line["event"] == "block" for run in range(1, runs + 1) for line in lines_of(stored, run))


def wait_for_blocks(process: subprocess.Popen[str], output: Path, count: int) -> None:
    while process.poll() is None and len(shards(output)) < count:
        time.sleep(0.02)


def end_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=3000)
    assert process.returncode == 0, err
    assert "Traceback" not in err, err
    return dict(json.loads(out))


def strike(process: subprocess.Popen[str], times: int, pause: Callable[[], float], blow: Callable[[], bool]) -> int:
    """How many of so many blows were landed before the run ended."""
    landed = 0
    while landed < times and process.poll() is None:
        time.sleep(pause())
        landed += process.poll() is None and blow()
    return landed


def test_workers_killed_at_any_moment(undisturbed: Undisturbed, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    process = undisturbed.start(tmp_path / "out.zarr")
    wait_for_blocks(process, tmp_path / "out.zarr", 1)

    def kill() -> bool:
        workers = workers_of(process)
        if workers:
            rng.choice(workers).kill()
        return bool(workers)

    kills = strike(process, WORKER_KILLS, lambda: rng.uniform(0.1, 3), kill)
    report = end_of(process)
    print(f"workers: {kills} kills, {report['retried']} tries made again, {undisturbed.blocks} blocks, seed {SEED}")
    assert kills >= min(WORKER_KILLS, 2)
    assert report["failed"] == 0
    assert report["retried"] <= kills * IN_HAND
    assert bytes_of(tmp_path / "out.zarr") == bytes_of(undisturbed.output)


def test_drivers_killed_at_any_moment(undisturbed: Undisturbed, tmp_path: Path) -> None:
    rng = random.Random(SEED + 1)
    output, kills = tmp_path / "out.zarr", 0
    for kill in range(DRIVER_KILLS):
        process = undisturbed.start(output)
        wait_for_blocks(process, output, min(1 + kill, undisturbed.blocks))
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
    report = undisturbed.finish(output)
    print(f"drivers: {kills} kills, {report['skipped']} of {undisturbed.blocks} blocks were there at the end, seed {SEED}")
    assert kills == DRIVER_KILLS
    assert bytes_of(output) == bytes_of(undisturbed.output)


def test_a_volume_that_is_away_for_a_while(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Zarr would take missing files for voxels that were never written."""
    rng = random.Random(SEED + 2)
    volume, away = undisturbed.folder / "volume.zarr", undisturbed.folder / "away.zarr"
    process = undisturbed.start(tmp_path / "out.zarr")
    wait_for_blocks(process, tmp_path / "out.zarr", 1)

    def outage() -> bool:
        volume.rename(away)
        time.sleep(rng.uniform(0.2, 2))
        away.rename(volume)
        return True

    outages = strike(process, OUTAGES, lambda: rng.uniform(0, 1), outage)
    report = end_of(process)
    print(f"store: {outages} outages, {report['retried']} tries made again, seed {SEED}")
    assert outages
    assert report["failed"] == 0
    assert bytes_of(tmp_path / "out.zarr") == bytes_of(undisturbed.output)


def test_a_worker_that_hangs(undisturbed: Undisturbed, tmp_path: Path) -> None:
    process = undisturbed.start(tmp_path / "out.zarr", "--block-timeout", "5")
    wait_for_blocks(process, tmp_path / "out.zarr", 2)
    workers = workers_of(process)
    workers[0].suspend()
    report = end_of(process)
    assert report["failed"] == 0
    assert report["retried"] >= 1
    assert bytes_of(tmp_path / "out.zarr") == bytes_of(undisturbed.output)


def test_in_hand_blocks_end_when_asked_to_stop(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    process = undisturbed.start(output)
    wait_for_blocks(process, output, 2)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    report = json.loads(out)
    assert report["failed"] == 0
    assert report["done"] == len(shards(output)) == blocks_done(output)
    assert undisturbed.finish(output)["skipped"] == report["done"]
    assert bytes_of(output) == bytes_of(undisturbed.output)


def test_a_second_run_is_refused_while_the_first_lives(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    process = undisturbed.start(output)
    wait_for_blocks(process, output, 1)
    for more in ((), ("--overwrite",)):
        second = emseg("run", "volume.zarr", "-o", output, "--workers", "0", *more, cwd=undisturbed.folder)
        assert second.returncode == 2, second.stderr
        assert f"in use by run 1, process {process.pid}" in second.stderr
    end_of(process)
    assert bytes_of(output) == bytes_of(undisturbed.output)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-s", "-v"]))
