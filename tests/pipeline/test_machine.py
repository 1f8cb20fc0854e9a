"""Test how many cores and how much memory a process may use, with cgroup trees as Linux shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from emseg_core import machine

GIB = 2**30


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty tree on a machine with 16 cores and 64 GiB."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "_affinity", lambda: 16)
    monkeypatch.setattr(psutil, "virtual_memory", type("Memory", (), {"total": 64 * GIB}))
    for name in list(os.environ):
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)
    return tmp_path


def put(root: Path, path: str, text: str) -> None:
    """Write one file of the tree."""
    file = root / "cgroup" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def test_without_limits(cgroups: Path) -> None:
    assert (machine.usable_cores(), machine.usable_memory()) == (16, 64 * GIB)
    (cgroups / "own").write_text("0::/\n")
    put(cgroups, "cpu.max", "max 100000")
    put(cgroups, "memory.max", "max")
    assert (machine.usable_cores(), machine.usable_memory()) == (16, 64 * GIB)


def test_version_2_of_a_container(cgroups: Path) -> None:
    (cgroups / "own").write_text("0::/\n")
    put(cgroups, "cpu.max", "250000 100000")
    put(cgroups, "memory.max", str(3 * GIB))
    assert (machine.usable_cores(), machine.usable_memory()) == (3, 3 * GIB)


def test_a_group_around_this_one_may_be_smaller(cgroups: Path) -> None:
    """A step of a SLURM job is like this: its own group has no limit."""
    (cgroups / "own").write_text("0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n")
    put(cgroups, "system.slice/slurmstepd.scope/job_7/memory.max", str(8 * GIB))
    put(cgroups, "system.slice/slurmstepd.scope/job_7/step_0/memory.high", str(6 * GIB))
    put(cgroups, "system.slice/slurmstepd.scope/job_7/step_0/user/task_0/memory.max", "max")
    put(cgroups, "system.slice/cpu.max", "400000 100000")
    put(cgroups, "system.slice/slurmstepd.scope/cpu.max", "1600000 100000")
    put(cgroups, "other/memory.max", str(GIB))
    assert (machine.usable_cores(), machine.usable_memory()) == (4, 6 * GIB)


@pytest.mark.parametrize("shown", ["docker/abc", ""])
def test_version_1(cgroups: Path, shown: str) -> None:
    """The group's files are at its path, or at the root within a container."""
    (cgroups / "own").write_text("5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n")
    put(cgroups, f"memory/{shown}/memory.limit_in_bytes", str(2 * GIB))
    put(cgroups, f"cpu,cpuacct/{shown}/cpu.cfs_quota_us", "50000")
    put(cgroups, f"cpu,cpuacct/{shown}/cpu.cfs_period_us", "100000")
    assert (machine.usable_cores(), machine.usable_memory()) == (1, 2 * GIB)


def test_version_1_without_limits(cgroups: Path) -> None:
    (cgroups / "own").write_text("5:memory:/\n4:cpu:/\n")
    put(cgroups, "memory/memory.limit_in_bytes", "9223372036854771712")
    put(cgroups, "cpu/cpu.cfs_quota_us", "-1")
    put(cgroups, "cpu/cpu.cfs_period_us", "100000")
    assert (machine.usable_cores(), machine.usable_memory()) == (16, 64 * GIB)


@pytest.mark.parametrize(
    ("variables", "cores", "memory"),
    [
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_NODE": "8192"}, 4, 8 * GIB),
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_CPU": "1024"}, 4, 4 * GIB),
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_NODE": "0"}, 4, 64 * GIB),
        ({"SLURM_CPUS_ON_NODE": "many"}, 16, 64 * GIB),
    ],
)
def test_slurm(variables: dict[str, str], cores: int, memory: int, cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's resources on its node count there. A shell on the login node has the whole login node."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (machine.usable_cores(), machine.usable_memory()) == (16, 64 * GIB)
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    assert (machine.usable_cores(), machine.usable_memory()) == (cores, memory)


def test_cores_of_this_process() -> None:
    """The system reports them, for a process that may use only one core."""
    code = "from emseg_core.machine import usable_cores; print(usable_cores())"
    one = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {one}),
    )
    assert done.stdout == "1\n"
