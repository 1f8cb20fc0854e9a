"""Fixture: one SGE for all tests that need it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sge.cluster import SgeCluster, missing, sge_cluster


@pytest.fixture(scope="session")
def sge() -> Iterator[SgeCluster]:
    """Start a host with two slots."""
    why = missing()
    if why:
        pytest.skip(why)
    with sge_cluster(Path(tempfile.mkdtemp(prefix="emseg-sge-"))) as cluster:
        yield cluster
