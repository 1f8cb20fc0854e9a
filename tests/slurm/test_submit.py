"""Test `emseg submit` on a real SLURM: the bytes of a local run, even if jobs are cancelled or run out of time."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from runs import bytes_of, run_emseg, save_volume, shards, slowed, snapshot, texture
from slurm.cluster import SlurmCluster

from emseg.flows.records.run_log import lines_of
from emseg_core.store.outputs.lifecycle import open_output

pytestmark = pytest.mark.timeout(400)

SMALL = ("--cpus", "1", "--memory", "1500M")
NOBODY = 65534
STRANGER = """
import os, sys
from distributed import Client, Security
from pathlib import Path
address, keys, user = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
own = Security.temporary()
os.setgid(user)
os.setuid(user)
for where, security in ((address, own), (address.replace("tls://", "tcp://"), None)):
    try:
        Client(where, security=security, timeout="3s")
        print("let in")
    except OSError as error:
        print("kept out:", error)
try:
    print("read:", list(keys.iterdir()))
except PermissionError as error:
    print("kept out:", error)
"""
"""Program of another user of the cluster who knows everything that is public."""


class Site:
    """A folder that all nodes share, with a volume and the output of a local run."""

    def __init__(self, slurm: SlurmCluster, folder: Path) -> None:
        self.slurm = slurm
        self.folder = folder
        save_volume(folder / "volume.zarr", texture((64, 150, 150)), (32, 64, 64))
        done = run_emseg("run", "volume.zarr", "-o", "local.zarr", "--workers", "0", cwd=folder)
        assert done.returncode == 0, done.stderr
        self.blocks = len(shards(folder / "local.zarr"))
        plan = run_emseg("plan", "volume.zarr", "--json", cwd=folder)
        self.tiles = json.loads(plan.stdout)["cost"]["tiles"]

    def emseg(self, *words: object, env: Mapping[str, str] | None = None, timeout: float = 60) -> str:
        """Run a command on the machine where jobs are submitted, and return its output."""
        command = [sys.executable, "-m", "emseg", *map(str, words)]
        env = {**(env or {}), **self.slurm.env}
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, output: str, *words: object, seconds: float = 0.0) -> str:
        """Submit a job and return its number. Its predictions together take this much longer on any machine."""
        slow = slowed(seconds / self.tiles)
        said = self.emseg("submit", "volume.zarr", "-o", output, "--device", "cpu", *SMALL, *words, env=slow)
        return said.split()[1]

    def address(self, output: str) -> str:
        """Return the address of a run's scheduler, from its workers' logs."""
        return str(re.findall(r"Waiting to connect to: +(tls://\S+)", self.log(output))[-1])

    def wait_for_blocks(self, output: str, count: int) -> None:
        self.slurm.wait_until(lambda: len(shards(self.folder / output)) >= count, 120)

    def status(self, output: str) -> dict[str, Any]:
        return dict(json.loads(self.emseg("status", output, "--json")))

    def check(self, output: str) -> None:
        """Check that everything is as after a local run, and that nothing is left behind."""
        assert bytes_of(self.folder / output) == bytes_of(self.folder / "local.zarr")
        self.slurm.wait_until(lambda: not self.slurm.jobs(), 60)
        assert not list(self.folder.glob(f".{output}.tls-*"))

    def log(self, output: str) -> str:
        return "".join(path.read_text() for path in sorted((self.folder / f"{output}.slurm").glob("*.log")))

    def events(self, output: str, event: str) -> list[dict[str, Any]]:
        """Return all lines of this kind from the records of all runs."""
        stored = open_output(self.folder / output)
        runs = len(list((self.folder / output / "emseg").glob("run-*")))
        return [line for run in range(1, runs + 1) for line in lines_of(stored, run) if line["event"] == event]


@pytest.fixture(scope="module")
def site(slurm: SlurmCluster) -> Iterator[Site]:
    folder = slurm.scratch / "submit"
    folder.mkdir()
    yield Site(slurm, folder)
    shutil.rmtree(folder)


def test_one_allocation_and_another_user(site: Site) -> None:
    job = site.submit("one.zarr", "--workers", "2", "--gres", "gpu:1", seconds=40)
    site.wait_for_blocks("one.zarr", 2)
    (keys,) = site.folder.glob(".one.zarr.tls-*")
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert f"job {job}" in site.status("one.zarr")["holder"]
    assert site.status("one.zarr")["job"] == f"job {job}: RUNNING"
    command = [sys.executable, "-c", STRANGER, site.address("one.zarr"), str(keys), str(NOBODY)]
    stranger = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert [line[:8] for line in stranger.stdout.splitlines()] == ["kept out"] * 3, stranger
    assert site.slurm.state(job) == "RUNNING", "there was nothing left to keep anybody out of"
    site.slurm.wait_for(job, "COMPLETED", seconds=200)
    assert len({line["worker"] for line in site.events("one.zarr", "joined")}) == 2
    site.check("one.zarr")


def test_elastic_and_a_worker_that_is_cancelled(site: Site) -> None:
    """It is replaced. At most its blocks in progress are repeated."""
    job = site.submit("elastic.zarr", "--workers", "2", "--elastic", seconds=80)
    site.wait_for_blocks("elastic.zarr", 3)
    workers = [found["id"] for found in site.slurm.jobs() if found["id"] != job]
    assert len(workers) == 2
    site.slurm.run("scancel", workers[0])
    site.slurm.wait_for(job, "COMPLETED", seconds=300)
    assert len({line["worker"] for line in site.events("elastic.zarr", "joined")}) >= 3
    assert len(site.events("elastic.zarr", "block")) == site.blocks
    site.check("elastic.zarr")


def test_no_more_jobs_than_there_are_blocks_left(site: Site) -> None:
    shutil.copytree(site.folder / "local.zarr", site.folder / "adapted.zarr")
    for shard in shards(site.folder / "adapted.zarr")[:2]:
        shard.unlink()
    job = site.submit("adapted.zarr", "--adapt", "1:3", "--elastic")
    site.slurm.wait_for(job, "COMPLETED", seconds=200)
    joined = {line["worker"] for line in site.events("adapted.zarr", "joined")}
    assert len([worker for worker in joined if worker.startswith("tls://")]) in (1, 2), joined
    workers = [
        found["id"] for found in site.slurm.jobs(ended=True) if found["name"] == "emseg-worker" and int(found["id"]) > int(job)
    ]
    assert len(workers) == 2
    site.check("adapted.zarr")


def test_out_of_time_it_queues_itself_again(site: Site) -> None:
    job = site.submit("long.zarr", "--workers", "2", "--time", "1:00:00", seconds=20)
    site.wait_for_blocks("long.zarr", 2)
    site.slurm.run("scancel", "--batch", "--signal=TERM", job)  # as SLURM does ahead of the end
    site.slurm.wait_for(job, "COMPLETED", seconds=300)
    assert f"job {job} is requeued" in site.log("long.zarr")
    assert site.slurm.job(job)["restarts"] >= 1
    assert len(site.events("long.zarr", "block")) == site.blocks, "a block was computed twice"
    site.check("long.zarr")


def test_preempted_it_goes_on(site: Site) -> None:
    """A job with a higher priority takes its nodes, and SLURM requeues it automatically."""
    job = site.submit("preempted.zarr", "--workers", "2", seconds=40)
    site.wait_for_blocks("preempted.zarr", 2)
    urgent = site.slurm.submit("sleep 5", "--partition=urgent", "--nodes=3", "--exclusive")
    site.slurm.wait_for(urgent, "COMPLETED", seconds=120)
    site.slurm.wait_for(job, "COMPLETED", seconds=300)
    assert site.slurm.job(job)["restarts"] >= 1
    assert "is requeued" not in site.log("preempted.zarr"), "SLURM does that"
    assert len(site.events("preempted.zarr", "block")) >= site.blocks
    site.check("preempted.zarr")


@pytest.mark.timeout(1200)
def test_runs_of_five_minutes_in_jobs_of_two(site: Site) -> None:
    """SLURM's own limits end the jobs, and each run finishes by itself. No block is computed twice."""
    ways: dict[str, tuple[str, ...]] = {"whole.zarr": (), "single.zarr": ("--elastic",)}
    jobs = {output: site.submit(output, "--workers", "1", "--time", "2", *way, seconds=300) for output, way in ways.items()}
    for output, job in jobs.items():
        site.slurm.wait_for(job, "COMPLETED", seconds=1000)
        assert site.slurm.job(job)["restarts"] >= 2
        blocks = [line["block"] for line in site.events(output, "block")]
        assert sorted(blocks) == list(range(site.blocks)), "a block was computed twice"
    for output in jobs:
        site.check(output)


