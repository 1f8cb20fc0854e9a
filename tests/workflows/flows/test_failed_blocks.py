"""Test errors in a block: it is named and stays *not computed*, the others continue, and the exit code is 3."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from runs import PLANAR, bytes_of, run_emseg, save_random_model, save_volume, shards, snapshot, texture

from emseg.flows.segment import segment
from emseg.runs.tally import Report
from emseg_core.box import Box, Triple
from emseg_core.normalise import sample_boxes
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (64, 600, 600)
"""A shape with more voxels than are sampled."""
CHUNK = (32, 32, 32)


def unseen_chunk() -> Box:
    """Return a whole chunk that the sample of intensities does not read."""
    sampled = np.zeros([-(-length // side) for length, side in zip(SHAPE, CHUNK, strict=True)], bool)
    for box in sample_boxes(VolumeSpec(SHAPE, "float32", CHUNK), "volume", 0):
        sampled[tuple(slice(a // c, -(-b // c)) for a, b, c in zip(box.start, box.stop, CHUNK, strict=True))] = True
    z, y, x = (int(index) for index in np.argwhere(~sampled)[0])
    start = (z * CHUNK[0], y * CHUNK[1], x * CHUNK[2])
    return Box(start, (start[0] + CHUNK[0], start[1] + CHUNK[1], start[2] + CHUNK[2]))


UNSEEN = unseen_chunk()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a large volume and a fast network of one layer."""
    folder = tmp_path_factory.mktemp("large")
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    save_volume(folder / "volume.zarr", values, CHUNK)
    save_random_model(folder / "model.safetensors", ModelSpec.unet(width=1, depth=0))
    return folder


def overlap(one: Box, other: Box) -> bool:
    return all(a < d and c < b for a, b, c, d in zip(one.start, one.stop, other.start, other.stop, strict=True))


def box_of(text: str) -> Box:
    """Return the box that a report names."""
    (z, z1), (y, y1), (x, x1) = (map(int, part.split(":")) for part in text.split(","))
    return Box((z, y, x), (z1, y1, x1))


def check_failed(report: Any, output: Path, broken: Box, cause: str) -> None:
    """Check that exactly the blocks that read the broken voxels have failed, each with its box and cause."""
    assert 1 <= report["failed"] <= 8
    assert report["done"] + report["failed"] == report["blocks"]
    stored = open_output(output)
    labels = stored.read_labels(stored.region)
    missing = np.zeros(SHAPE, bool)
    for failure in report["failures"]:
        assert cause in failure["cause"]
        box = box_of(failure["box"])
        assert overlap(box.grow((0, 2, 2)), broken)
        missing[box.slices()] = True
    np.testing.assert_array_equal(labels == 255, missing)
    assert missing[broken.slices()].all()


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_voxel_that_the_sample_missed(value: float, folder: Path, tmp_path: Path) -> None:
    place: Triple = (UNSEEN.start[0] + 7, UNSEEN.start[1] + 11, UNSEEN.start[2] + 13)
    shutil.copytree(folder / "volume.zarr", tmp_path / "volume.zarr")
    volume: Any = zarr.open_array(tmp_path / "volume.zarr", mode="r+")
    volume[place] = value
    workers = "2" if np.isnan(value) else "0"
    done = run_emseg(
        "run", "volume.zarr", "--model", folder / "model.safetensors", "--workers", workers, "--json", cwd=tmp_path
    )
    assert done.returncode == 3
    report = json.loads(done.stdout)
    voxel = Box(place, (place[0] + 1, place[1] + 1, place[2] + 1))
    check_failed(report, tmp_path / "volume.emseg.zarr", voxel, f"voxel {place} (z, y, x) is {value}")
    said = done.stderr.splitlines()
    first = report["failures"][0]
    assert f"failed     block {first['block']} at {first['box']}: {first['cause']}" in said
    assert "Traceback" not in done.stderr
    assert run_emseg("preview", "volume.emseg.zarr", cwd=tmp_path).returncode == 0
    volume[place] = 0.5
    again = run_emseg("run", "volume.zarr", "--model", folder / "model.safetensors", "--workers", "0", "--json", cwd=tmp_path)
    assert again.returncode == 0
    assert json.loads(again.stdout)["done"] == report["failed"]


