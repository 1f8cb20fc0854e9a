"""Test that the output has the bytes of an undisturbed run whatever dies during a run, and that little work is repeated.

Processes are killed at random moments. The suite runs a short form. ``make faults`` runs the long form, takes the seed of
the moments from EMSEG_FAULTS, and prints what happened.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from runs import bytes_of, emseg_process, run_emseg, save_volume, shards, slowed, texture, worker_processes

from emseg.flows.records.run_log import lines_of
from emseg_core.store.outputs.lifecycle import open_output

LONG = "EMSEG_FAULTS" in os.environ
SEED = int(os.environ.get("EMSEG_FAULTS", "0"))
SHAPE = (384, 150, 150) if LONG else (32, 150, 150)
WORKER_KILLS = 50 if LONG else 2
DRIVER_KILLS = 20 if LONG else 2
OUTAGES = 100 if LONG else 2
FULL_DISKS = 10 if LONG else 1
CORRUPT_CHUNKS = 5 if LONG else 1
PAUSE = 0.5
"""Extra seconds per tile, so that kills happen during work."""
RUN = ("run", "volume.zarr", "--tile", "56,72,104")
"""A run with the tiles of a small volume: a large volume's tiles would give few blocks."""
IN_HAND = 8
"""Maximum number of blocks in progress or assigned: two workers of two threads, each with as many blocks to come."""

pytestmark = pytest.mark.timeout(3600 if LONG else 900)


class Undisturbed:
    """A volume that takes a while to segment, and the output of an undisturbed run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_volume(folder / "volume.zarr", texture(SHAPE), (32, 64, 64))
        self.output = folder / "undisturbed.zarr"
        done = run_emseg(*RUN, "-o", self.output, "--workers", "0", cwd=folder)
        assert done.returncode == 0, done.stderr
        self.blocks = len(shards(self.output))
        assert self.blocks >= 24

    def start(self, output: Path, *more: object) -> subprocess.Popen[str]:
        command = (*RUN, "-o", output, "--workers", "2", "--json", *more)
        return emseg_process(*command, cwd=self.folder, env=slowed(PAUSE))

    def finish(self, output: Path) -> dict[str, Any]:
        """Run without disturbance, and return the report."""
        done = run_emseg(*RUN, "-o", output, "--workers", "0", "--json", cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("campaign"))


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the worker processes of a run."""
    try:
        return worker_processes(process.pid)
    except psutil.Error:
        return []


def blocks_done(output: Path) -> int:
    """Return how often each block was computed, according to the records of all runs."""
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
    """Kill processes up to this many times, and return how often this was done before the run ended."""
    landed = 0
    while landed < times and process.poll() is None:
        time.sleep(pause())
        landed += process.poll() is None and blow()
    return landed


def recorded_blocks(output: Path) -> set[int]:
    """Return the written blocks whose digests are in the run records."""
    records = (line for file in output.glob("emseg/run-*/*.jsonl") for line in file.read_text().splitlines())
    lines = [json.loads(line) for line in records]
    return {line["block"] for line in lines if line["event"] == "block" and line["status"] == "done"}


def a_while(rng: random.Random) -> float:
    """Draw a duration of up to two seconds, or one so short that it may end before a missing file is looked up again."""
    return rng.choice((rng.uniform(0.001, 0.1), rng.uniform(0.2, 2)))


