"""Test that site settings reach SLURM unchanged, and that invalid ones are refused before."""

import os
import shlex
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Security
from runs import run_emseg, save_volume, texture

from emseg.clusters import jobs
from emseg.clusters.jobs import dask_memory, driver_address
from emseg.clusters.local import WORKER_MODULE
from emseg.clusters.slurm import _Job, _job_options
from emseg.flows.running import requeue
from emseg.placement import Placement
from emseg.runs.stop import Stop
from emseg.slurm.job import SlurmJob, environment_for_jobs
from emseg.slurm.options import Option
from emseg.slurm.site import Site, parse_time, read_site
from emseg_core.errors import InputError, PlanError

SHIPPED = Path(__file__).parents[3] / "deploy" / "slurm" / "site.toml"


def test_the_annotated_site_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    filled = {"partition": "gpu", "account": "lab", "interface": "ib0", "module": "cuda/12.4", "feature": "a100"}
    text = SHIPPED.read_text().replace("what is in <>", "it")
    for name, value in filled.items():
        text = text.replace(f"<{name}>", value)
    (tmp_path / "site.toml").write_text(text)
    site = read_site(tmp_path / "site.toml")
    assert (site.partition, site.cpus, site.modules) == ("gpu", 2, ("cuda/12.4",))
    (tmp_path / "again.toml").write_text(site.to_toml())
    assert read_site(tmp_path / "again.toml") == site


def test_an_example_that_was_not_filled_in_is_refused_line_by_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read_site(SHIPPED)
    for line in ('line 6, partition = "<partition>"', 'line 7, account = "<account>"', 'options = ["--constraint=<feature>"]'):
        assert line in str(refused.value)
    assert "time" not in str(refused.value)
    (tmp_path / "shell.toml").write_text('setup = ["sort <a >b"]  # <account>\n')
    assert read_site(tmp_path / "shell.toml").setup == ("sort <a >b",)


def test_what_is_given_wins_over_the_site() -> None:
    site = Site(partition="gpu", cpus=2).replaced(partition="cpu", account="", cpus=None)
    assert (site.partition, site.account, site.cpus) == ("cpu", "", 2)
    site = Site(options=("-p gpu", "--comment='a b'", "--mem-per-gpu=8G", "--gpus-per-node=2"))
    typed = site.replaced(partition="cpu", memory="4G", gres="gpu:1").job_options(2)
    assert typed == (
        "--ntasks=2",
        "--cpus-per-task=1",
        "--gpus-per-task=1",
        "--mem-per-cpu=4096M",
        "--partition=cpu",
        "--comment=a b",
    )


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
    [
        ("", ()),
        ("gpu:1", ("--gpus-per-task=1",)),
        ("gpu:a100:2", ("--gpus-per-task=a100:2",)),
        ("fpga:1", ("--gres=fpga:1",)),
        ("gpu", ("--gpus-per-task=1",)),
        ("gpu:2", ("--gpus-per-task=2",)),
        ("gpu:a100", ("--gpus-per-task=a100:1",)),
        ("gpu:1g.10gb:1", ("--gpus-per-task=1g.10gb:1",)),
        ("lscratch:50", ("--gres=lscratch:50",)),
        ("lscratch:50, gpu:1", ("--gpus-per-task=1", "--gres=lscratch:50")),
        ("gpu:a100:1,lscratch:50,tmp:2", ("--gpus-per-task=a100:1", "--gres=lscratch:50,tmp:2")),
        ("gpu:a100:1,gpu:v100:2", ("--gpus-per-task=a100:1,v100:2",)),
    ],
)
def test_what_each_task_gets(gres: str, wanted: tuple[str, ...]) -> None:
    assert Site(gres=gres).task_options == wanted


def test_workers_with_gpus_are_known_in_any_form() -> None:
    for site in (Site(gres="lscratch:50,gpu"), Site(options=("-G 4",)), Site(options=("--gres=tmp:1,gpu:a100:1",))):
        assert Placement(2, cluster="srun", site=site).computes_on == "cuda"
    for site in (Site(gres="lscratch:50"), Site(options=("--gres=tmp:1",)), Site()):
        assert Placement(2, cluster="srun", site=site).computes_on == "cpu"


