"""What is said of a site reaches SLURM as it stands, and what SLURM would not understand is refused before."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from distributed import Security
from runs import run_emseg, save_volume, texture

from emseg.clusters.local import WORKER_MODULE
from emseg.clusters.slurm import _Job, _job_options
from emseg.flows.running import requeue
from emseg.placement import Placement
from emseg.runs.stop import Stop
from emseg.slurm.job import SlurmJob
from emseg.slurm.site import Site, parse_time, read_site
from emseg_core.errors import InputError, PlanError

SHIPPED = Path(__file__).parents[3] / "deploy" / "slurm" / "site.toml"


def test_the_annotated_site_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    site = read_site(SHIPPED)
    assert (site.partition, site.cpus, site.modules) == ("gpu", 2, ("cuda/12.4",))
    (tmp_path / "again.toml").write_text(site.to_toml())
    assert read_site(tmp_path / "again.toml") == site


def test_what_is_given_wins_over_the_site() -> None:
    site = Site(partition="gpu", cpus=2).replaced(partition="cpu", account="", cpus=None)
    assert (site.partition, site.account, site.cpus) == ("cpu", "", 2)


@pytest.mark.parametrize(
    "values",
    [{"time": "4 hours"}, {"memory": "16 GB"}, {"cpus": -1}, {"options": ("--a\n--b",)}, {"partition": "a\n#SBATCH b"}],
    ids=str,
)
def test_what_slurm_would_not_understand(values: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Site(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("time", "seconds"), [("", None), ("90", 5400), ("2:30", 150), ("4:00:00", 14400), ("1-12", 129600), ("1-0:30", 88200)]
)
def test_a_time_is_read_as_slurm_reads_it(time: str, seconds: float | None) -> None:
    assert Site(time=time).seconds == seconds


@pytest.mark.parametrize(("left", "waits"), [(None, 10), (60, 45), (25, 10), (3600, 10)])
def test_a_warning_that_comes_early_leaves_blocks_the_time_there_is(left: float | None, waits: float) -> None:
    before = monotonic()
    stop = Stop(10, left)
    stop.ask()
    assert stop._deadline is not None
    assert before - 1e-6 <= stop._deadline - waits <= monotonic() + 1e-6


@pytest.mark.parametrize(
    ("gres", "wanted"),
    [("", ()), ("gpu:1", ("--gpus-per-task=1",)), ("gpu:a100:2", ("--gpus-per-task=a100:2",)), ("fpga:1", ("--gres=fpga:1",))],
)
def test_what_each_task_gets(gres: str, wanted: tuple[str, ...]) -> None:
    assert Site(gres=gres).task_options == wanted


def job_of(site: Site, logs: Path) -> Any:
    """A job of workers at this site."""
    options = _job_options(2, site, Security(), logs)
    return _Job("tls://127.0.0.1:1", name="emseg-0", **options)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("time", ["", "4:00:00"])
def test_a_worker_job_takes_as_long_as_the_site_says_or_as_the_site_lets_it(time: str, tmp_path: Path) -> None:
    """dask-jobqueue would ask for half an hour if it is told nothing."""
    site = Site(partition="gpu", account="lab", qos="high", time=time, gres="gpu:1", cpus=2, memory="4G", options=("--x=1",))
    lines = job_of(site, tmp_path).job_script().splitlines()
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert [line for line in asked if line.startswith(("-t", "--time"))] == [f"--time={time}"] * bool(time)
    assert {"--partition=gpu", "--account=lab", "--qos=high", "--gres=gpu:1", "--x=1", "--mem=4G"} <= set(asked)
    assert "--cpus-per-task=2" in asked


def test_nobody_else_may_write_the_script_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in a folder that all users share, from its making until it is submitted."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    job = job_of(Site(memory="4G"), tmp_path / "logs")
    with job.job_file() as script:
        assert Path(script).parent == tmp_path
        assert stat.S_IMODE(Path(script).stat().st_mode) == 0o600
        assert Path(script).read_text() == job.job_script()
        assert f" -m {WORKER_MODULE} " in job.job_script()
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_ctrl_c_still_reaches_the_driver() -> None:
    """dask-jobqueue takes the signal for itself when it is imported."""
    look = "import signal; before = signal.getsignal(signal.SIGINT); import emseg.clusters.slurm; "
    look += "assert signal.getsignal(signal.SIGINT) is before, signal.getsignal(signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("left", "seconds"),
    [
        ("0:05", 5),
        ("1:00:00", 3600),
        ("2-00:00:01", 172801),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("NOT_SET", None),
        ("", None),
    ],
)
def test_time_left(left: str, seconds: float | None) -> None:
    assert parse_time(left) == seconds


@pytest.mark.parametrize(
    "fields",
    [
        {"cluster": "slurm"},
        {"cluster": "srun", "workers": 2, "host": "127.0.0.1"},
        {"cluster": "slurm", "scheduler": "tcp://127.0.0.1:8786"},
        {"site": Site()},
    ],
    ids=str,
)
def test_placements_that_exclude_one_another(fields: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        Placement(**fields)  # type: ignore[arg-type]


def test_outside_a_job_there_are_no_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    done = run_emseg("run", "volume.zarr", "--cluster", "srun", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "this process is not in one: use `emseg submit`" in line


def test_without_slurm_nothing_is_submitted(tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = run_emseg("submit", "volume.zarr", "--workers", "2", cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert "there is no sbatch on this machine" in done.stderr


def test_a_run_option_that_is_misspelt_or_not_for_jobs(tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    for words, said in ((["--probabilties"], "No such option"), (["--host", "127.0.0.1"], "--host is not for a run")):
        done = run_emseg("submit", "volume.zarr", "--workers", "2", *words, cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["volume.zarr"]


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for SLURM's command that says that a job runs, and has 90 s left."""
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\nprint('1:30' if '%L' in ''.join(sys.argv) else 'RUNNING (None)')\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return program


def test_the_job_that_this_process_runs_in(squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = SlurmJob.here()
    assert job is not None
    assert (job.number, job.state(), job.seconds_left()) == ("7", "RUNNING", 90.0)
    monkeypatch.delenv("SLURM_JOB_ID")
    assert SlurmJob.here() is None


def test_a_job_that_does_nothing_is_not_queued_for_ever(squeue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queued: list[str] = []
    said: list[str] = []
    monkeypatch.setattr(SlurmJob, "requeue", lambda self: queued.append(self.number))
    monkeypatch.setattr(requeue, "open_output", lambda path: path)
    (tmp_path / "out.zarr").mkdir()
    for fruitless in (0, 2, 3):
        monkeypatch.setattr(requeue, "runs_without_progress", lambda output, n=fruitless: n)
        requeue.requeue_job(tmp_path / "v.zarr", tmp_path / "out.zarr", said.append)
    assert queued == ["7", "7"]
    assert "the last 3 runs finished no block" in said[-1]


def test_a_job_that_was_cancelled_is_not_queued_again(squeue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue.write_text(squeue.read_text().replace("RUNNING", "COMPLETING"))
    monkeypatch.setattr(SlurmJob, "requeue", lambda self: pytest.fail("it was"))
    said: list[str] = []
    requeue.requeue_job(tmp_path / "v.zarr", None, said.append)
    assert said == ["not requeued: the job is COMPLETING"]
