"""Test that settings of users or sites for other programs neither stop a run nor change a byte of its output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from runs import bytes_of, run_emseg, save_volume, texture

THREADS = {"OMP_NUM_THREADS": "64", "MKL_NUM_THREADS": "64", "KMP_AFFINITY": "compact", "OMP_PROC_BIND": "close"}
NOBODY = "http://127.0.0.1:9"
"""Address without a proxy."""
PROXIES = {f"{name}_PROXY": NOBODY for name in ("HTTP", "HTTPS", "ALL")}
PROXIES |= {name.lower(): url for name, url in PROXIES.items()}
NO_FOLDER = {"TMPDIR": "/no/such/folder"}


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume for the bundled network."""
    return save_volume(tmp_path_factory.mktemp("given") / "v.zarr", texture((8, 64, 64)), voxel_size=[10, 10, 10])


@pytest.fixture(scope="module")
def expected(volume: Path) -> dict[str, str]:
    """Return what a run writes without these settings."""
    return segmented(volume, volume.parent / "plain.zarr", {})


def segmented(volume: Path, output: Path, environment: dict[str, str]) -> dict[str, str]:
    """Return what a run on two workers writes."""
    ran = run_emseg("run", volume, "--output", output, "--workers", 2, env={**os.environ, **environment})
    assert ran.returncode == 0, ran.stderr
    return bytes_of(output)


@pytest.mark.parametrize("environment", [THREADS, PROXIES, NO_FOLDER], ids=["threads", "proxies", "no temporary folder"])
def test_the_same_bytes(environment: dict[str, str], volume: Path, expected: dict[str, str], tmp_path: Path) -> None:
    assert segmented(volume, tmp_path / "o.zarr", environment) == expected