SITE = Site(gres="gpu:1,lscratch:50", cpus=2, memory="4G", partition="gpu", time="4:00:00")


def parts(options: Iterable[str], *names: str) -> list[str]:
    """Return the options whose names start like this."""
    return [option for option in options if option.startswith(tuple(f"--{name}" for name in names))]


def jobs_of(site: Site) -> dict[str, tuple[str, ...]]:
    """Return the options of each kind of job."""
    options = {"job": site.job_options(8), "worker": site.job_options(1), "driver": site.driver_options("2048M")}
    return {**options, "step": site.step_options()}


def test_memory_is_asked_for_once_in_every_job() -> None:
    assert {kind: parts(options, "mem") for kind, options in jobs_of(SITE).items()} == {
        "job": ["--mem-per-cpu=2048M"],
        "worker": ["--mem=4G"],
        "driver": ["--mem=2048M"],
        "step": ["--mem=4G"],
    }
    assert parts(Site(memory="0").job_options(2), "mem") == ["--mem=0"]


def test_a_site_without_memory_is_asked_for_none() -> None:
    for options in jobs_of(replace(SITE, memory="none")).values():
        assert not parts(options, "mem")


@pytest.mark.parametrize("given", ["--mem=64G", "--mem 64G", "--mem-per-cpu=3G", "--mem-per-gpu=32G"])
def test_the_users_memory_replaces_ours(given: str) -> None:
    for kind, options in jobs_of(replace(SITE, options=(given, "--gpus-per-task=1"))).items():
        said = "--mem=0" if kind == "step" and "--mem-" not in given else given.replace(" ", "=")
        assert parts(options, "mem") == [said], kind


@pytest.mark.parametrize(
    ("given", "names", "wanted"),
    [
        (("-c 4",), ("cpus",), "--cpus-per-task=4"),
        (("-c4",), ("cpus",), "--cpus-per-task=4"),
        (("--cpus-per-task=4",), ("cpus",), "--cpus-per-task=4"),
        (("--cpus-per-t", "4"), ("cpus",), "--cpus-per-task=4"),
        (("--cpus-per-gpu=4",), ("cpus",), "--cpus-per-gpu=4"),
        (("-t", "1-0"), ("time",), "--time=1-0"),
        (("-p cpu",), ("partition",), "--partition=cpu"),
        (("--part=cpu",), ("partition",), "--partition=cpu"),
        (("-n4",), ("ntasks",), "--ntasks=4"),
        (("--gres=gpu:4",), ("gres", "gpus"), "--gres=gpu:4"),
        (("--gres=tmp:1",), ("gres",), "--gres=tmp:1"),
        (("--gpus-per-task=a100:1",), ("gpus",), "--gpus-per-task=a100:1"),
        (("--gpus-per-node=4",), ("gpus",), "--gpus-per-node=4"),
        (("-G", "8"), ("gpus",), "--gpus=8"),
        (("--no-requeue",), ("requeue", "no-requeue"), "--no-requeue"),
        (("--signal=B:USR1@60",), ("signal",), "--signal=B:USR1@60"),
        (("--mem=1G", "--mem=2G"), ("mem",), "--mem=2G"),
    ],
    ids=str,
)
def test_what_the_user_gives_replaces_ours_in_any_spelling(given: tuple[str, ...], names: tuple[str, ...], wanted: str) -> None:
    options = replace(SITE, options=given).job_options(8, Option("requeue"), Option("signal", "B:TERM@120"))
    assert parts(options, *names) == [wanted]
    assert len({option.partition("=")[0] for option in options}) == len(options)


def test_the_users_cores_share_our_memory() -> None:
    """Memory is requested per core, and a worker needs the same amount for any number of cores."""
    assert parts(replace(SITE, options=("-c 4",)).job_options(8), "mem") == ["--mem-per-cpu=1024M"]


