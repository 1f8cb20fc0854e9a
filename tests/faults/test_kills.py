"""Test that a run on real tissue with probabilities and instance labels ends with the same bytes if killed in any stage.

The suite kills twice; ``make faults`` kills sixty times, at least ten times in each stage, and prints what was killed where.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from runs import PLANAR, bytes_of, emseg_process, run_emseg, save_random_model, worker_processes

LONG = "EMSEG_FAULTS" in os.environ
SEED = int(os.environ.get("EMSEG_FAULTS", "0"))
STAGES = ("creation", "prediction", "levels", "labelling")
VICTIMS = ("driver", "one worker", "all", "driver and one worker")
KILLS = 60 if LONG else 2
EACH = 10 if LONG else 0
"""Minimum number of kills in each stage."""
RUN = ("run", "volume.zarr", "--probabilities", "--instances", "--workers", "2", "--model", "model.safetensors")

pytestmark = pytest.mark.timeout(7200 if LONG else 900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume of real sections, and the output of an undisturbed run."""
    if not (data := os.environ.get("EMSEG_DATA")):
        pytest.skip("EMSEG_DATA names no folder with real sections")
    folder, source = tmp_path_factory.mktemp("kills"), Path(data, "isbi2012", "train-volume.tif")
    assert run_emseg("ingest", source, "whole.zarr", "--voxel-size", 50, 4, 4, cwd=folder).returncode == 0
    import zarr

    whole = zarr.open_array(folder / "whole.zarr" / "0", mode="r")
    part = zarr.create_array(folder / "volume.zarr", shape=(3, 300, 300), chunks=(3, 100, 100), dtype="uint8")
    part[...] = whole[:3, :300, :300]
    save_random_model(folder / "model.safetensors", PLANAR)
    done = run_emseg(*RUN, "-o", "undisturbed.zarr", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def ended_or_in(stage: str, process: subprocess.Popen[str], output: Path) -> bool:
    """Return whether a run has ended, or its output has reached this stage."""
    return process.poll() is not None or stage_of(output) == stage


def stage_of(output: Path) -> str:
    """Return the stage of a run, judged by its files."""
    if any(output.glob("emseg/instances-*")) or (output / "labels/instances").exists():
        return "labelling"
    if any(output.glob("labels/classes/1/c/**/*")):
        return "levels"
    if any(path.is_file() for path in output.glob("labels/classes/0/c/**/*")):
        return "prediction"
    return "creation"


def struck(process: subprocess.Popen[str], victim: str, rng: random.Random) -> bool:
    """Kill the victim, and return whether that was done."""
    try:
        workers = worker_processes(process.pid)
    except psutil.Error:
        return False
    if victim in ("one worker", "driver and one worker"):
        if not workers:
            return False
        rng.choice(workers).kill()
    if victim in ("driver", "driver and one worker"):
        process.kill()
    if victim == "all":
        os.killpg(process.pid, signal.SIGKILL)
    return True


def test_the_same_bytes_whoever_is_killed_in_whichever_stage(folder: Path) -> None:
    rng, landed = random.Random(SEED), Counter[tuple[str, str]]()
    truth = bytes_of(folder / "undisturbed.zarr")
    assert any(name.startswith("labels/classes/1/c/") for name in truth)
    assert any(name.startswith("labels/instances/0/c/") for name in truth)
    output = folder / "out.zarr"
    for _ in range(10 * KILLS):
        if landed.total() >= KILLS and all(kills_in(landed, stage) >= EACH for stage in STAGES):
            break
        # the stage tried least so far
        stage = min(STAGES, key=lambda stage: (kills_in(landed, stage), rng.random()))
        victim = min(VICTIMS, key=lambda victim: (landed[stage, victim], rng.random()))
        shutil.rmtree(output, ignore_errors=True)
        process = emseg_process(*RUN, "-o", output, cwd=folder)
        wait_for(partial(ended_or_in, stage, process, output))
        time.sleep(rng.uniform(0, 3 if stage == "creation" else 0.5))
        then = stage_of(output)
        if process.poll() is None and struck(process, victim, rng):
            landed[then, victim] += 1
            print(f"{landed.total()} of {KILLS}: {victim} killed in {then}", flush=True)
        _, err = process.communicate()
        if process.returncode != 0:
            assert process.returncode == -signal.SIGKILL, err
            done = run_emseg(*RUN, "-o", output, cwd=folder)
            assert done.returncode == 0, (then, victim, done.stderr)
        assert "Traceback" not in err
        assert bytes_of(output) == truth, (then, victim)
    for stage in STAGES:
        told = ", ".join(f"{victim} {landed[stage, victim]}" for victim in VICTIMS)
        print(f"{stage}: {kills_in(landed, stage)} kills: {told}; seed {SEED}")
    assert landed.total() >= KILLS
    assert all(kills_in(landed, stage) >= EACH for stage in STAGES)


def kills_in(landed: Counter[tuple[str, str]], stage: str) -> int:
    return sum(landed[stage, victim] for victim in VICTIMS)


def wait_for(condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds. If it never does, the test's own time limit ends it."""
    while not condition():
        time.sleep(0.005)
