"""Test worker jobs of other batch systems, as dask-jobqueue writes them, with stand-ins for their commands."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from distributed import Security
from runs import bytes_of, run_emseg, save_volume, texture

from emseg.clusters import lsf, pbs, sge
from emseg.clusters.jobs import worker_job_options
from emseg.slurm.site import Site
from emseg_core.errors import InputError

SYSTEMS = {"lsf": lsf, "pbs": pbs, "sge": sge}
SITE = Site(partition="long", account="lab", time="4:30:00", cpus=2, memory="4G", options=("-X one",))
HEADERS = {
    "lsf": ["-q long", '-P "lab"', "-n 2", '-R "span[hosts=1]"', "-M 4294968", "-W 4:30", "-X one"],
    "pbs": ["-q long", "-A lab", "-l select=1:ncpus=2:mem=4294967296b", "-l walltime=16200", "-X one"],
    "sge": ["-q long", "-P lab", "-l h_vmem=2147483648", "-l h_rt=16200", "-pe smp 2", "-X one"],
}
MARKS = {"lsf": "#BSUB ", "pbs": "#PBS ", "sge": "#$ "}


def script_of(system: str, site: Site, logs: Path, security: Security | None = None) -> str:
    """Return the script of a worker job."""
    module: Any = SYSTEMS[system]
    options = {**worker_job_options(2, site, security or Security(), logs), **module.requests(site)}
    return str(module.WorkerJob("tls://10.0.0.1:1", name="emseg-0", **options).job_script())


def headers_of(system: str, site: Site, logs: Path) -> list[str]:
    lines = script_of(system, site, logs).splitlines()
    return [line.removeprefix(MARKS[system]) for line in lines if line.startswith(MARKS[system])]


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_a_worker_job_asks_for(system: str, tmp_path: Path) -> None:
    headers = headers_of(system, SITE, tmp_path / "logs")
    assert [header for header in headers if header in HEADERS[system]] == HEADERS[system]
    assert len(set(headers)) == len(headers)
    assert any(str(tmp_path / "logs") in header for header in headers)


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_the_site_does_not_set_is_left_to_the_batch_system(system: str, tmp_path: Path) -> None:
    """dask-jobqueue would request half an hour."""
    headers = " ".join(headers_of(system, Site(memory="none"), tmp_path / "logs"))
    for word in ("-q ", "-W ", "-M ", "walltime", "mem=", "h_vmem", "h_rt"):
        assert word not in headers


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_worker_joins_by_the_runs_certificate(system: str, tmp_path: Path) -> None:
    security = Security(**{f"tls_{name}": str(tmp_path / "a b.pem") for name in ("ca_file", "worker_key", "worker_cert")})
    words = shlex.split(script_of(system, SITE, tmp_path / "logs", security).splitlines()[-1])
    assert words[:3] == [sys.executable, "-m", "emseg.clusters.worker"]
    wanted = {"--tls-key": str(tmp_path / "a b.pem"), "--tls-cert": str(tmp_path / "a b.pem"), "--memory-limit": "4.00GiB"}
    assert {option: words[words.index(option) + 1] for option in wanted} == wanted


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("values", [{"gres": "gpu:1"}, {"qos": "high"}], ids=str)
def test_a_setting_that_a_batch_system_lacks_is_refused_by_name(system: str, values: dict[str, str]) -> None:
    (name,) = values
    module: Any = SYSTEMS[system]
    with pytest.raises(InputError, match=f"{name} is .* {system.upper()}: give the option for it in options"):
        module.requests(Site(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", ["1G", "2047M"])
def test_address_space_that_no_worker_of_sge_starts_in_is_refused(memory: str) -> None:
    with pytest.raises(InputError, match=f"memory is '{memory}', but SGE limits address space .* needs 2 GiB: raise it"):
        sge.requests(Site(memory=memory, cpus=2))
    assert sge.requests(Site(memory="2G", cpus=2))["resource_spec"] == f"h_vmem={2**30}"


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_run_that_would_queue_itself_again_is_refused(system: str, tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    done = run_emseg("run", "volume.zarr", "--cluster", system, "--workers", "1", "--requeue", cwd=tmp_path)
    assert done.returncode == 2
    assert f"--requeue is for SLURM, not for --cluster {system}" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["volume.zarr"]


SUBMIT = f"""#!{sys.executable}
import os, subprocess, sys
script = sys.stdin.read() if len(sys.argv) == 1 else open(sys.argv[1]).read()
process = subprocess.Popen(["bash", "-c", script], start_new_session=True, stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(f"Job <{{process.pid}}> is submitted")
"""
CANCEL = f"""#!{sys.executable}
import os, signal, sys
open(__file__ + ".log", "a").write(sys.argv[1] + "\\n")
os.killpg(int(sys.argv[1]), signal.SIGTERM)
"""
"""Stand-ins that run each job at once, as a process of this machine with the job's number as its process number."""


@pytest.mark.parametrize(
    ("system", "submit", "cancel"), [("lsf", "bsub", "bkill"), ("pbs", "qsub", "qdel"), ("sge", "qsub", "qdel")]
)
def test_a_run_on_jobs_gives_the_bytes_of_a_local_run(
    system: str, submit: str, cancel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, content in ((submit, SUBMIT), (cancel, CANCEL)):
        (commands / name).write_text(content)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    (tmp_path / "site.toml").write_text('memory = "2G"\n')
    local = run_emseg("run", "volume.zarr", "-o", "local.zarr", "--workers", "0", cwd=tmp_path)
    assert local.returncode == 0, local.stderr
    words = ("--cluster", system, "--adapt", "1:2", "--site", "site.toml")
    done = run_emseg("run", "volume.zarr", "-o", "out.zarr", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert bytes_of(tmp_path / "out.zarr") == bytes_of(tmp_path / "local.zarr")
    assert not [*tmp_path.glob(".out.zarr.tls-*")]
    assert (commands / f"{cancel}.log").read_text().split()