@pytest.mark.parametrize("option", ["constraint=a100", "--comment='a", "a100"])
def test_an_option_that_is_none_is_refused(option: str) -> None:
    with pytest.raises(InputError, match="options"):
        Site(options=(option,))


def test_steps_of_one_job_do_not_wait_for_one_another() -> None:
    """Each requests its share of the job's resources."""
    assert parts(SITE.step_options(), "g") == ["--gpus-per-task=1"]
    assert parts(replace(SITE, options=("--gpus-per-node=4",)).step_options(), "g") == ["--gpus-per-task=1"]
    assert parts(replace(SITE, gres="lscratch:50").step_options(), "g") == ["--gres=none"]


def test_what_is_left_to_the_site_is_noted() -> None:
    assert not Site(partition="a", options=("-t1",)).notes
    notes = "\n".join(Site(gres="gpu:1,lscratch:50").notes)
    assert all(word in notes for word in ("no --partition", "no --time", "--gres=lscratch:50 counts per node"))


def job_of(site: Site, logs: Path) -> Any:
    """Return a job of workers at this site."""
    options = _job_options(2, site, Security(), logs)
    return _Job("tls://127.0.0.1:1", name="emseg-0", **options)


@pytest.mark.parametrize("time", ["", "4:00:00"])
def test_a_worker_job_takes_as_long_as_the_site_says_or_as_the_site_lets_it(time: str, tmp_path: Path) -> None:
    """Without a limit, dask-jobqueue would request half an hour."""
    site = Site(partition="gpu", account="lab", qos="high", time=time, gres="gpu:1", cpus=2, memory="4G", options=("--x=1",))
    lines = job_of(site, tmp_path).job_script().splitlines()
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert [line for line in asked if line.startswith(("-t", "--time"))] == [f"--time={time}"] * bool(time)
    assert {"--partition=gpu", "--account=lab", "--qos=high", "--gpus-per-task=1", "--x=1", "--mem=4G"} <= set(asked)
    assert "--cpus-per-task=2" in asked


def test_paths_with_spaces_and_patterns_reach_slurm_and_the_worker(tmp_path: Path) -> None:
    logs = tmp_path / "vol%j 2%uranyl"
    security = Security(**{f"tls_{name}": str(logs / "a.pem") for name in ("ca_file", "worker_key", "worker_cert")})
    options = _job_options(2, Site(memory="4G", scratch="/a b/$USER"), security, logs)
    script = _Job("tls://127.0.0.1:1", name="emseg-0", **options).job_script()  # type: ignore[no-untyped-call]
    doubled = str(logs).replace("%", "%%")
    headers = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {f"--output={doubled}/emseg-worker-%J.out", f"--error={doubled}/emseg-worker-%J.err"} <= set(headers)
    words = shlex.split(script.splitlines()[-1])
    for option, value in {
        "--tls-key": str(logs / "a.pem"),
        "--local-directory": "/a b/$USER",
        "--memory-limit": "4GiB",
    }.items():
        assert words[words.index(option) + 1] == value
    assert logs.is_dir()
    assert len({header.partition("=")[0] for header in headers}) == len(headers)


@pytest.mark.parametrize("site", [Site(memory="none"), Site(memory="4G", options=("--mem-per-cpu=2G",))], ids=str)
def test_memory_that_slurm_alone_knows_is_no_limit_for_dask(site: Site, tmp_path: Path) -> None:
    assert dask_memory(site) == "0"
    assert " --memory-limit 0 " in job_of(site, tmp_path).job_script()


def test_a_job_inherits_nothing_of_the_job_it_is_submitted_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "8000")
    assert environment_for_jobs() == os.environ, "what is set outside any job is the user's wish"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    kept = {name: value for name, value in environment_for_jobs().items() if name.startswith("SLURM")}
    assert kept == {"SLURM_CONF": "/etc/slurm.conf"}
    assert environment_for_jobs()["PATH"] == os.environ["PATH"]