def test_cancelled_in_the_middle_and_gone_on_with_by_hand(site: Site) -> None:
    job = site.submit("cancelled.zarr", "--workers", "1", "--elastic", seconds=40)
    site.wait_for_blocks("cancelled.zarr", 2)
    site.slurm.run("scancel", job)
    site.slurm.wait_for(job, "CANCELLED", seconds=60)
    site.slurm.wait_until(lambda: not site.slurm.jobs(), 90)
    assert "is requeued" not in site.log("cancelled.zarr")
    again = run_emseg("run", "volume.zarr", "-o", "cancelled.zarr", "--workers", "2", cwd=site.folder)
    if again.returncode == 2:  # killed before it could release its lease: another host must treat it as dead
        assert "try again" in again.stderr
        lease = max((site.folder / "cancelled.zarr" / "emseg").glob("run-*/lease.json"))
        os.utime(lease, (lease.stat().st_mtime - 120,) * 2)
        again = run_emseg("run", "volume.zarr", "-o", "cancelled.zarr", "--workers", "2", cwd=site.folder)
    assert again.returncode == 0, again.stderr
    assert bytes_of(site.folder / "cancelled.zarr") == bytes_of(site.folder / "local.zarr")


def test_instances(site: Site) -> None:
    """They are labelled by the workers of the job, and once more by hand with other jobs."""
    done = run_emseg("run", "volume.zarr", "-o", "neurons.zarr", "--workers", "0", "--instances", cwd=site.folder)
    assert done.returncode == 0, done.stderr
    job = site.submit("numbered.zarr", "--workers", "2", "--instances")
    site.slurm.wait_for(job, "COMPLETED", seconds=200)
    assert bytes_of(site.folder / "numbered.zarr") == bytes_of(site.folder / "neurons.zarr")
    job = site.emseg("submit", "label", "numbered.zarr", "--name", "submitted", "--workers", "2", *SMALL).split()[1]
    site.slurm.wait_for(job, "COMPLETED", seconds=200)
    (site.folder / "site.toml").write_text('cpus = 1\nmemory = "1500M"\n')
    words = ("--cluster", "slurm", "--workers", "2", "--site", "site.toml", "--name", "again")
    site.emseg("label", "numbered.zarr", *words, timeout=200)
    labels = site.folder / "numbered.zarr" / "labels"
    first, *others = (snapshot(labels / name / "0") for name in ("instances", "submitted", "again"))
    assert others == [first, first]


