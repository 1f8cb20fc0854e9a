"""Arrays that emseg writes: Zarr v3, sharded, each shard written whole by one writer, each inner chunk with a checksum."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from emseg_core.box import Box, Triple, triple
from emseg_core.machine import usable_cores
from emseg_core.store.files.files import ArrayFiles, Files
from emseg_core.store.files.place import ZARR_JSON
from emseg_core.store.files.remote import RemoteFiles
from emseg_core.store.zarrs.codecs import max_stored_bytes
from emseg_core.store.zarrs.shard import CODECS, encode_shard, sharding

INDEX_ENTRY_BYTES = 16
"""Bytes of a chunk's entry in a shard's index: its offset and length."""
CHECKSUM_BYTES = 4
"""Bytes of the checksum at the end of the index."""

_cores = functools.cache(usable_cores)  # finding them reads files, and each write of several shards needs them


def create_group(files: Files, name: str, attributes: dict[str, Any]) -> None:
    """Create the group `name` in the Zarr with these files; the empty name is the root itself.

    Parameters
    ----------
    files
        Files of the Zarr.
    name
        Path of the group.
    attributes
        Attributes of the group, as JSON values.

    Raises
    ------
    OSError
        If the store refuses.
    """
    files.put(_node(name), group_metadata(attributes))


def group_metadata(attributes: dict[str, Any]) -> bytes:
    """Return the content of the metadata file of a group with these attributes.

    Parameters
    ----------
    attributes
        Attributes of the group, as JSON values.

    Returns
    -------
    bytes
        Content of ``zarr.json``.
    """
    files: dict[str, Any] = {}
    zarr.create_group(store=MemoryStore(files), attributes=attributes, zarr_format=3)
    document: bytes = files[ZARR_JSON].to_bytes()
    return document


def describe_group(files: Files, name: str, attributes: dict[str, Any]) -> None:
    """Replace the attributes of a group atomically, unless they are the same; its metadata may be lost or damaged.

    Parameters
    ----------
    files
        Files of the Zarr.
    name
        Path of the group.
    attributes
        The new attributes, as JSON values.

    Raises
    ------
    OSError
        If the store refuses.
    """
    document = group_metadata(attributes)
    if not same_document(files.read(_node(name)), document):
        files.put(_node(name), document)


def same_document(found: bytes | None, document: bytes) -> bool:
    """Compare a metadata file with the document that belongs there.

    Releases of emseg and of zarr-python differ in the order of keys, and in whether the file ends with a newline.

    Parameters
    ----------
    found
        Content of the file; None if there is none.
    document
        What it should be.

    Returns
    -------
    bool
        Whether the bytes are the same, or both are JSON with the same values and the file is formatted as emseg formats it.
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
    """Create the empty array `name` in the Zarr with these files.

    Nothing about the time, the machine or the path is stored, so the same voxels result in the same files.

    Parameters
    ----------
    **layout
        Keyword arguments of `array_metadata`.

    Raises
    ------
    OSError
        If the store refuses.
    """
    files.put(_node(name), array_metadata(**layout))


