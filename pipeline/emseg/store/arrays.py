"""Arrays that emseg writes: Zarr v3, sharded, each shard written whole by one writer, each inner chunk with a checksum."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from emseg.box import Box, Triple, triple
from emseg.store.codecs import most_stored
from emseg.store.files import ArrayFiles, Files
from emseg.store.remote import NODE, RemoteFiles
from emseg.store.shard import CODECS, encode_shard, sharding

INDEX_ENTRY = 16
"""Bytes in a shard's index for each chunk: offset and length; 4 more are the index's checksum."""


def create_group(files: Files, name: str, attributes: dict[str, Any]) -> None:
    """Makes a group `name` within the Zarr that these files are; the empty name is the root itself."""
    files.put(_node(name), group_metadata(attributes))


def group_metadata(attributes: dict[str, Any]) -> bytes:
    """The file of a group with these attributes."""
    store = MemoryStore()
    zarr.create_group(store=store, attributes=attributes, zarr_format=3)
    return _stored(store, NODE)


def describe_group(files: Files, name: str, attributes: dict[str, Any]) -> None:
    """Gives a group other attributes, all at once, unless it has them already; its metadata may be lost or damaged."""
    document = group_metadata(attributes)
    if not says_the_same(files.read(_node(name)), document):
        files.put(_node(name), document)


def says_the_same(found: bytes | None, document: bytes) -> bool:
    """Whether a file is as a document that belongs there: its bytes, or for JSON the same values as the same writer puts them.

    Releases of emseg and of zarr-python differ in the order of keys, and in whether a line ends the file.
    """
    if found is None or found == document:
        return found is not None
    try:
        values = json.loads(found)
        alike: bool = values == json.loads(document)
    except (ValueError, RecursionError):
        return False
    return alike and found.rstrip(b"\n") == json.dumps(values, indent=2).encode()


def create_array(files: Files, name: str, **layout: Any) -> None:
    """Makes an empty array `name` within the Zarr that these files are, laid out as `array_metadata` takes it.

    Nothing about the time, the machine or the path is stored, so the same voxels give the same files.
    """
    files.put(_node(name), array_metadata(**layout))


def array_metadata(
    *,
    shape: tuple[int, ...],
    shard: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: str,
    fill_value: int,
    axes: tuple[str, ...],
) -> bytes:
    """The file of an array that is laid out like this."""
    store = MemoryStore()
    zarr.create_array(
        store=store,
        shape=shape,
        shards=shard,
        chunks=chunk,
        dtype=dtype,
        fill_value=fill_value,
        filters=None,
        compressors=list(CODECS),
        chunk_key_encoding={"name": "default", "separator": "/"},
        dimension_names=axes,
        zarr_format=3,
    )
    return _stored(store, NODE)


def open_shards(
    files: Files, name: str, channels: int, permit: Callable[[], None] | None = None, *, dense: bool = False
) -> Shards:
    """The array `name` within the Zarr that these files are; each shard is written only if `permit`, too, does not raise.

    If `dense`, shards of nothing but fill values are written as well.

    Raises
    ------
    Exception
        Of almost any type, if the metadata are damaged.
    """
    store = ArrayFiles(files, _node(name))
    array = zarr.open_array(store=store, path=name, mode="r", zarr_format=3)
    store.most = most_stored(array)
    return Shards(files, name, array, channels, permit, dense)


def _node(name: str) -> str:
    return f"{name}/{NODE}" if name else NODE


def _stored(store: MemoryStore, name: str) -> bytes:
    """What was stored in memory."""
    return sync(store.get(name, default_buffer_prototype())).to_bytes()  # type: ignore[union-attr]


class Shards:
    """A sharded array (z, y, x) or (y, x), or with channels in front of these, used shard by shard.

    Boxes are relative to the array's first voxel, and always 3-D; all channels of a place are in one shard.
    """

    def __init__(
        self,
        files: Files,
        name: str,
        array: zarr.Array[Any],
        channels: int,
        permit: Callable[[], None] | None,
        dense: bool,
    ) -> None:
        """Channels are 0 if the array has no channel axis.

        Raises
        ------
        ValueError
            If the array is not laid out as `create_array` does it.
        """
        rank, folder = array.ndim - bool(channels), files.place / name
        if rank not in (2, 3) or array.shards is None or array.shape[: bool(channels)] != (channels,)[: bool(channels)]:
            raise ValueError(f"the array {folder} with shape {array.shape} and shards {array.shards} is laid out differently")
        if array.metadata.codecs != (sharding(array.chunks, array.dtype),):  # type: ignore[union-attr]
            raise ValueError(f"the array {folder} has other codecs: {array.metadata.codecs}")  # type: ignore[union-attr]
        self.array = array
        self._files = files
        self._permit = permit
        self._dense = dense
        self._least = INDEX_ENTRY * math.prod(s // c for s, c in zip(array.shards, array.chunks, strict=True)) + 4
        self._name = name
        self._channels = channels
        self._rank = rank
        self._sent: dict[Triple, tuple[int, int]] = {}

    @property
    def dense(self) -> bool:
        """Whether each shard is stored, also one of nothing but fill values."""
        return self._dense

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of channels, if the array has an axis of these."""
        return self.array.shape[: bool(self._channels)]

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

    def remove(self, index: Triple) -> None:
        """Makes a shard one that was never written."""
        self._files.remove(self._file(index))

    def _file(self, index: Triple) -> str:
        """Name of the shard with this index (z, y, x) in the grid."""
        return "/".join((self._folder, *map(str, index[-self._rank :])))

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
        return found.reshape((*self.channels, *box.shape))

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Stores ``(z, y, x)`` or ``(channel, z, y, x)``; `box` must be whole shards.

        Each shard is in its place whole and on the disk when this returns, so that not even a power cut takes it back. What
        was stored before is never read.
        """
        if values.shape != (*self.channels, *box.shape):
            raise ValueError(f"the values have shape {values.shape}, which is not that of {box}")
        indices = list(self.indices(box))
        if len(indices) == 1:
            self._write_shard(indices[0], box, values)
            return
        with ThreadPoolExecutor(min(len(indices), os.cpu_count() or 1)) as threads:
            list(threads.map(lambda index: self._write_shard(index, box, values), indices))

    def _write_shard(self, index: Triple, box: Box, values: NDArray[Any]) -> None:
        """Store the part of a box that lies in one shard."""
        part = values[(..., *Box.at(index, self.unit).intersect(box).relative_to(box.start).slices())]
        part = part.reshape((*self.channels, *part.shape[-self._rank :]))
        array, file = self.array, self._file(index)
        values = part.astype(array.dtype, copy=False)
        document = encode_shard(values, array.shards or (), array.chunks, array.fill_value, dense=self._dense)
        if document is None:
            self._files.remove(file)
            return
        if tag := self._files.put(file, document, self._permit):
            self._sent[index] = _short(tag.encode()), _short(document)

    def take_sent(self, index: Triple) -> tuple[int, int]:
        """64 bits of the tag, and of the digest, of the object that was last sent for a shard; zeros if none was."""
        return self._sent.pop(index, (0, 0))

    def tags(self) -> NDArray[np.uint64]:
        """64 bits of the tag of each shard on an object store, ``(z, y, x)``; zeros where there is none."""
        assert isinstance(self._files, RemoteFiles)
        shape = self.grid[-self._rank :]
        found = np.zeros(shape, np.uint64)
        for name, tag in self._files.tags(self._folder):
            if tag and (place := _place(name, shape)):
                found[place] = _short(tag.encode())
        return found.reshape(self.grid)

    def digest(self, index: Triple) -> int:
        """64 bits of the digest of a shard's bytes as they are stored; 0 if it is not there."""
        document = self._files.read(self._file(index))
        return 0 if document is None else _short(document)

    def has(self, index: Triple) -> bool:
        """Whether a shard exists; a file that is shorter than its own index does not count."""
        return (self._files.size(self._file(index)) or 0) > self._least

    def stored(self, *, tidy: bool = False) -> NDArray[np.bool_]:
        """Whether each shard exists, ``(z, y, x) bool`` on the grid; lists each folder once.

        With `tidy`, files that a killed writer has left half-written are removed.

        Raises
        ------
        StoreError
            If the array is not there any more, which says nothing about its shards.
        """
        found = self._listed(tidy=tidy)
        # nothing may have been found because all was away for a moment
        if not found.any() and not self._files.lacks(self._folder, _node(self._name)):
            found = self._listed(tidy=tidy)
        return found.reshape(self.grid)

    def _listed(self, *, tidy: bool) -> NDArray[np.bool_]:
        shape = self.grid[-self._rank :]
        found = np.zeros(shape, dtype=bool)
        for name, size in self._files.sizes(self._folder, tidy=tidy):
            if size > self._least and (place := _place(name, shape)):
                found[place] = True
        return found

    @property
    def _folder(self) -> str:
        """Where the shards are; all channels are in the same ones."""
        return f"{self._name}/c/0" if self._channels else f"{self._name}/c"

    def _selection(self, box: Box) -> tuple[slice, ...]:
        return (slice(None),) * bool(self._channels) + box.slices()[-self._rank :]

    def _three(self, lengths: tuple[int, ...]) -> Triple:
        return triple((1,) * (3 - self._rank) + lengths[-self._rank :])


def _short(document: bytes | memoryview) -> int:
    """64 bits of a digest, never 0."""
    return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest()) or 1


def _place(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Index in a grid of the shard that a file below the array's folder is; None if it is something else."""
    parts = name.split("/")
    if len(parts) != len(shape) or not all(map(str.isdecimal, parts)):
        return None
    place = tuple(map(int, parts))
    within = all(index < length for index, length in zip(place, shape, strict=True))
    return place if within and list(map(str, place)) == parts else None
