"""Test `deploy/train.sbatch` on a real SLURM: a requeued job on two nodes gives the weights of one process."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from slurm.cluster import ENDED, SlurmCluster
from trainings import TOGETHER, save_training, weights_of

from emseg.flows.train import train

SCRIPT = Path(__file__).parents[2] / "deploy" / "train.sbatch"
ROUNDING = 1e-3
CONFIG = TOGETHER.replace("steps = 6", "steps = 1000").replace("validate_every = 3", "validate_every = 100")


@pytest.fixture
def folder(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder that all nodes and the submitting machine share."""
    folder = slurm.scratch / "train"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EMSEG_DATA", str(folder))
    save_training(CONFIG, depth=14)
    yield folder
    slurm.cancel_all()
    shutil.rmtree(folder)


def submit(slurm: SlurmCluster, folder: Path, *words: str) -> str:
    """Submit a job on two nodes and return its number."""
    path = f"PATH={Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    where = (f"--chdir={folder}", f"--output={folder}/%j.log", f"--export=ALL,EMSEG_DATA={folder},{path}")
    return slurm.run("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", *where, SCRIPT, *words)


def test_two_nodes_and_queued_again(slurm: SlurmCluster, folder: Path) -> None:
    """Warned that its time is nearly over, the job requeues itself, resumes, and ends with the model."""
    job = submit(slurm, folder, "tiny.toml")
    log = folder / f"{job}.log"
    slurm.wait_until(lambda: Path("tiny.safetensors.checkpoint").exists() or slurm.state(job) in ENDED, 120)
    assert slurm.state(job) == "RUNNING", log.read_text()
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_for(job, seconds=200)
    assert slurm.job(job)["state"] == "COMPLETED", log.read_text()
    assert slurm.job(job)["restarts"] == 1
    said = log.read_text()
    assert f"job {job} queues itself again, to go on" in said
    assert said.count("step 50 of 1000") == 1  # it did not start over
    assert said.count("step 1000 of 1000") == 1
    found = weights_of(folder / "tiny.safetensors")
    Path("tiny.safetensors").unlink()
    assert np.abs(weights_of(train("tiny.toml")) - found).max() < ROUNDING


def test_without_a_validation_it_is_not_queued_again(slurm: SlurmCluster, folder: Path) -> None:
    Path("tiny.toml").write_text(
        CONFIG.replace("validate_every = 100", "validate_every = 100000").replace("= 1000\n", "= 100000\n")
    )
    job = submit(slurm, folder, "tiny.toml")
    log = folder / f"{job}.log"
    slurm.wait_until(lambda: (log.exists() and "step 50 of" in log.read_text()) or slurm.state(job) in ENDED, 120)
    assert slurm.state(job) == "RUNNING", log.read_text()
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_until(lambda: "not queued again: no validation" in log.read_text())
    assert slurm.state(job) == "RUNNING", log.read_text()


def test_a_refused_configuration_ends_the_job(slurm: SlurmCluster, folder: Path) -> None:
    job = submit(slurm, folder, "none.toml")
    slurm.wait_for(job)
    assert slurm.job(job)["state"] == "FAILED"
    lines = (folder / f"{job}.log").read_text().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == [
        "error: there is no configuration none.toml: check the path"
    ]
