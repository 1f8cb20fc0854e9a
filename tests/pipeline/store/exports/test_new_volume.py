from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from ome_zarr_models.v05 import Image
from takeover import take_over

from emseg_core.box import Box
from emseg_core.errors import OrphanError, OutputError
from emseg_core.grid.blocks import Blocks
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.exports.new_volume import MAX_SLAB_BYTES, NewVolume, new_volume, slab_layout
from emseg_core.store.volumes.volume import open_volume

SPEC = VolumeSpec((5, 9, 11), "uint16", (4, 8, 8), 3, (40.0, 4.5, 4.0), (0.0, 0.0, 0.0), ("nanometer",) * 3)
VOXELS = np.arange(math.prod(SPEC.shape), dtype=np.uint16).reshape(SPEC.shape)


def fill(path: Path, *, replace: bool = False) -> None:
    with new_volume(path, SPEC, (4, 16, 16), replace=replace) as volume:
        write(volume, 0, VOXELS[:4])
        write(volume, 4, VOXELS[4:])


def write(volume: NewVolume, start: int, slab: NDArray[np.uint16]) -> None:
    """Store slices from `start` on."""
    volume.slabs.write_box(Box.of_shape(slab.shape).shift((start, 0, 0)), slab)


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@given(
    shape=st.tuples(st.integers(1, 5000), *(st.integers(1, 40000) for _ in "yx")),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
)
def test_a_slab_fits_in_memory_and_chunks_in_shards(shape: tuple[int, int, int], dtype: str) -> None:
    shard, chunk = slab_layout(shape, dtype)
    plane = shape[1] * shape[2] * np.dtype(dtype).itemsize
    assert shard[0] * plane <= max(MAX_SLAB_BYTES, plane)
    assert all(s % c == 0 for s, c in zip(shard, chunk, strict=True))
    assert 64**3 // 2 <= math.prod(chunk) <= 64**3 or shape[0] < 64
    assert math.prod(shard) <= 256**3
    assert shard[0] < 2 * shape[0]
    deeper = shard[0] < min(shape[0], 256)
    assert not deeper or 2 * shard[0] * plane > MAX_SLAB_BYTES  # the smallest depth that memory allows


def test_what_is_written_is_an_ome_zarr_volume(tmp_path: Path) -> None:
    fill(tmp_path / "v")
    Image.from_zarr(zarr.open_group(tmp_path / "v", mode="r"))
    volume = open_volume(tmp_path / "v")
    assert volume.spec == SPEC
    np.testing.assert_array_equal(volume.read(SPEC.box), VOXELS)
    fill(tmp_path / "w")
    assert files(tmp_path / "v") == files(tmp_path / "w")


def test_a_slab_that_is_not_a_row_of_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not whole write units"), new_volume(tmp_path / "v", SPEC, (4, 16, 16)) as volume:
        write(volume, 0, VOXELS[:3])
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def interrupt() -> None:
        with new_volume(tmp_path / "v", SPEC, (4, 16, 16)) as volume:
            write(volume, 0, VOXELS[:4])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert list(tmp_path.iterdir()) == []


def begin(path: Path, *, slabs: int, discard: bool = False, orphan: bool = False) -> None:
    """Write some slabs, then fail."""
    with new_volume(path, SPEC, (4, 16, 16), source="there") as volume:
        for start in (0, 4)[:slabs]:
            write(volume, start, VOXELS[start : start + 4])
        if discard:
            volume.discard()
        if orphan:
            place = volume.token.files.place
            assert isinstance(place, Path)
            take_over(place)
        else:
            raise RuntimeError


def test_what_is_stored_of_a_source_stays_for_the_next_one(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    for options in ({"slabs": 0}, {"slabs": 1, "discard": True}):
        with pytest.raises(RuntimeError):
            begin(tmp_path / "v", **options)  # type: ignore[arg-type]
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    with pytest.raises(RuntimeError):
        begin(tmp_path / "v", slabs=1)
    (left,) = tmp_path.glob(".emseg-*")
    (left / "0" / "c" / "1" / "0").mkdir(parents=True)
    (left / "0" / "c" / "1" / "0" / ".0.dead.partial").touch()
    with new_volume(tmp_path / "v", SPEC, (4, 16, 16), source="there") as volume:
        assert volume.slabs.done(Blocks(SPEC.box, (4, 9, 11))).tolist() == [True, False]
        write(volume, 4, VOXELS[4:])
    assert files(tmp_path / "v") == files(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v", "whole"]


def test_who_was_taken_for_dead_publishes_and_removes_nothing(tmp_path: Path) -> None:
    with pytest.raises(OrphanError, match="run 1 may not write any more, as run 2 has taken over"):
        begin(tmp_path / "v", slabs=2, discard=True, orphan=True)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".emseg-")
    assert (left / "0" / "c" / "1" / "0" / "0").exists()


def test_replacing(tmp_path: Path) -> None:
    fill(tmp_path / "v", replace=True)
    with pytest.raises(OutputError, match="already exists: choose another name"):
        fill(tmp_path / "v")
    before = files(tmp_path)
    with pytest.raises(RuntimeError), new_volume(tmp_path / "v", SPEC, (4, 16, 16), replace=True):
        raise RuntimeError
    assert files(tmp_path) == before
    (tmp_path / "v" / "0" / "c" / "0" / "0" / "0").unlink()
    fill(tmp_path / "v", replace=True)
    assert files(tmp_path) == before


def test_only_an_ingested_volume_and_nothing_else_is_replaced(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "array", shape=(2, 2, 2), dtype="uint8", attributes={"emseg": {"volume": 1}})
    zarr.create_group(tmp_path / "group")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    fill(tmp_path / "more")
    (tmp_path / "more" / "notes.txt").touch()
    fill(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = files(tmp_path)
    for name in ("array", "group", "folder", "file", "more", "link", "dangling"):
        with pytest.raises(
            OutputError, match=r"is not a volume that emseg has ingested, or contains other files|already exists"
        ):
            fill(tmp_path / name, replace=True)
    assert files(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "array",
        "dangling",
        "file",
        "folder",
        "group",
        "link",
        "more",
        "real",
    ]