def array_metadata(
    *,
    shape: tuple[int, ...],
    shard: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: str,
    fill_value: float,
    axes: tuple[str, ...],
) -> bytes:
    """Return the content of the metadata file of an array.

    Parameters
    ----------
    shape, shard, chunk
        Shapes of the array, of a shard and of an inner chunk, in voxels along the axes.
    dtype
        Name of a NumPy type.
    axes
        Name of each axis.

    Returns
    -------
    bytes
        JSON, as zarr-python writes it.
    """
    files: dict[str, Any] = {}
    zarr.create_array(
        store=MemoryStore(files),
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
    document: bytes = files[ZARR_JSON].to_bytes()
    return document


def open_shards(
    files: Files, name: str, channels: int, permit: Callable[[], None] | None = None, *, dense: bool = False
) -> Shards:
    """Open the array `name` in the Zarr with these files.

    Parameters
    ----------
    channels
        Length of the channel axis; 0 if the array has none.
    permit
        Called before each shard is written; may raise to prevent it.
    dense
        Store shards that contain only fill values as well.

    Returns
    -------
    Shards
        The array.

    Raises
    ------
    Exception
        Of almost any type, if the metadata are damaged.
    """
    store = ArrayFiles(files, _node(name))
    array = zarr.open_array(store=store, path=name, mode="r", zarr_format=3)
    store.max_bytes = max_stored_bytes(array)
    return Shards(files, name, array, channels, permit, dense)


def _node(name: str) -> str:
    """Return the metadata file of a node."""
    return f"{name}/{ZARR_JSON}" if name else ZARR_JSON


class Shards:
    """A sharded array with axes (z, y, x) or (y, x), with or without channels in front, read and written shard by shard.

    Boxes are relative to the array's first voxel and always 3-D. A shard contains all channels of its voxels.
    """

    def __init__(
        self, files: Files, name: str, array: zarr.Array[Any], channels: int, permit: Callable[[], None] | None, dense: bool
    ) -> None:
        """Use an open array; `channels` is 0 if it has no channel axis.

        Raises
        ------
        ValueError
            If the array is not laid out as `create_array` does.
        """
        self.channels: tuple[int, ...] = (channels,) if channels else ()
        """Shape of the channel axis: ``(channels,)``, or ``()`` if the array has none."""
        rank, folder = array.ndim - len(self.channels), files.place / name
        if rank not in (2, 3) or array.shards is None or array.shape[: len(self.channels)] != self.channels:
            raise ValueError(f"the array {folder} with shape {array.shape} and shards {array.shards} is laid out differently")
        if array.metadata.codecs != (sharding(array.chunks, array.dtype),):  # type: ignore[union-attr]
            raise ValueError(f"the array {folder} has other codecs: {array.metadata.codecs}")  # type: ignore[union-attr]
        self.array = array
        self._files = files
        self._permit = permit
        self.dense = dense
        """Whether shards that contain only fill values are stored as well."""
        chunks = math.prod(s // c for s, c in zip(array.shards, array.chunks, strict=True))
        self._index_bytes = INDEX_ENTRY_BYTES * chunks + CHECKSUM_BYTES
        self._name = name
        self._rank = rank
        self._sent: dict[Triple, tuple[int, int]] = {}

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
        """Remove a shard, as if it was never written.

        Parameters
        ----------
        index
            Index (z, y, x) of the shard in the grid.

        Raises
        ------
        OrphanError
            If the array belongs to another run by now.
        OSError
            If the store refuses.
        """
        self._files.remove(self._file(index))

    def _file(self, index: Triple) -> str:
        """Return the file of the shard with this index (z, y, x) in the grid."""
        return "/".join((self._folder, *map(str, index[-self._rank :])))

    def indices(self, box: Box) -> list[Triple]:
        """Return the index of each shard in `box`.

        Parameters
        ----------
        box
            Whole shards, in voxels of the array.

        Returns
        -------
        iterator of tuple of int
            Indices (z, y, x) in the grid.

        Raises
        ------
        ValueError
            If `box` does not consist of whole shards; those at the far end are cut short.
        """
        for start, stop, unit, length in zip(box.start, box.stop, self.unit, self.shape, strict=True):
            if start < 0 or start % unit or stop > length or (stop % unit and stop != length):
                raise ValueError(f"the box {box} is not whole write units of {self.unit} in {self.shape}")
        return box.cells(self.unit)

    def read(self, box: Box) -> NDArray[Any]:
        """Read a box.

        Parameters
        ----------
        box
            A box within the array, in voxels.

        Returns
        -------
        ndarray
            Voxels ``(z, y, x)`` or ``(channel, z, y, x)``, of the array's type.

        Raises
        ------
        Exception
            Of almost any type, if what is stored is damaged.
        """
        found = np.asarray(self.array[(*map(slice, self.channels), *box.slices()[-self._rank :])])
        return found.reshape((*self.channels, *box.shape))

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Write whole shards.

        Each shard is written atomically, and is on the disk when this returns, so it survives even a power cut. What was
        stored before is never read.

        Parameters
        ----------
        box
            The voxels to write; it must consist of whole shards.
        values
            Voxels ``(z, y, x)`` or ``(channel, z, y, x)``, converted to the array's type.

        Raises
        ------
        ValueError
            If `box` does not consist of whole shards, or `values` have another shape.
        OrphanError
            If the array belongs to another run by now.
        OSError
            If the store refuses.
        """
        if values.shape != (*self.channels, *box.shape):
            raise ValueError(f"the values have shape {values.shape}, which is not that of {box}")
        indices = self.indices(box)
        if len(indices) == 1:
            self._write_shard(indices[0], box, values)
            return
        with ThreadPoolExecutor(min(len(indices), _cores())) as threads:
            list(threads.map(lambda index: self._write_shard(index, box, values), indices))

    def _write_shard(self, index: Triple, box: Box, values: NDArray[Any]) -> None:
        """Write the part of a box that is in one shard."""
        part = values[(..., *Box.at(index, self.unit).intersect(box).relative_to(box.start).slices())]
        part = part.reshape((*self.channels, *part.shape[-self._rank :]))
        array, file = self.array, self._file(index)
        values = part.astype(array.dtype, copy=False)
        document = encode_shard(values, array.shards or (), array.chunks, array.fill_value, dense=self.dense)
        if document is None:
            self._files.remove(file)
            return
        if tag := self._files.put(file, document, self._permit):
            self._sent[index] = _short(tag.encode()), _short(document)

    def take_sent(self, index: Triple) -> tuple[int, int]:
        """Return, once, 64 bits each of the tag and of the digest of the object last sent for a shard; zeros if none was.

        Parameters
        ----------
        index
            Index (z, y, x) of the shard in the grid.

        Returns
        -------
        tuple of int
            Tag and digest.
        """
        return self._sent.pop(index, (0, 0))

    def tags(self) -> NDArray[np.uint64]:
        """List the tags of the shards on an object store.

        Returns
        -------
        ndarray of uint64
            64 bits of the tag of each shard, ``(z, y, x)`` on the grid; 0 where there is none.

        Raises
        ------
        StoreError
            If the store refuses.
        """
        assert isinstance(self._files, RemoteFiles)
        shape = self.grid[-self._rank :]
        found = np.zeros(shape, np.uint64)
        for name, tag in self._files.tags(self._folder):
            if tag and (place := _place(name, shape)):
                found[place] = _short(tag.encode())
        return found.reshape(self.grid)

    def digest(self, index: Triple) -> int:
        """Return 64 bits of the digest of a shard's stored bytes; 0 if there is no such shard.

        Parameters
        ----------
        index
            Index (z, y, x) of the shard in the grid.

        Returns
        -------
        int
            64 bits.
        """
        document = self._files.read(self._file(index))
        return 0 if document is None else _short(document)

    def has(self, index: Triple) -> bool:
        """Return whether a shard exists; a file that is not longer than its own index does not count.

        Parameters
        ----------
        index
            Index (z, y, x) of the shard in the grid.

        Returns
        -------
        bool
            True if it exists.
        """
        return (self._files.size(self._file(index)) or 0) > self._index_bytes

    def stored(self, *, tidy: bool = False) -> NDArray[np.bool_]:
        """Find out which shards exist; each folder is listed once.

        Parameters
        ----------
        tidy
            Remove files that a killed writer has left half-written.

        Returns
        -------
        ndarray of bool
            Whether each shard exists, ``(z, y, x)`` on the grid.

        Raises
        ------
        StoreError
            If the array no longer exists, which says nothing about its shards.
        """
        found = self._listed(tidy=tidy)
        # nothing may have been found because the store was unavailable for a moment
        if not found.any() and not self._files.is_missing(self._folder, _node(self._name)):
            found = self._listed(tidy=tidy)
        return found.reshape(self.grid)

    def _listed(self, *, tidy: bool) -> NDArray[np.bool_]:
        """List once which shards exist."""
        shape = self.grid[-self._rank :]
        found = np.zeros(shape, dtype=bool)
        for name, size in self._files.sizes(self._folder, tidy=tidy):
            if size > self._index_bytes and (place := _place(name, shape)):
                found[place] = True
        return found

    @property
    def _folder(self) -> str:
        """Folder of the shards, each of which contains all channels."""
        return f"{self._name}/c/0" if self.channels else f"{self._name}/c"

    def _three(self, lengths: tuple[int, ...]) -> Triple:
        """Return lengths along the axes of the array as (z, y, x)."""
        return triple((1,) * (3 - self._rank) + lengths[-self._rank :])


def _short(document: bytes | memoryview) -> int:
    """Return 64 bits of a digest, never 0."""
    return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest()) or 1


def _place(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the index in the grid of the shard in a file below the array's folder; None if it is something else."""
    parts = name.split("/")
    if len(parts) != len(shape) or not all(map(str.isdecimal, parts)):
        return None
    place = tuple(map(int, parts))
    within = all(index < length for index, length in zip(place, shape, strict=True))
    return place if within and list(map(str, place)) == parts else None
