from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr_models.v05 import Image
from runs import snapshot

from emseg.flows.ingest import Ingested, ingest
from emseg.runs.events import BlockEnded, Event, RunEnded, RunStarted
from emseg_core.box import Box
from emseg_core.errors import InputError, OutputError, VolumeError
from emseg_core.store.exports import new_volume
from emseg_core.store.volumes.volume import open_volume

SHAPE = (11, 70, 90)
IMAGEJ: dict[str, Any] = {
    "imagej": True,
    "resolution": (0.25, 0.25),
    "metadata": {"spacing": 40.0, "unit": "nm", "axes": "ZYX"},
}


def voxels(dtype: str = "uint8", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 250, shape).astype(dtype)


def stack(path: Path, data: np.ndarray | None = None, **options: Any) -> Path:
    tifffile.imwrite(path, voxels() if data is None else data, photometric="minisblack", **options)
    return path


def slices(path: Path, numbers: range | list[int] = range(8, 19)) -> Path:
    path.mkdir()
    for number, pixels in zip(numbers, voxels(), strict=False):
        tifffile.imwrite(path / f"em_{number}.tif", pixels)
    return path


def refused(kind: type[InputError], *arguments: Any, **options: Any) -> str:
    """Return the one-line message of a failed ingest that has written nothing."""
    target = Path(arguments[1])
    before = sorted(target.parent.iterdir()) if target.parent.is_dir() else None
    with pytest.raises(kind) as caught:
        ingest(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert before is None or sorted(target.parent.iterdir()) == before
    return str(caught.value)


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow memory for only four slices."""
    monkeypatch.setattr(new_volume, "MAX_SLAB_BYTES", 4 * 70 * 90)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_file(tmp_path: Path, dtype: str) -> None:
    made = ingest(stack(tmp_path / "s.tif", voxels(dtype), byteorder=">"), tmp_path / "v")
    volume = open_volume(tmp_path / "v")
    assert volume.spec == made.spec
    assert (made.spec.shape, made.spec.dtype, made.spec.units) == (SHAPE, dtype, (None,) * 3)
    np.testing.assert_array_equal(volume.read(made.spec.box), voxels(dtype))
    Image.from_zarr(zarr.open_group(tmp_path / "v", mode="r"))


@pytest.mark.usefixtures("small_slabs")
def test_a_folder_by_slabs(tmp_path: Path) -> None:
    told: list[Event] = []
    made = ingest(slices(tmp_path / "s"), tmp_path / "v", on_event=told.append)
    assert [event.outcome.voxels for event in told if isinstance(event, BlockEnded)] == [4 * 70 * 90, 4 * 70 * 90, 3 * 70 * 90]
    assert isinstance(told[0], RunStarted)
    assert isinstance(told[-1], RunEnded)
    assert made.spec.chunk == (4, 256, 256)
    np.testing.assert_array_equal(open_volume(tmp_path / "v").read(made.spec.box), voxels())


def test_a_single_slice(tmp_path: Path) -> None:
    made = ingest(stack(tmp_path / "s.tif", voxels()[0]), tmp_path / "v")
    assert (made.spec.shape, made.spec.rank) == ((1, 70, 90), 3)
    np.testing.assert_array_equal(open_volume(tmp_path / "v").read(made.spec.box), voxels()[:1])


def test_voxel_size_and_where_it_comes_from(tmp_path: Path) -> None:
    source = stack(tmp_path / "s.tif", **IMAGEJ)
    stated = ingest(source, tmp_path / "a")
    assert (stated.spec.scale, stated.spec.units) == ((40, 4, 4), ("nanometer",) * 3)
    assert stated.size_from == "the spacing and unit of its ImageJ header"
    given = ingest(source, tmp_path / "b", voxel_size=(50, 8, 8), unit="micrometer")
    assert (given.spec.scale, given.spec.units) == ((50, 8, 8), ("micrometer",) * 3)
    assert given.size_from == "the given voxel size"
    neither = ingest(slices(tmp_path / "s"), tmp_path / "c")
    assert (neither.spec.scale, neither.spec.units) == ((1, 1, 1), (None,) * 3)
    assert neither.size_from == "not stated by the source"
    for name, made in (("a", stated), ("b", given), ("c", neither)):
        assert made == Ingested(open_volume(tmp_path / name).spec, made.size_from)


@pytest.mark.parametrize("size", [(0, 1, 1), (1, -1, 1), (1, 1, float("nan")), (1, 1, float("inf")), (1, 1)])
def test_a_wrong_voxel_size_is_refused(tmp_path: Path, size: Any) -> None:
    assert "must be three positive numbers" in refused(VolumeError, stack(tmp_path / "s.tif"), tmp_path / "v", voxel_size=size)


def test_an_unknown_unit_is_refused(tmp_path: Path) -> None:
    source = stack(tmp_path / "s.tif")
    assert "the unit is 'nm', but OME-Zarr spells units in full" in refused(
        VolumeError, source, tmp_path / "v", voxel_size=(1, 1, 1), unit="nm"
    )


def test_the_same_slices_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        ingest(slices(tmp_path / f"slices-{name}"), tmp_path / name)
    a, b = ({f.relative_to(tmp_path / n): f.read_bytes() for f in (tmp_path / n).rglob("*") if f.is_file()} for n in "ab")
    assert a == b
    assert len(a) == 3


@pytest.mark.usefixtures("small_slabs")
def test_a_damaged_slice_leaves_nothing(tmp_path: Path) -> None:
    source = slices(tmp_path / "s")
    with tifffile.TiffFile(source / "em_17.tif") as tif:
        left = tif.pages.first.dataoffsets[0] + 100
    raw = (source / "em_17.tif").read_bytes()
    (source / "em_17.tif").write_bytes(raw[:left])
    assert "em_17.tif" in refused(VolumeError, source, tmp_path / "v")


def test_a_missing_slice_is_named(tmp_path: Path) -> None:
    assert "slice 11 is missing" in refused(VolumeError, slices(tmp_path / "s", [8, 9, 10, 12, 13]), tmp_path / "v")


@pytest.mark.usefixtures("small_slabs")
def test_missing_slices_are_filled_if_that_is_asked_for(tmp_path: Path) -> None:
    numbers = [8, 9, 11, 12, 13, 17, 18]
    source, expected = slices(tmp_path / "s", numbers), np.zeros(SHAPE, np.uint8)
    assert "slices 10, 14 to 16 are missing" in refused(VolumeError, source, tmp_path / "v")
    expected[[number - 8 for number in numbers]] = voxels()[: len(numbers)]
    for _ in range(2):
        made = ingest(source, tmp_path / "v", allow_missing=True, overwrite=True)
        assert made.missing == (2, 6, 7, 8)
        np.testing.assert_array_equal(open_volume(tmp_path / "v").read(made.spec.box), expected)
        assert zarr.open_group(tmp_path / "v", mode="r").attrs["emseg"] == {"volume": 1, "missing_slices": [2, 6, 7, 8]}
    (source / "em_14.tif").write_bytes(b"damaged")
    assert "em_14.tif cannot be opened" in refused(VolumeError, source, tmp_path / "w", allow_missing=True)
    whole = ingest(slices(tmp_path / "whole"), tmp_path / "v", allow_missing=True, overwrite=True)
    assert whole.missing == ()
    assert zarr.open_group(tmp_path / "v", mode="r").attrs["emseg"] == {"volume": 1}


def test_places_that_do_not_do(tmp_path: Path) -> None:
    source = slices(tmp_path / "s")
    file = stack(tmp_path / "s.tif")
    assert "lie inside one another" in refused(OutputError, source, source / "v")
    assert "lie inside one another" in refused(OutputError, source, source, overwrite=True)
    assert "lie inside one another" in refused(OutputError, file, file, overwrite=True)
    ingest(file, tmp_path / "v")
    slices(tmp_path / "v" / "slices")
    assert "lie inside one another" in refused(OutputError, tmp_path / "v" / "slices", tmp_path / "v", overwrite=True)
    (tmp_path / "link").symlink_to(source)
    assert "lie inside one another" in refused(OutputError, source, tmp_path / "link" / "v")
    assert "is not a folder: create that first" in refused(OutputError, file, tmp_path / "no" / "v")
    assert "no file name can have" in refused(OutputError, file, tmp_path / "a\0b")
    assert "already exists" in refused(OutputError, file, tmp_path / "v")
    assert "is not a volume that emseg has ingested" in refused(OutputError, file, tmp_path / "v", overwrite=True)
    assert "cannot be read" in refused(VolumeError, tmp_path / "missing.tif", tmp_path / "w")


def test_overwriting(tmp_path: Path) -> None:
    first, second = stack(tmp_path / "a.tif"), stack(tmp_path / "b.tif", voxels("uint16", (3, 20, 20)))
    ingest(first, tmp_path / "v")
    made = ingest(second, tmp_path / "v", overwrite=True)
    volume = open_volume(tmp_path / "v")
    assert volume.spec == made.spec
    np.testing.assert_array_equal(volume.read(volume.spec.box), voxels("uint16", (3, 20, 20)))
    (tmp_path / "a.tif").write_bytes(first.read_bytes()[:5000])
    refused(VolumeError, first, tmp_path / "v", overwrite=True)
    np.testing.assert_array_equal(open_volume(tmp_path / "v").read(volume.spec.box), voxels("uint16", (3, 20, 20)))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stack(tmp_path / "s.tif")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # no file may grow beyond this, as if the disk were full
    try:
        assert "cannot be written (file too large)" in refused(OutputError, source, tmp_path / "v")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("emseg_core.store.zarrs.arrays.Shards.write", full)
    assert "(no space left on device): free some space, or choose another disk" in refused(OutputError, source, tmp_path / "v")


def test_memory_is_bounded_by_the_slab_not_by_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_volume, "MAX_SLAB_BYTES", 2**20)
    source = stack(tmp_path / "s.tif", np.zeros((128, 256, 512), np.uint8), compression="zlib")
    tracemalloc.start()
    ingest(source, tmp_path / "v")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24 * 0.5  # half of the stack, eight slabs


@pytest.mark.skipif("EMSEG_DATA" not in os.environ, reason="EMSEG_DATA names no folder")
def test_real_stack(tmp_path: Path) -> None:
    path = Path(os.environ["EMSEG_DATA"]) / "isbi2012" / "train-volume.tif"
    made = ingest(path, tmp_path / "v", voxel_size=(50, 4, 4))
    volume = open_volume(tmp_path / "v")
    np.testing.assert_array_equal(volume.read(made.spec.box), tifffile.imread(path))


KILLED = """
import os, signal, sys
from emseg_core.store.exports import new_volume
from emseg_core.store.files import atomic_write
from emseg import ingest

left, known = int(sys.argv[3]), os.fsync

def fsync(handle):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    known(handle)

os.fsync = fsync
new_volume.MAX_SLAB_BYTES = 64 * 64
ingest(sys.argv[1], sys.argv[2], voxel_size=(50, 4, 4))
"""


def test_what_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored slabs are not read again unless the source has changed. The volume is the same, and nothing is left over."""
    monkeypatch.setattr(new_volume, "MAX_SLAB_BYTES", 64 * 64)
    values = np.random.default_rng(3).integers(1, 255, (12, 64, 64), np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", values, photometric="minisblack")
    ingest(tmp_path / "s.tif", tmp_path / "whole.zarr", voxel_size=(50, 4, 4))
    written: list[Box] = []
    known = new_volume.SlabWriter.write_box

    def write_box(self: new_volume.SlabWriter, box: Box, voxels: np.ndarray, **more: bool) -> None:
        written.append(box)
        known(self, box, voxels, **more)

    monkeypatch.setattr(new_volume.SlabWriter, "write_box", write_box)
    for killed_at, changed in ((16, False), (16, True)):
        words = [sys.executable, "-c", KILLED, tmp_path / "s.tif", tmp_path / "v.zarr", killed_at]
        died = subprocess.run(list(map(str, words)), capture_output=True, text=True)
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert not (tmp_path / "v.zarr").exists()
        if changed:
            os.utime(tmp_path / "s.tif", ns=(0, 0))
        written.clear()
        ingest(tmp_path / "s.tif", tmp_path / "v.zarr", voxel_size=(50, 4, 4))
        assert 0 < len(written) <= 12
        assert (len(written) == 12) == changed
        assert snapshot(tmp_path / "v.zarr") == snapshot(tmp_path / "whole.zarr")
        shutil.rmtree(tmp_path / "v.zarr")
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".emseg-")} == {"s.tif", "whole.zarr"}