def test_workers_killed_at_any_moment(undisturbed: Undisturbed, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    output = tmp_path / "out.zarr"
    process = undisturbed.start(output)
    wait_for_blocks(process, output, 1)

    def kill() -> bool:
        workers = workers_of(process)
        if workers:
            rng.choice(workers).kill()
        return bool(workers)

    kills = strike(process, WORKER_KILLS, lambda: rng.uniform(0.1, 3), kill)
    report = end_of(process)
    print(f"workers: {kills} kills, {report['retried']} retries, {undisturbed.blocks} blocks, seed {SEED}")
    assert kills == WORKER_KILLS
    assert report["failed"] == 0
    assert report["retried"] <= kills * IN_HAND
    assert blocks_done(output) == undisturbed.blocks
    assert bytes_of(output) == bytes_of(undisturbed.output)


def test_drivers_killed_at_any_moment(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """A killed driver loses the results of its last blocks. A later run computes these again and skips all others."""
    rng = random.Random(SEED + 1)
    output, kills, before = tmp_path / "out.zarr", 0, 0
    for kill in range(DRIVER_KILLS):
        process = undisturbed.start(output)
        wait_for_blocks(process, output, min(before + 1, undisturbed.blocks))
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
        assert len(shards(output)) >= before, f"kill {kill} took blocks away"
        before = len(shards(output))
    known = recorded_blocks(output)
    report = undisturbed.finish(output)
    told = f"{before} of {undisturbed.blocks} blocks were there after the last, of which the records have {len(known)}"
    print(f"drivers: {kills} kills, {told}, seed {SEED}")
    assert kills == DRIVER_KILLS
    assert report["skipped"] == len(known)
    assert report["done"] == undisturbed.blocks - report["skipped"]
    assert not list(output.rglob("*.partial"))
    assert bytes_of(output) == bytes_of(undisturbed.output)


def test_a_volume_that_is_away_for_a_while(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Zarr would read missing files as voxels that were never written."""
    rng = random.Random(SEED + 2)
    volume, away = undisturbed.folder / "volume.zarr", undisturbed.folder / "away.zarr"
    process = undisturbed.start(tmp_path / "out.zarr")
    wait_for_blocks(process, tmp_path / "out.zarr", 1)

    def outage() -> bool:
        volume.rename(away)
        time.sleep(a_while(rng))
        away.rename(volume)
        return True

    outages = strike(process, OUTAGES, lambda: rng.uniform(0, 1), outage)
    report = end_of(process)
    print(f"volume: {outages} outages, {report['retried']} retries, seed {SEED}")
    assert outages == OUTAGES
    assert report["failed"] == 0
    assert report["retried"] <= outages * 2 * IN_HAND
    assert blocks_done(tmp_path / "out.zarr") == undisturbed.blocks
    assert bytes_of(tmp_path / "out.zarr") == bytes_of(undisturbed.output)


def test_an_output_that_is_away_for_a_while(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Nothing is written elsewhere meanwhile, and no block is reported as lost."""
    rng = random.Random(SEED + 3)
    output, away = tmp_path / "out.zarr", tmp_path / "away.zarr"
    process = undisturbed.start(output)
    wait_for_blocks(process, output, 1)

    def outage() -> bool:
        output.rename(away)
        time.sleep(a_while(rng))
        assert not output.exists()
        away.rename(output)
        return True

    outages = strike(process, OUTAGES, lambda: rng.uniform(0, 1), outage)
    report = end_of(process)
    print(f"output: {outages} outages, {report['retried']} retries, seed {SEED}")
    assert outages == OUTAGES
    assert report["failed"] == 0
    assert bytes_of(output) == bytes_of(undisturbed.output)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_fills_at_any_write(undisturbed: Undisturbed, tmp_path: Path) -> None:
    rng = random.Random(SEED + 4)
    whole = sum(file.stat().st_size for file in undisturbed.output.rglob("*") if file.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    for _ in range(FULL_DISKS):
        size = rng.randrange(whole // 3, whole)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False).returncode:
            pytest.skip("cannot mount a disk here")
        try:
            process = undisturbed.start(disk / "out.zarr")
            out, err = process.communicate(timeout=600)
            assert process.returncode == 3, err
            assert "Traceback" not in err
            report = json.loads(out)
            assert report["failed"] > 0
            assert report["done"] == len(shards(disk / "out.zarr"))
            subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
            assert undisturbed.finish(disk / "out.zarr")["skipped"] <= report["done"]  # some have no record on a full disk
            assert bytes_of(disk / "out.zarr") == bytes_of(undisturbed.output)
            print(f"disk: full at {size} of {whole} bytes, {report['failed']} blocks failed, seed {SEED}")
        finally:
            subprocess.run(["umount", disk], check=True)


def test_a_corrupt_chunk(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Its blocks fail and the others are computed. Once it is restored, the next run computes only those."""
    rng = random.Random(SEED + 5)
    chunks = sorted(path for path in (undisturbed.folder / "volume.zarr" / "c").rglob("*") if path.is_file())
    for number in range(CORRUPT_CHUNKS):
        output, chunk = tmp_path / f"{number}.zarr", rng.choice(chunks)
        sound = chunk.read_bytes()
        process = undisturbed.start(output)
        wait_for_blocks(process, output, 1)  # the whole volume is sampled before
        chunk.write_bytes(sound[: rng.randrange(1, len(sound))])
        out, err = process.communicate(timeout=600)
        chunk.write_bytes(sound)
        assert process.returncode in (0, 3), err  # 0 if all blocks that read the chunk were read before
        report = json.loads(out)
        assert report["done"] + report["failed"] == report["blocks"]
        assert all("cannot be read" in failure["cause"] for failure in report["failures"])
        again = undisturbed.finish(output)
        assert again["skipped"] == report["done"]
        assert again["done"] == report["failed"]
        assert bytes_of(output) == bytes_of(undisturbed.output)
        print(f"chunk: {report['failed']} blocks failed, seed {SEED}")


def test_a_worker_that_hangs(undisturbed: Undisturbed, tmp_path: Path) -> None:
    rng = random.Random(SEED + 6)
    process = undisturbed.start(tmp_path / "out.zarr", "--block-timeout", "10")
    wait_for_blocks(process, tmp_path / "out.zarr", 2)
    rng.choice(workers_of(process)).suspend()
    report = end_of(process)
    print(f"hang: {report['retried']} retries, seed {SEED}")
    assert report["failed"] == 0
    assert report["retried"] <= IN_HAND
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
        second = run_emseg("run", "volume.zarr", "-o", output, "--workers", "0", *more, cwd=undisturbed.folder)
        assert second.returncode == 2, second.stderr
        assert f"in use by run 1, process {process.pid}" in second.stderr
    end_of(process)
    assert bytes_of(output) == bytes_of(undisturbed.output)
