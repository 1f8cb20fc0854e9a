"""Test that the cluster for job tests behaves as real clusters do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

import psutil
import pytest
from slurm.cluster import TICK, SlurmCluster, slurm_cluster

PATIENT = """\
import os, signal, subprocess, sys, time

def told(number, frame):
    print(signal.Signals(number).name, time.time(), flush=True)
    if "leave" in sys.argv:
        sys.exit()

signal.signal(signal.SIGTERM, told)
if "stray" in sys.argv:
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
print("ready", os.environ.get("SLURM_RESTART_COUNT", 0), flush=True)
while True:
    time.sleep(0.1)
"""
"""Program that reports each SIGTERM, and exits at the first one if asked to."""


@pytest.fixture(autouse=True)
def _no_jobs_left(slurm: SlurmCluster) -> Iterator[None]:
    yield
    slurm.cancel_all()


def patient(slurm: SlurmCluster, *arguments: str, options: tuple[str, ...] = ()) -> str:
    """Return the id of a running job that is a single process of `PATIENT`."""
    (slurm.scratch / "patient.py").write_text(PATIENT)
    job = slurm.submit(f"exec {sys.executable} patient.py {' '.join(arguments)}", *options)
    slurm.wait_until(lambda: "ready" in slurm.output(job))
    return job


def terms(slurm: SlurmCluster, job: str) -> list[float]:
    """Return when the process of a job got SIGTERM."""
    return [float(line.split()[1]) for line in slurm.output(job).splitlines() if line.startswith("SIGTERM")]


def has_restarted(slurm: SlurmCluster, job: str) -> bool:
    found = slurm.job(job)
    return found["restarts"] == 1 and found["state"] not in ("COMPLETING", "PENDING")


def processes_of(folder: Path) -> list[str]:
    """Return all processes of a cluster, including its jobs."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_CONF", "").startswith(str(folder)):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_each_node_has_its_own_name_and_processes(slurm: SlurmCluster) -> None:
    look = "echo $SLURMD_NODENAME $(hostname) $(cat /proc/[0-9]*/comm | grep -xc slurmctld)"
    said = slurm.run("srun", "-N3", "bash", "-c", look)
    assert sorted(said.splitlines()) == [f"{node} {node} 0" for node in slurm.nodes]


def test_only_some_folders_are_shared(slurm: SlurmCluster) -> None:
    """A file that a program writes into ``/tmp`` does not exist for the others."""
    with tempfile.NamedTemporaryFile(dir="/tmp") as here:
        (slurm.scratch / "shared").touch()
        slurm.run("srun", "-w", "n1", "touch", "/tmp/of-n1")
        look = f"ls {here.name} /tmp/of-n1 {slurm.scratch}/shared 2> /dev/null || true"
        seen = {node: slurm.run("srun", "-w", node, "bash", "-c", look).split() for node in slurm.nodes}
        assert Path(here.name).exists()
    shared = str(slurm.scratch / "shared")
    assert seen == {"n1": ["/tmp/of-n1", shared], "n2": [shared], "n3": [shared]}
    assert not Path("/tmp/of-n1").exists()


def test_this_python_is_on_all_nodes(slurm: SlurmCluster) -> None:
    assert slurm.run("srun", "-N3", sys.executable, "-c", "import emseg; print(emseg.__name__)").split() == ["emseg"] * 3


def test_no_two_jobs_have_one_gpu(slurm: SlurmCluster) -> None:
    """Of eight jobs, six run at once."""
    script = "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES $(date +%s.%N); until [ -e go ]; do sleep 0.1; done; date +%s.%N"
    jobs = [slurm.submit(script, "--gres=gpu:1", "--mem=10") for _ in range(8)]
    slurm.wait_until(lambda: sorted(map(slurm.state, jobs)) == ["PENDING"] * 2 + ["RUNNING"] * 6)
    (slurm.scratch / "go").touch()
    slurm.wait_until(lambda: not slurm.jobs())
    used = [slurm.output(job).split() for job in jobs]
    assert {(node, gpu) for node, gpu, _, _ in used} == {(node, gpu) for node in slurm.nodes for gpu in "01"}
    for (*one, began, ended), (*other, began_too, ended_too) in combinations(used, 2):
        assert one != other or float(ended) <= float(began_too) or float(ended_too) <= float(began)


