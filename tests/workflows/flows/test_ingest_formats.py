"""Test `emseg ingest` of HDF5, MRC and PNG slices: the same voxels at the same position, or one line with the reason."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from stacks import save_hdf5, save_mrc, save_png

from emseg.flows.ingest import ingest
from emseg_core.errors import VolumeError
from emseg_core.installation import install_hint
from emseg_core.store.exports import new_volume
from emseg_core.store.volumes.volume import open_volume

SHAPE = (11, 40, 50)
DTYPES = ["uint8", "uint16", "float32"]
NM, ANGSTROM = ("nanometer",) * 3, ("angstrom",) * 3


def voxels(dtype: str = "uint8", shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    return np.random.default_rng(3).integers(0, 250, shape).astype(dtype)


def refused(tmp_path: Path, source: Path, **options: Any) -> str:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VolumeError) as caught:
        ingest(source, tmp_path / "v", **options)
    assert sorted(tmp_path.iterdir()) == before
    return str(caught.value)


@pytest.fixture(autouse=True)
def _small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow memory for only four slices."""
    monkeypatch.setattr(new_volume, "MAX_SLAB_BYTES", 4 * SHAPE[1] * SHAPE[2])


def check(volume: Path, data: NDArray[Any], scale: tuple[float, ...], first: tuple[float, ...], units: tuple[Any, ...]) -> None:
    found = open_volume(volume)
    assert found.spec.dtype == data.dtype.newbyteorder("=").name
    np.testing.assert_array_equal(found.read(found.spec.box), data)
    assert (found.spec.scale, found.spec.translation, found.spec.units) == (scale, first, units)


@pytest.mark.parametrize("dtype", [*DTYPES, ">u2"])
def test_hdf5(tmp_path: Path, dtype: str) -> None:
    """CREMI's files are like this: their lengths are in nanometres, but state no unit."""
    source = save_hdf5(tmp_path / "s.h5", voxels(dtype), resolution=(40.0, 4.0, 4.0), offset=(80.0, 8.0, 12.0))
    ingest(source, tmp_path / "v")
    check(tmp_path / "v", voxels(dtype), (40, 4, 4), (80, 8, 12), NM)


@pytest.mark.parametrize(
    ("attributes", "scale", "units"),
    [
        ({}, (1, 1, 1), (None,) * 3),
        ({"element_size_um": [0.04, 0.004, 0.004]}, (0.04, 0.004, 0.004), ("micrometer",) * 3),
        ({"voxel_size": [4, 5, 6], "units": [b"um", b"um", b"um"]}, (4, 5, 6), ("micrometer",) * 3),
    ],
)
def test_the_voxel_size_of_a_dataset(
    tmp_path: Path, attributes: dict[str, Any], scale: tuple[float, ...], units: tuple[Any, ...]
) -> None:
    ingest(save_hdf5(tmp_path / "s.hdf5", voxels(), **attributes), tmp_path / "v")
    check(tmp_path / "v", voxels(), scale, (0, 0, 0), units)


def test_one_dataset_of_several(tmp_path: Path) -> None:
    source = save_hdf5(tmp_path / "s.h5", voxels())
    save_hdf5(source, voxels("uint16"), "volumes/labels")
    save_hdf5(source, voxels("uint16", (7,)), "spots")
    assert "has 2 datasets: choose one with --dataset (available: volumes/labels, volumes/raw)" in refused(tmp_path, source)
    assert "no dataset 'raw': choose one with --dataset (available: " in refused(tmp_path, source, dataset="raw")
    ingest(source, tmp_path / "v", dataset="/volumes/raw")
    check(tmp_path / "v", voxels(), (1, 1, 1), (0, 0, 0), (None,) * 3)


@pytest.mark.parametrize("shape", [(40, 50), (1, 1, 11, 40, 50)])
def test_an_image_and_axes_of_one_entry(tmp_path: Path, shape: tuple[int, ...]) -> None:
    ingest(save_hdf5(tmp_path / "s.h5", voxels(shape=shape)), tmp_path / "v")
    check(tmp_path / "v", voxels(shape=shape).reshape(-1, 40, 50), (1, 1, 1), (0, 0, 0), (None,) * 3)


