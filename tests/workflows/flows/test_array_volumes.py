"""Test arrays as arguments in place of paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from runs import PLANAR, bytes_of, save_random_model, save_volume, texture

from emseg import ingest, segment
from emseg_core.errors import InputError
from emseg_core.store.volumes.volume import open_volume

SHAPE = (3, 40, 50)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model") / "m.safetensors", PLANAR)


def test_arrays_of_all_kinds_give_the_same_output(model: Path, tmp_path: Path) -> None:
    """An array is stored once, with its voxel size. The same array resumes the run; another one is refused."""
    values = texture(SHAPE)
    arrays: dict[str, Any] = {
        "numpy": values,
        "swapped": np.asfortranarray(values),
        "dask": da.from_array(values, chunks=(2, 20, 50)),
        "zarr": zarr.array(values, chunks=(2, 20, 20)),
    }
    for name, array in arrays.items():
        segment(array, tmp_path / f"{name}.emseg.zarr", model=model, workers=0, voxel_size=(40, 4, 4))
        stored = open_volume(tmp_path / f"{name}.volume.zarr")
        np.testing.assert_array_equal(stored.read(stored.spec.box), values)
        assert (stored.spec.scale, set(stored.spec.units)) == ((40, 4, 4), {"nanometer"})
    first, *others = (bytes_of(tmp_path / f"{name}.emseg.zarr") for name in arrays)
    assert all(other == first for other in others)
    again = segment(values, tmp_path / "numpy.emseg.zarr", model=model, workers=0, voxel_size=(40, 4, 4))
    assert (again.done, again.exit_code) == (0, 0)
    with pytest.raises(InputError, match=r"numpy.volume.zarr holds other voxels than the array: remove it"):
        segment(values + 1, tmp_path / "numpy.emseg.zarr", model=model, workers=0)


def test_an_array_on_this_disk_is_read_where_it_is(model: Path, tmp_path: Path) -> None:
    array = zarr.open_array(save_volume(tmp_path / "v.zarr", texture(SHAPE)), mode="r")
    assert segment(array, tmp_path / "o.zarr", model=model, workers=0).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.zarr", "v.zarr"]


@pytest.mark.parametrize(
    ("array", "asked", "said"),
    [
        (np.zeros((2, 2, 2, 2), np.uint8), {}, r"shape \(2, 2, 2, 2\), but a volume has axes"),
        (np.zeros((0, 2, 2), np.uint8), {}, "but a volume has axes"),
        (np.zeros((2, 2, 2), np.float64), {}, "the array is float64, but emseg reads uint8, uint16, float32: convert it"),
        (np.zeros((2, 2, 2), np.uint8), {"voxel_size": (1, 0, 1)}, "must be three positive numbers"),
        (np.zeros((2, 2, 2), np.uint8), {"output": None}, "no output is named: name one"),
    ],
)
def test_what_cannot_be_a_volume_is_refused(array: Any, asked: dict[str, Any], said: str, tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match=said):
        segment(array, **{"output": tmp_path / "o.zarr", "model": model, "workers": 0, **asked})
    assert list(tmp_path.iterdir()) == []


def test_an_image_is_one_slice(tmp_path: Path) -> None:
    image = texture((1, 20, 30))[0].astype(">u2")
    assert ingest(image, tmp_path / "v.zarr").spec.shape == (1, 20, 30)
    np.testing.assert_array_equal(open_volume(tmp_path / "v.zarr").read(open_volume(tmp_path / "v.zarr").spec.box)[0], image)
