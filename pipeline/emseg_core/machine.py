"""Resources of this process: cores and memory, as limited by machine, cgroups and SLURM job, and open files."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of groups of processes."""
OWN_CGROUPS = Path("/proc/self/cgroup")
"""Where Linux lists the groups of this process, of version 1 and 2."""
MEBIBYTE = 2**20
MOST_OPEN_FILES = 2**16
"""The soft limit is not raised further: some programs close every number below it when they start."""


def usable_cores() -> int:
    """Return how many cores this process may keep busy.

    Returns
    -------
    int
        At least 1.
    """
    limits = [float(_affinity()), *_quotas()]
    if slurm := _slurm("SLURM_CPUS_ON_NODE"):
        limits.append(slurm)
    return max(1, math.ceil(min(limits)))


def usable_memory() -> int:
    """Return how much memory this process and those that it starts may use.

    Returns
    -------
    int
        Bytes.
    """
    limits = [int(psutil.virtual_memory().total), *_memory_limits()]
    node = _slurm("SLURM_MEM_PER_NODE") or _slurm("SLURM_MEM_PER_CPU") * _slurm("SLURM_CPUS_ON_NODE")
    if node:
        limits.append(node * MEBIBYTE)
    return min(limits)


def raise_file_limit() -> int:
    """Raise the limit on open files for this process and its children, as far as the system allows, up to a bound.

    Returns
    -------
    int
        How many they may have open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_OPEN_FILES
    allowed = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if allowed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(soft, allowed)


def _affinity() -> int:
    """Return the number of cores that the system may run this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _slurm(name: str) -> int:
    """Return a number that SLURM tells each process on a node of a job; 0 if there is none.

    A shell that `salloc` opens on a login node has the variables of its job, but not the name of a node.
    """
    value = os.environ.get(name, "") if "SLURMD_NODENAME" in os.environ else ""
    return int(value) if value.isdecimal() else 0


def _quotas() -> Iterator[float]:
    """Yield how many cores each cgroup may keep busy."""
    for folder in _folders("cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quota, period = quota or _text(folder / "cpu.cfs_quota_us"), period or _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)


def _memory_limits() -> Iterator[int]:
    """Yield how much memory each cgroup may use, in bytes."""
    for folder in _folders("memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            if (limit := _text(folder / name)).isdecimal():
                yield int(limit)


def _folders(controller: str) -> Iterator[Path]:
    """Yield the folder of each cgroup that this process is in, and of those around it, for one controller.

    Within a container, the paths may be those of the host, while only the container's own folder is there, at the root.
    """
    for line in _text(OWN_CGROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots = [CGROUPS, CGROUPS / "unified"]
        elif controller in controllers.split(","):
            roots = [CGROUPS / controllers, CGROUPS / controller]
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for root in roots:
            for part in (inner, *inner.parents):
                yield root / part


def _text(file: Path) -> str:
    """Return the content of a file without surrounding spaces, or nothing if it cannot be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
