"""Test the limit on open files: the soft limit is raised; a hard limit that is too low refuses the run before any write."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import save_volume, texture

START = "import sys; from emseg.cli import main; main()"


def limited(soft: int, hard: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process with this limit on open files."""
    return subprocess.run(
        [sys.executable, "-c", START, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Make a volume for the bundled network."""
    return save_volume(tmp_path / "v.zarr", texture((8, 64, 64)).astype(np.uint8), voxel_size=[10, 10, 10])


def test_too_few_are_refused_with_the_number_needed(volume: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    ran = limited(100, 100, "run", volume, "--output", tmp_path / "o.zarr", "--workers", 3)
    assert ran.returncode == 2
    assert ran.stderr == (
        "error: a run with 3 workers needs 112 open files, but this process may have only 100: raise the limit (ulimit -n), "
        "or start fewer with --workers\n"
    )
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("soft", "hard", "workers"), [(112, 112, 3), (32, 512, 2), (64, 64, 0)])
def test_enough_are_enough(soft: int, hard: int, workers: int, volume: Path, tmp_path: Path) -> None:
    """This includes a hard limit that is high enough, and limits that equal the requirement."""
    ran = limited(soft, hard, "run", volume, "--output", tmp_path / "o.zarr", "--workers", workers)
    assert ran.returncode == 0, ran.stderr