def test_a_batch_job_reaches_its_other_nodes(slurm: SlurmCluster) -> None:
    """Steps reach them, also while another step runs; they must not request memory."""
    step = "srun --overlap --mem=0"
    job = slurm.submit(
        f"{step} sleep 1 & {step} hostname; {step} hostname; echo $CUDA_VISIBLE_DEVICES; wait", "-N3", "--gres=gpu:2"
    )
    slurm.wait_for(job)
    *hosts, gpus = slurm.output(job).split()
    assert (slurm.state(job), sorted(hosts), gpus) == ("COMPLETED", sorted(2 * slurm.nodes), "0,1")


def test_a_requeued_job_starts_again_soon(slurm: SlurmCluster) -> None:
    """It is requeued from outside, and by itself as its last action."""
    itself = slurm.submit("echo run $SLURM_RESTART_COUNT; [ $SLURM_RESTART_COUNT ] || exec scontrol requeue $SLURM_JOB_ID")
    told = patient(slurm, "leave")
    slurm.run("scontrol", "requeue", told)
    for job in (itself, told):
        assert slurm.wait_until(partial(has_restarted, slurm, job), 100) < 100  # the default is 120
    slurm.wait_until(lambda: "ready 1" in slurm.output(told))
    slurm.wait_for(itself)
    # SLURM may report, in between, that it cancelled a step which had not quite ended.
    assert re.findall(r"^run.*", slurm.output(itself), re.MULTILINE) == ["run", "run 1"]
    assert len(terms(slurm, told)) == 1


def test_nothing_of_a_cancelled_job_goes_on(slurm: SlurmCluster) -> None:
    """A job that ignores SIGTERM is killed a few seconds later, and so are its detached processes."""
    job = patient(slurm, "stray")
    slurm.run("scancel", job)
    assert 3 < slurm.wait_for(job, "CANCELLED") < 30  # the default is longer
    assert terms(slurm, job)
    assert not [line for line in processes_of(slurm.folder) if "sleep" in line or "patient" in line]


def test_time_runs_out(slurm: SlurmCluster) -> None:
    """A job that requests a signal gets it early, and once. Others get it at the end, and are then killed."""
    ahead = 10
    warned = patient(slurm, "leave", options=("--time=10", f"--signal=B:TERM@{ahead}"))
    surprised = patient(slurm, options=("--time=10",))
    slurm.end_in(warned, int(ahead + TICK + 5))
    slurm.end_in(surprised, 1)
    end = float(slurm.run("bash", "-c", f'date +%s -d "$(squeue --noheader -j {warned} -o %e)"'))
    slurm.wait_until(lambda: terms(slurm, warned) and terms(slurm, surprised), TICK + 10)
    assert ahead - 2 < end - terms(slurm, warned)[0] < ahead + TICK + 2
    slurm.wait_for(surprised, "TIMEOUT")
    slurm.wait_until(lambda: not slurm.jobs())
    assert (slurm.state(warned), len(terms(slurm, warned))) == ("COMPLETED", 1)


def test_a_job_of_a_dead_node_starts_elsewhere(slurm: SlurmCluster) -> None:
    job = patient(slurm, "leave")
    node = slurm.job(job)["node"]
    slurm.kill_node(node)
    slurm.wait_until(lambda: "ready 1" in slurm.output(job), 30)
    assert slurm.job(job)["node"] != node
    slurm.start_node(node)
    slurm.wait_until(lambda: "down" not in slurm.run("sinfo", "--noheader", "--Node", "--format=%T"))


def test_nothing_is_left_of_a_cluster_whose_test_failed(slurm_parent: Path) -> None:
    folder = slurm_parent / f"emseg-slurm-{os.getpid()}"

    def fail() -> None:
        with slurm_cluster(folder, nodes=1) as cluster:
            patient(cluster, "stray")
            assert [line for line in processes_of(folder) if "sleep" in line]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not folder.exists()
    assert not processes_of(folder)


def test_no_process_is_left_of_tests_that_were_killed(slurm: SlurmCluster, slurm_parent: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="emseg-slurm-", dir=slurm_parent) as folder:
        code = f"""if True:
            from pathlib import Path
            from slurm.cluster import slurm_cluster
            with slurm_cluster(Path({folder!r}), nodes=1) as cluster:
                cluster.submit("sleep 1000")
                cluster.wait_until(lambda: cluster.jobs()[0]["state"] == "RUNNING")
                input(print("running", flush=True))
        """
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", code], env=env, stdin=pipe, stdout=pipe) as tests:
            assert tests.stdout is not None
            assert tests.stdout.readline() == b"running\n"
            assert len(processes_of(Path(folder))) > 4
            tests.send_signal(signal.SIGKILL)
        slurm.wait_until(lambda: not processes_of(Path(folder)), 10)
