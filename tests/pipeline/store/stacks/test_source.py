"""Test that TIFF and Zarr give the same slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from emseg_core.errors import VolumeError
from emseg_core.store.stacks import source as source_module
from emseg_core.store.stacks.source import is_tiff, open_slices
from emseg_core.store.volumes.volume import ZarrVolume, open_volume


@pytest.fixture
def folder(tmp_path: Path, tiny: NDArray[np.uint8]) -> Path:
    tifffile.imwrite(tmp_path / "stack.TIF", tiny)
    zarr.create_array(tmp_path / "volume.zarr", data=tiny, chunks=(2, 4, 4))
    (tmp_path / "slices").mkdir()
    for number, values in enumerate(tiny):
        tifffile.imwrite(tmp_path / "slices" / f"{number}.tif", values)
    return tmp_path


@pytest.mark.parametrize("name", ["stack.TIF", "volume.zarr", "slices"])
def test_the_same_slices(name: str, folder: Path, tiny: NDArray[np.uint8]) -> None:
    with open_slices(folder / name) as source:
        assert (source.shape, source.dtype) == (tiny.shape, "uint8")
        for start, stop in ((0, 5), (1, 3), (4, 5)):
            np.testing.assert_array_equal(source.read(start, stop), tiny[start:stop])


def test_each_chunk_is_decompressed_once(folder: Path, tiny: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices are read with both neighbours, as when membrane is made from ids."""
    opened: list[ZarrVolume] = []

    def noting(*how: Any) -> ZarrVolume:
        opened.append(open_volume(*how))
        return opened[-1]

    monkeypatch.setattr(source_module, "open_volume", noting)
    with open_slices(folder / "volume.zarr") as source:
        for z in range(5):
            source.read(max(0, z - 1), min(5, z + 2))
    padded = [-(-length // chunk) * chunk for length, chunk in zip(tiny.shape, (2, 4, 4), strict=True)]
    assert tiny.size <= opened[-1].decoded_bytes <= np.prod(padded)


def test_a_zarr_with_a_tiff_inside_is_a_zarr(folder: Path) -> None:
    tifffile.imwrite(folder / "volume.zarr" / "look.tif", np.zeros((2, 2), np.uint8))
    assert not is_tiff(folder / "volume.zarr")


@pytest.mark.parametrize("name", ["none.tif", "none.zarr", "."])
def test_nothing_there(name: str, folder: Path) -> None:
    with pytest.raises(VolumeError), open_slices(folder / name):
        pass