@pytest.mark.parametrize(
    "values",
    [
        'memory = "1500M"\ngres = "gpu:1,lscratch:50"\noptions = ["-N1"]\n',
        'options = ["-N1", "--mem=3000M", "--gpus-per-node=2"]\n',
        'options = ["-N1", "--mem-per-gpu=1500", "--gpus-per-task=1"]\n',
    ],
    ids=["per-node", "whole-node", "per-gpu"],
)
def test_workers_share_a_node_and_their_logs_lie_beside_the_output(
    site: Site, values: str, request: pytest.FixtureRequest
) -> None:
    """Resources per node are requested once, so that no step waits for another. A % in a name is kept."""
    output = f"{request.node.callspec.id} vol%j 2%uranyl.zarr"
    (site.folder / "shared.toml").write_text(values)
    words = ("submit", "volume.zarr", "-o", output, "--device", "cpu", "--workers", "2", "--site", "shared.toml")
    job = site.emseg(*words, env=slowed(40 / site.tiles)).split()[1]
    site.slurm.wait_for(job, seconds=200)
    assert site.slurm.state(job) == "COMPLETED", site.log(output)
    logs = {path.name for path in (site.folder / f"{output}.slurm").glob("*.log")}
    assert logs == {f"{job}.log", f"{job}-emseg-0.log", f"{job}-emseg-1.log"}
    assert len({line["worker"] for line in site.events(output, "joined")}) == 2
    site.check(output)


@pytest.mark.parametrize("elastic", [(), ("--elastic",)])
def test_memory_that_comes_with_cores_is_not_asked_for_also_from_within_a_job(site: Site, elastic: tuple[str, ...]) -> None:
    """The new job inherits nothing from the job that submits it, whose memory would not fit."""
    output = f"within{len(elastic)}.zarr"
    words = ("submit", "volume.zarr", "-o", output, "--device", "cpu", *SMALL, "--memory", "none", "--workers", "2", *elastic)
    emseg = (sys.executable, "-m", "emseg", *words)
    said = site.slurm.run("salloc", "--mem=3900M", f"--chdir={site.folder}", *emseg, timeout=120)
    job = re.findall(r"^job +(\d+)$", said, re.M)[0]
    site.slurm.wait_for(job, seconds=200)
    assert site.slurm.state(job) == "COMPLETED", site.log(output)
    assert "--mem" not in (site.folder / f"{output}.slurm" / "job.sh").read_text()
    site.check(output)


def test_the_script_is_shown(site: Site) -> None:
    options = ("--workers", "3", "--gres", "gpu:a100:1", "--time", "2:00:00", "--partition", "normal", "--threads", "2")
    said = site.emseg("submit", "volume.zarr", "-o", "never.zarr", *options, "--dry-run")
    wanted = ["--ntasks=3", "--cpus-per-task=2", "--gpus-per-task=a100:1", "--time=2:00:00", "--partition=normal"]
    assert set(wanted) <= {line.removeprefix("#SBATCH ") for line in said.splitlines()}
    assert subprocess.run(["bash", "-n"], input=said, text=True).returncode == 0
    assert not (site.folder / "never.zarr.slurm").exists()


def test_what_slurm_refuses_is_said(site: Site) -> None:
    command = ("submit", "volume.zarr", "-o", "no.zarr", "--workers", "1", "--partition", "nowhere")
    done = run_emseg(*command, cwd=site.folder, env=site.slurm.env)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "SLURM refuses the job" in line
    assert "invalid partition" in line
