"""Test that shards have the bytes of zarr-python's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from emseg_core.box import Box
from emseg_core.store.files.files import LocalFiles
from emseg_core.store.zarrs.arrays import create_array, open_shards
from emseg_core.store.zarrs.shard import encode_shard

SHARD, CHUNK = (4, 8, 6), (2, 2, 3)


@given(st.data(), st.sampled_from(["uint8", "uint16", "float32"]), st.sampled_from([(4, 8, 6), (3, 5, 6), (1, 1, 1)]))
def test_a_shard_is_what_zarr_writes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, dtype: str, shape: tuple[int, ...]
) -> None:
    """This includes shards beyond the array's end, and chunks of only the fill value, which -0.0 is not."""
    numbers = [0.0, -0.0, 1.0] if dtype == "float32" else [0, 1]
    values = data.draw(arrays(dtype, shape, elements=st.sampled_from(numbers), fill=st.just(0)))
    root = tmp_path_factory.mktemp("shard")
    create_array(LocalFiles(root), "0", shape=shape, shard=SHARD, chunk=CHUNK, dtype=dtype, fill_value=0, axes=("z", "y", "x"))
    array = zarr.open_array(root / "0", mode="r+")
    array[...] = values
    file = root / "0" / "c" / "0" / "0" / "0"
    assert encode_shard(values, SHARD, CHUNK, array.fill_value) == (file.read_bytes() if file.exists() else None)


@pytest.mark.parametrize(("shape", "channels"), [((9, 20, 13), 0), ((3, 9, 20, 13), 3), ((20, 13), 0), ((2, 20, 13), 2)])
def test_an_array_is_what_zarr_writes(tmp_path: Path, shape: tuple[int, ...], channels: int) -> None:
    """The whole array is compared, with channels and with slices alone."""
    rank = len(shape) - bool(channels)
    shard, chunk = ((channels,) * bool(channels) + SHARD[-rank:], (1,) * bool(channels) + CHUNK[-rank:])
    values = np.random.default_rng(0).integers(0, 3, shape, np.uint8)
    for name in ("ours", "theirs"):
        axes = ("c", "z", "y", "x")[-len(shape) :] if rank == 3 else ("c", "y", "x")[-len(shape) :]
        create_array(
            LocalFiles(tmp_path), name, shape=shape, shard=shard, chunk=chunk, dtype="uint8", fill_value=255, axes=axes
        )
    zarr.open_array(tmp_path / "theirs", mode="r+")[...] = values
    shards = open_shards(LocalFiles(tmp_path), "ours", channels)
    box = Box.of_shape(shards.shape)
    shards.write(box, values.reshape(*values.shape[: bool(channels)], *box.shape))
    ours, theirs = (
        {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("*") if file.is_file()}
        for name in ("ours", "theirs")
    )
    assert ours == theirs


def test_fill_values_alone_are_not_stored(tmp_path: Path) -> None:
    create_array(
        LocalFiles(tmp_path), "0", shape=SHARD, shard=SHARD, chunk=CHUNK, dtype="uint8", fill_value=0, axes=("z", "y", "x")
    )
    shards, box = open_shards(LocalFiles(tmp_path), "0", 0), Box.of_shape((4, 8, 6))
    shards.write(box, np.ones(SHARD, np.uint8))
    assert shards.has((0, 0, 0))
    shards.write(box, np.zeros(SHARD, np.uint8))
    assert not shards.has((0, 0, 0))
    assert not shards.read(box).any()


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    create_array(
        LocalFiles(tmp_path), "0", shape=SHARD, shard=SHARD, chunk=CHUNK, dtype="uint8", fill_value=0, axes=("z", "y", "x")
    )
    with pytest.raises(ValueError, match=r"shape \(4, 8, 5\), which is not that of 0:4,0:8,0:6"):
        open_shards(LocalFiles(tmp_path), "0", 0).write(Box.of_shape((4, 8, 6)), np.ones((4, 8, 5), np.uint8))


def test_an_array_of_other_codecs_is_not_written(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "0", shape=SHARD, shards=SHARD, chunks=CHUNK, dtype="uint8", fill_value=0)
    with pytest.raises(ValueError, match="has other codecs"):
        open_shards(LocalFiles(tmp_path), "0", 0)
