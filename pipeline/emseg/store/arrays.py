"""Arrays that emseg writes: Zarr v3, sharded, each shard written whole by one writer, each inner chunk with a checksum."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from emseg.box import Box, Triple, triple


def create_group(root: Path, name: str, attributes: dict[str, Any]) -> None:
    """Makes a group `name` within the Zarr at `root`; the empty name is the root itself."""
    zarr.create_group(store=LocalStore(root), path=name, attributes=attributes, zarr_format=3)


def create_array(
    root: Path,
    name: str,
    *,
    shape: tuple[int, ...],
    shard: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: str,
    fill_value: int,
    axes: tuple[str, ...],
) -> zarr.Array[Any]:
    """An empty array `name` within the Zarr at `root`.

    The checksum comes last in the codecs: without it a flipped bit is read back unnoticed. Nothing about the time, the
    machine or the path is stored, so the same voxels give the same files.
    """
    return zarr.create_array(
        store=LocalStore(root),
        name=name,
        shape=shape,
        shards=shard,
        chunks=chunk,
        dtype=dtype,
        fill_value=fill_value,
        filters=None,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "/"},
        dimension_names=axes,
        zarr_format=3,
    )


class Shards:
    """A sharded array (z, y, x) or (y, x), or with channels in front of these, used shard by shard.

    Boxes are relative to the array's first voxel, and always 3-D; all channels of a place are in one shard.
    """

    def __init__(self, folder: Path, array: zarr.Array[Any], channels: int) -> None:
        """Channels are 0 if the array has no channel axis.

        Raises
        ------
        ValueError
            If the array is not laid out as `create_array` does it.
        """
        rank = array.ndim - bool(channels)
        if rank not in (2, 3) or array.shards is None or array.shape[: bool(channels)] != (channels,)[: bool(channels)]:
            raise ValueError(f"the array {folder} with shape {array.shape} and shards {array.shards} is laid out differently")
        self.array = array
        self._folder = folder
        self._channels = channels
        self._rank = rank

    @property
    def shape(self) -> Triple:
        """Shape (z, y, x) in voxels."""
        return self._three(self.array.shape)

    @property
    def unit(self) -> Triple:
        """Shape (z, y, x) of a shard, in voxels."""
        return self._three(self.array.shards or self.array.chunks)

    @property
    def chunk(self) -> Triple:
        """Shape (z, y, x) of an inner chunk, in voxels."""
        return self._three(self.array.chunks)

    @property
    def grid(self) -> Triple:
        """Number of shards along (z, y, x)."""
        return triple(-(-length // unit) for length, unit in zip(self.shape, self.unit, strict=True))

    def file(self, index: Triple) -> Path:
        """File of the shard with this index (z, y, x) in the grid."""
        return self._root.joinpath(*map(str, index[-self._rank :]))

    def indices(self, box: Box) -> Iterator[Triple]:
        """Index of each shard that `box` consists of.

        Raises
        ------
        ValueError
            If `box` is not whole shards; those at the far end are cut short.
        """
        for start, stop, unit, length in zip(box.start, box.stop, self.unit, self.shape, strict=True):
            if start < 0 or start % unit or stop > length or (stop % unit and stop != length):
                raise ValueError(f"the box {box} is not whole write units of {self.unit} in {self.shape}")
        spans = (range(a // u, -(-b // u)) for a, b, u in zip(box.start, box.stop, self.unit, strict=True))
        return map(triple, itertools.product(*spans))

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of `box`, ``(z, y, x)`` or ``(channel, z, y, x)``."""
        found = np.asarray(self.array[self._selection(box)])
        return found.reshape((*found.shape[: bool(self._channels)], *box.shape))

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Stores ``(z, y, x)`` or ``(channel, z, y, x)``; `box` must be whole shards, which are written as a whole."""
        self.array[self._selection(box)] = values.reshape(*values.shape[: bool(self._channels)], *box.shape[-self._rank :])

    def flush(self, box: Box) -> None:
        """Waits until the shards of `box` are on the disk, so that not even a power cut takes them back."""
        for index in self.indices(box):
            with self.file(index).open("rb") as file:
                os.fsync(file.fileno())

    def has(self, index: Triple) -> bool:
        """Whether a shard exists; an empty file, as a power cut may leave it, does not count."""
        try:
            return self.file(index).stat().st_size > 0
        except OSError:
            return False

    def stored(self) -> NDArray[np.bool_]:
        """Whether each shard exists, ``(z, y, x) bool`` on the grid; lists each folder once."""
        found = np.zeros(self.grid, dtype=bool)
        for index in _numbered(self._root, self._rank):
            place = (0,) * (3 - self._rank) + index
            if all(i < n for i, n in zip(place, self.grid, strict=True)):
                found[place] = self.has(triple(place))
        return found

    @property
    def _root(self) -> Path:
        return self._folder / "c" / "0" if self._channels else self._folder / "c"

    def _selection(self, box: Box) -> tuple[slice, ...]:
        return (slice(None),) * bool(self._channels) + box.slices()[-self._rank :]

    def _three(self, lengths: tuple[int, ...]) -> Triple:
        return triple((1,) * (3 - self._rank) + lengths[-self._rank :])


def _numbered(folder: str | Path, depth: int) -> Iterator[tuple[int, ...]]:
    """Numbers in the paths of all files `depth` levels below a folder whose names are numbers."""
    try:
        entries = [entry for entry in os.scandir(folder) if entry.name.isdecimal()]
    except OSError:
        return
    for entry in entries:
        if depth == 1:
            yield (int(entry.name),)
        else:
            yield from ((int(entry.name), *rest) for rest in _numbered(entry.path, depth - 1))
