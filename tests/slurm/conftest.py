"""Fixture: one SLURM cluster for all tests that need it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm.cluster import SlurmCluster, missing, slurm_cluster


@pytest.fixture(scope="session")
def slurm_parent() -> Path:
    """Return the folder for clusters: ``EMSEG_SLURM``, or one that nodes can see."""
    why = missing()
    if why:
        pytest.skip(why)
    return Path(os.environ.get("EMSEG_SLURM", "/var/lib"))


@pytest.fixture(scope="session")
def slurm(slurm_parent: Path) -> Iterator[SlurmCluster]:
    """Start three nodes of 2 CPUs and 2 GPUs each."""
    with slurm_cluster(Path(tempfile.mkdtemp(prefix="emseg-slurm-", dir=slurm_parent)), gpus=2) as cluster:
        yield cluster