def test_a_corrupt_chunk_that_the_sample_missed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "volume.zarr", tmp_path / "volume.zarr")
    chunk = tmp_path.joinpath("volume.zarr", "c", *(str(a // c) for a, c in zip(UNSEEN.start, CHUNK, strict=True)))
    chunk.write_bytes(chunk.read_bytes()[:-7])
    report: Report = segment(tmp_path / "volume.zarr", model=folder / "model.safetensors", workers=0)
    assert report.exit_code == 3
    check_failed(report.to_json(), tmp_path / "volume.emseg.zarr", UNSEEN, "cannot be read")


def test_a_model_that_changes_during_the_run(tmp_path: Path) -> None:
    """The blocks that would use it fail; none is computed with another model."""
    volume, model = save_volume(tmp_path / "v.zarr", texture((7, 29, 31))), save_random_model(tmp_path / "m", PLANAR)
    honest = segment(volume, tmp_path / "honest.zarr", model=model, workers=0)

    def swap(_: object) -> None:
        save_random_model(tmp_path / "m", PLANAR, seed=8)

    with pytest.raises(ValueError, match="digest"):
        segment(volume, tmp_path / "out.zarr", model=model, workers=0, on_event=swap)
    assert not shards(tmp_path / "out.zarr")
    save_random_model(tmp_path / "m", PLANAR)
    assert segment(volume, tmp_path / "out.zarr", model=model, workers=0).done == honest.done


Disk = tuple[Path, Callable[[str], None]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """Mount a folder on a separate disk, and return it with a function that sets the disk's size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)

    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], check=False).returncode:
        pytest.skip("cannot mount a disk here")
    yield disk, resize
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_fills(workers: int, small_disk: Disk, tmp_path: Path) -> None:
    disk, resize = small_disk
    resize("100k")
    save_volume(tmp_path / "volume.zarr", texture((7, 29, 31)))
    save_random_model(tmp_path / "model.safetensors", PLANAR)
    command = ("run", "volume.zarr", "--model", "model.safetensors", "--probabilities")
    run_emseg(*command, "-o", "roomy.zarr", "--workers", "0", cwd=tmp_path)
    tight = (*command, "-o", disk / "out.zarr", "--workers", workers, "--json")
    done = run_emseg(*tight, cwd=tmp_path)
    assert done.returncode == 3
    report = json.loads(done.stdout)
    assert report["done"] + report["failed"] == report["blocks"]
    assert report["done"] > 0
    assert report["failed"] > 0
    assert all("no space left on device" in failure["cause"] for failure in report["failures"])
    assert f"failed     block {report['failures'][0]['block']} at" in done.stderr
    assert "Traceback" not in done.stderr
    resize("4m")
    again = run_emseg(*tight, cwd=tmp_path)
    assert again.returncode == 0
    # including those that a full disk has no record of
    assert report["failed"] <= json.loads(again.stdout)["done"] < report["blocks"]
    assert bytes_of(disk / "out.zarr") == bytes_of(tmp_path / "roomy.zarr")


def test_a_disk_far_too_small_is_refused_at_once(small_disk: Disk, tmp_path: Path) -> None:
    disk, _ = small_disk
    save_volume(tmp_path / "volume.zarr", np.zeros((64, 256, 256), np.uint8), (64, 64, 64))
    done = run_emseg("run", "volume.zarr", "-o", disk / "out.zarr", "--workers", "0", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "4.2 MB before compression, but only 0.0 MB are free" in line
    assert snapshot(disk) == {}
