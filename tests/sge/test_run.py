"""Test runs whose workers are jobs of a real SGE."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import bytes_of, run_emseg, save_volume, texture
from sge.cluster import SgeCluster

EMSEG = (sys.executable, "-m", "emseg")
SITE = 'memory = "2G"\ninterface = "net0"\ncpus = 1\ntime = "0:10:00"\n'


@pytest.fixture(autouse=True)
def _no_jobs_left(sge: SgeCluster) -> Iterator[None]:
    yield
    sge.run("qdel", "-u", "root", check=False)
    sge.wait_until(lambda: not sge.jobs())


@pytest.fixture(scope="module")
def expected(sge: SgeCluster) -> dict[str, str]:
    """Make ``volume.zarr`` and ``site.toml`` on the host; return what a run without jobs writes."""
    save_volume(sge.scratch / "volume.zarr", texture((24, 128, 128)))
    (sge.scratch / "site.toml").write_text(SITE)
    done = run_emseg("run", "volume.zarr", "-o", "local.zarr", "--workers", 0, "--precision", "float32", cwd=sge.scratch)
    assert done.returncode == 0, done.stderr
    return bytes_of(sge.scratch / "local.zarr")


def started(sge: SgeCluster, output: str, *options: object) -> subprocess.Popen[str]:
    words = ("run", "volume.zarr", "-o", output, "--precision", "float32", "--cluster", "sge", "--site", "site.toml")
    return sge.started(*EMSEG, *words, *options)


def finished(process: subprocess.Popen[str]) -> str:
    """Return what a run said. It must have ended well."""
    with process:
        _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return err


def logs(output: Path) -> list[Path]:
    """Return the logs of a run's jobs."""
    return [*output.with_name(f"{output.name}.slurm").iterdir()]


def test_elastic_workers_write_the_bytes_of_one_process(sge: SgeCluster, expected: dict[str, str]) -> None:
    finished(started(sge, "elastic.zarr", "--adapt", "1:2"))
    assert bytes_of(sge.scratch / "elastic.zarr") == expected
    assert len(logs(sge.scratch / "elastic.zarr")) == 2
    sge.wait_until(lambda: not sge.jobs())


def test_a_job_that_is_deleted_is_replaced(sge: SgeCluster, expected: dict[str, str]) -> None:
    run = started(sge, "deleted.zarr", "--workers", 1)
    sge.wait_until(lambda: [*(sge.scratch / "deleted.zarr").glob("labels/classes/0/c/*/*/*")])
    (first,) = sge.jobs()
    sge.run("qdel", first)
    assert "died" in finished(run)
    assert bytes_of(sge.scratch / "deleted.zarr") == expected
    assert len(logs(sge.scratch / "deleted.zarr")) == 2


def test_what_sge_says_of_a_request_that_it_rejects(sge: SgeCluster, expected: dict[str, str]) -> None:
    assert expected
    (sge.scratch / "wrong.toml").write_text(f'{SITE}partition = "nowhere"\n')
    process = started(sge, "wrong.zarr", "--workers", 1, "--site", "wrong.toml")
    with process:
        _, err = process.communicate(timeout=240)
    assert process.returncode == 2
    assert 'unknown queue "nowhere"' in err
    assert "Traceback" not in err
    assert not sge.jobs()
