"""Test trainings in several processes with the real commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from runs import emseg_process, run_emseg, snapshot
from trainings import TOGETHER, save_training, weights_of

from emseg.flows.train import train
from emseg.flows.training.processes import REPORT_DELAY_SECONDS, is_first_process, one_error_report, select_gpu, start_processes
from emseg.runs.stop import StoppedError
from emseg_core.errors import InputError

ROUNDING = 1e-5
CONFIG = (
    TOGETHER
    + """[fit.augment]
displacement = 0.0
gain = 0.0
offset = 0.0
noise = 0.0
"""
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMSEG_DATA", raising=False)
    return save_training(CONFIG, depth=14)


def alone(config: Path, text: str) -> NDArray[np.float32]:
    """Train in one process, and return the weights."""
    config.write_text(text.replace("tiny.safetensors", "alone.safetensors"))
    path = train(config)
    found = weights_of(path)
    path.unlink()
    config.write_text(CONFIG)
    return found


def test_torchrun_gives_the_weights_of_one_process(config: Path) -> None:
    """Only the leading process prints and writes."""
    expected, others = alone(config, CONFIG), alone(config, CONFIG.replace("batch = 2", "batch = 1"))
    launch = ["torchrun", "--standalone", "--nproc-per-node", "2", "--redirects", "3", "--log-dir", "said"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [*launch, "-m", "emseg", "train", "tiny.toml"]
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert np.abs(weights_of(Path("tiny.safetensors")) - expected).max() < ROUNDING
    assert np.abs(others - expected).max() > 10 * ROUNDING  # each process has learnt from its own tile
    first, second = (next(Path("said").glob(f"*/attempt_0/{rank}")) for rank in range(2))
    assert (first / "stdout.log").read_text() == f"{config.with_name('tiny.safetensors')}\n"
    assert "step 6 of 6" in (first / "stderr.log").read_text()
    assert (second / "stdout.log").read_text() == ""
    assert "step" not in (second / "stderr.log").read_text()


def test_processes_give_the_weights_of_one(config: Path) -> None:
    expected = alone(config, CONFIG)
    done = run_emseg("train", "tiny.toml", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{config.with_name('tiny.safetensors')}\n"
    assert np.abs(weights_of(Path("tiny.safetensors")) - expected).max() < ROUNDING


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch = 2", "batch = 3", "error: a batch of 3 tiles cannot be divided evenly among 2 processes"),
        ('ids = "ids.tif"', 'ids = "none.tif"', "none.tif"),
        ("rate =", "raet =", "error: tiny.toml: unknown key fit.raet"),
    ],
)
def test_what_is_refused_is_said_once(config: Path, old: str, new: str, message: str) -> None:
    config.write_text(CONFIG.replace(old, new))
    before = snapshot(config.parent)
    done = run_emseg("train", "tiny.toml", "--processes", "2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line
    assert done.stdout == ""
    assert snapshot(config.parent) == before


def test_stopped_and_resumed_by_other_processes(config: Path) -> None:
    """One signal to the command ends all processes. One process finishes what two have started, within rounding."""
    long = CONFIG.replace("steps = 6", "steps = 300").replace("validate_every = 3", "validate_every = 100")
    expected = alone(config, long)
    config.write_text(long)
    checkpoint = Path("tiny.safetensors.checkpoint")
    with emseg_process("train", "tiny.toml", "--processes", "2") as process:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    kept = "The state at the latest validation is kept; resume from there with --resume"
    assert said.splitlines()[-1] == f"stopped by SIGTERM. {kept}"
    assert not Path("tiny.safetensors").exists()
    assert np.abs(weights_of(train(config, resume=True)) - expected).max() < 100 * ROUNDING


def test_one_that_is_killed_ends_all(config: Path) -> None:
    config.write_text(CONFIG.replace("steps = 6", "steps = 3000"))
    with emseg_process("train", "tiny.toml", "--processes", "2") as process:
        while not Path("tiny.safetensors.checkpoint").exists() and process.poll() is None:
            time.sleep(0.02)
        both = psutil.Process(process.pid).children()
        both[1].kill()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-1] == "error: a process was ended by SIGKILL: use --resume to continue"
    assert "Traceback" not in said
    assert not any(child.is_running() for child in both)


def test_no_process_outlives_the_one_that_started_it(config: Path) -> None:
    """This holds however that process ended. Its progress is kept."""
    config.write_text(CONFIG.replace("steps = 6", "steps = 3000"))
    with emseg_process("train", "tiny.toml", "--processes", "2") as process:
        while not Path("tiny.safetensors.checkpoint").exists() and process.poll() is None:
            time.sleep(0.02)
        both = psutil.Process(process.pid).children()
        assert psutil.Process(process.pid).net_connections() == [], "no server of torch's that any user may speak to"
        process.kill()
        process.communicate(timeout=60)
    assert len(both) == 2
    _, alive = psutil.wait_procs(both, timeout=30)
    assert not alive
    assert Path("tiny.safetensors.checkpoint").exists()


def test_processes_within_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="--processes"):
        start_processes(["train", "tiny.toml"], 2, "cpu")


@pytest.mark.parametrize(("visible", "own"), [("3,GPU-5,7", "GPU-5"), (None, "1")])
def test_each_process_sees_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, visible: str | None, own: str) -> None:
    for name, value in (("WORLD_SIZE", "3"), ("LOCAL_RANK", "1"), ("CUDA_VISIBLE_DEVICES", visible)):
        monkeypatch.setenv(name, value or "")  # so that it is restored
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    select_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own
    assert os.environ["LOCAL_RANK"] == "0"  # the only one that it sees
    select_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(InputError, match="2 processes need a GPU each, but there are 1"):
        start_processes(["train", "tiny.toml"], 2, "cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="process 1 of this machine needs a GPU, but there are 1"):
        select_gpu()


@pytest.mark.parametrize(
    ("rank", "error", "turn"),
    [("0", InputError, 0), ("1", InputError, 1), ("0", RuntimeError, 2), ("1", RuntimeError, 3)],
)
def test_who_knows_better_fails_first(monkeypatch: pytest.MonkeyPatch, rank: str, error: type[Exception], turn: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    waits: list[float] = []
    monkeypatch.setattr("emseg.flows.training.processes.sleep", waits.append)
    with pytest.raises(error), one_error_report():
        raise error("no")
    assert waits == [turn * REPORT_DELAY_SECONDS]


def test_who_is_ended_while_it_waits_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(seconds: float) -> None:
        raise StoppedError(signal.SIGTERM)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("emseg.flows.training.processes.sleep", ended)
    assert not is_first_process()
    with pytest.raises(SystemExit) as caught, one_error_report():
        raise InputError("no")
    assert caught.value.code == 143


def test_alone_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("emseg.flows.training.processes.sleep", lambda seconds: pytest.fail("it waits"))
    assert is_first_process()
    with pytest.raises(StoppedError), one_error_report():
        raise StoppedError(signal.SIGTERM)
    with pytest.raises(InputError), one_error_report():
        raise InputError("no")


@pytest.mark.parametrize("world", ["1", "2"])
def test_a_stop_is_told_whatever_was_going_on(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This includes a signal that arrives while a library handles its own error."""
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("RANK", "0")

    def handling() -> None:
        try:
            raise KeyError
        except KeyError:
            raise StoppedError(signal.SIGTERM) from None

    with pytest.raises(StoppedError), one_error_report():
        handling()