def test_hdf5_that_cannot_be_read(tmp_path: Path) -> None:
    for name, data in (("pairs", voxels(shape=(2, 11, 40, 50))), ("signed", voxels("int16"))):
        source = save_hdf5(tmp_path / f"{name}.h5", data)
        assert {"pairs": "has shape (2, 11", "signed": "is int16, but emseg reads"}[name] in refused(tmp_path, source)
    wrong = save_hdf5(tmp_path / "wrong.h5", voxels(), resolution=(4.0, 4.0))
    assert "attributes of /volumes/raw of" in refused(tmp_path, wrong)
    damaged = save_hdf5(tmp_path / "damaged.h5", voxels("uint16", (64, 200, 200)))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1000])
    assert "cannot be opened as HDF5" in refused(tmp_path, damaged)
    with h5py.File(save_hdf5(tmp_path / "flipped.h5", voxels("uint16"))) as file:
        place = file["volumes/raw"].id.get_chunk_info(0).byte_offset
    whole = (tmp_path / "flipped.h5").read_bytes()
    (tmp_path / "flipped.h5").write_bytes(whole[: place + 20] + b"damaged" + whole[place + 27 :])
    assert "slices 0 to 1 of /volumes/raw of" in refused(tmp_path, tmp_path / "flipped.h5")
    assert "neither HDF5" in refused(tmp_path, save_mrc(tmp_path / "s.mrc", voxels("float32")), dataset="raw")


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_mrc(tmp_path: Path, dtype: str) -> None:
    source = save_mrc(tmp_path / "s.mrc", voxels(dtype), (500, 40, 50), (1000, 80, 25))
    ingest(source, tmp_path / "v")
    check(tmp_path / "v", voxels(dtype), (500, 40, 50), (1000, 80, 25), ANGSTROM)


def test_mrc_without_a_voxel_size(tmp_path: Path) -> None:
    source = save_mrc(tmp_path / "s.rec", voxels("uint16"), (0, 0, 0))
    ingest(source, tmp_path / "v", voxel_size=(50, 4, 4))
    check(tmp_path / "v", voxels("uint16"), (50, 4, 4), (0, 0, 0), NM)
    ingest(source, tmp_path / "w")
    check(tmp_path / "w", voxels("uint16"), (1, 1, 1), (0, 0, 0), (None,) * 3)


def test_mrc_that_cannot_be_read(tmp_path: Path) -> None:
    assert "is int16, but emseg reads uint8, uint16" in refused(tmp_path, save_mrc(tmp_path / "i.mrc", voxels("int16")))
    source = save_mrc(tmp_path / "s.mrc", voxels("uint16"))
    source.write_bytes(source.read_bytes()[:-100])
    assert "should hold (11, 40, 50) voxels, 44000 bytes, but holds 43900" in refused(tmp_path, source)
    source.write_bytes(b"no header")
    assert "cannot be opened as MRC" in refused(tmp_path, source)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png(tmp_path: Path, dtype: str) -> None:
    data = voxels(dtype) * (1 if dtype == "uint8" else 257)
    ingest(save_png(tmp_path / "s", data), tmp_path / "v", voxel_size=(50, 4, 4))
    check(tmp_path / "v", data, (50, 4, 4), (0, 0, 0), NM)


def test_png_slices_that_are_missing(tmp_path: Path) -> None:
    source, expected = save_png(tmp_path / "s", voxels()), voxels()
    (source / "em_12.png").unlink()
    expected[4] = 0
    assert ingest(source, tmp_path / "v", allow_missing=True).missing == (4,)
    check(tmp_path / "v", expected, (1, 1, 1), (0, 0, 0), (None,) * 3)


def test_png_that_cannot_be_read(tmp_path: Path) -> None:
    missing = save_png(tmp_path / "missing", voxels())
    (missing / "em_12.png").unlink()
    assert "slice 12 is missing" in refused(tmp_path, missing)
    mixed = save_png(tmp_path / "mixed", voxels())
    Image.fromarray(voxels("uint16")[0] * 257).save(mixed / "em_9.png")
    assert "em_8.png is 40 x 50 uint8, but em_9.png is 40 x 50 uint16" in refused(tmp_path, mixed)
    coloured = save_png(tmp_path / "coloured", voxels())
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(coloured / "em_10.png")
    assert "has colour mode 'RGB'" in refused(tmp_path, coloured)
    short = save_png(tmp_path / "short", voxels())
    (short / "em_18.png").write_bytes((short / "em_18.png").read_bytes()[:500])
    assert "em_18.png cannot be read as PNG" in refused(tmp_path, short)
    both = save_png(tmp_path / "both", voxels())
    (both / "em_19.tif").touch()
    assert "contains both PNG and TIFF files" in refused(tmp_path, both)


@pytest.mark.parametrize(("suffix", "library", "extra"), [("h5", "h5py", "hdf5"), ("mrc", "mrcfile", "mrc")])
def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, library: str, extra: str) -> None:
    source = save_hdf5(tmp_path / "s.h5", voxels()) if suffix == "h5" else save_mrc(tmp_path / "s.mrc", voxels("uint16"))
    monkeypatch.setitem(sys.modules, library, None)
    assert refused(tmp_path, source).endswith(f"is read with {library}, which is not installed: {install_hint(extra)}")