ADDRESSES = {"lo": "127.0.0.1", "ib0": "10.0.0.7", "eth1": "192.168.3.4"}


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a machine with some interfaces. Its name resolves to loopback, as without an outside route."""
    found = {name: [SimpleNamespace(family=socket.AF_INET, address=address)] for name, address in ADDRESSES.items()}
    monkeypatch.setattr(jobs, "net_if_addrs", lambda: found)
    monkeypatch.setattr(jobs, "get_ip", lambda: "127.0.1.1")


@pytest.mark.parametrize(
    ("site", "address"),
    [
        (Site(interface="ib0"), "10.0.0.7"),
        (Site(interface="ib0", driver_interface="eth1"), "192.168.3.4"),
        (Site(interface="ib9", driver_interface="eth1"), "192.168.3.4"),
    ],
    ids=str,
)
def test_where_the_driver_waits_for_its_workers(interfaces: None, site: Site, address: str) -> None:
    assert driver_address(site) == address


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (Site(interface="ib9"), "interface is 'ib9', but .* set one of them as driver_interface"),
        (Site(interface="ib0", driver_interface="ib9"), "driver_interface is 'ib9', but"),
        (Site(), r"cannot reach the driver at 127\.0\.1\.1.* set one .* as interface"),
        (Site(interface="lo"), r"cannot reach the driver at 127\.0\.0\.1"),
    ],
    ids=str,
)
def test_an_address_that_no_other_node_reaches_is_refused(interfaces: None, site: Site, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        driver_address(site)
    assert "lo (127.0.0.1), ib0 (10.0.0.7), eth1 (192.168.3.4)" in str(refused.value)


def test_on_one_node_loopback_is_enough(interfaces: None) -> None:
    assert driver_address(Site(), one_node=True) == "127.0.1.1"


def test_a_missing_interface_is_told_in_one_line(tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    (tmp_path / "site.toml").write_text('memory = "1G"\ninterface = "ib9"\n')
    done = run_emseg("run", "volume.zarr", "--cluster", "slurm", "--workers", "2", "--site", "site.toml", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "ib9" in line]
    assert line.startswith("error: interface is 'ib9', but the interfaces of this machine")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("elastic", [(), ("--elastic",)])
def test_the_dry_run_shows_each_option_once_and_what_is_left_to_slurm(elastic: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "vol%j ünï"
    folder.mkdir()
    save_volume(folder / "v.zarr", texture((3, 40, 40)))
    (folder / "site.toml").write_text('gres = "gpu:1,lscratch:50"\noptions = ["--mem=0", "--exclusive", "-c 4"]\n')
    done = run_emseg("submit", "v.zarr", "--workers", "8", "--site", "site.toml", "--dry-run", *elastic, cwd=folder)
    assert done.returncode == 0, done.stderr
    options = [shlex.split(line)[1] for line in done.stdout.splitlines() if line.startswith("#SBATCH")]
    names = [option.partition("=")[0] for option in options]
    assert len(set(names)) == len(names)
    assert sorted(parts(options, "mem", "cpus")) == ["--cpus-per-task=4", "--mem=0"]
    doubled = str(folder).replace("%", "%%")
    assert parts(options, "output", "chdir") == [f"--chdir={folder}", f"--output={doubled}/v.emseg.zarr.slurm/%j.log"]
    if not elastic:
        assert parts(options, "g") == ["--gpus-per-task=1", "--gres=lscratch:50"]
    notes = [line for line in done.stdout.splitlines() if line.startswith("# note: ")]
    assert all(word in note for word, note in zip(("no --partition", "no --time", "--gres=lscratch"), notes, strict=True))


def test_nobody_else_may_write_the_script_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script is in a folder that all users share, from its creation until it is submitted."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    job = job_of(Site(memory="4G"), tmp_path / "logs")
    with job.job_file() as script:
        assert Path(script).parent == tmp_path
        assert stat.S_IMODE(Path(script).stat().st_mode) == 0o600
        assert Path(script).read_text() == job.job_script()
        assert f" -m {WORKER_MODULE} " in job.job_script()
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_ctrl_c_still_reaches_the_driver() -> None:
    """dask-jobqueue takes over the signal when it is imported."""
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
    """Install a stand-in for SLURM's command that reports a running job with 90 s left."""
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
