"""Read input volumes: Zarr v2 or v3, sharded or not, a plain array or an OME-Zarr image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Any, Literal, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from emseg_core.box import AXES, Box, three, triple
from emseg_core.errors import VolumeError
from emseg_core.specs.volume import DTYPES, Selection, VolumeSpec, check_dtype
from emseg_core.store.files.faults import StoreError, translate_damage, translate_errors
from emseg_core.store.files.files import ArrayFiles
from emseg_core.store.files.place import Address, Place
from emseg_core.store.files.remote import RemoteFiles
from emseg_core.store.volumes.channels import axis_kind, choose_entries
from emseg_core.store.volumes.chunk_cache import ChunkCache
from emseg_core.store.volumes.concurrent_reads import read_concurrently
from emseg_core.store.volumes.plain_attributes import plain_space, spatial_names
from emseg_core.store.zarrs.nodes import METADATA_FILES_OF, Node, open_array, read_node
from emseg_core.store.zarrs.ome import Space, channel_labels, level, levels, multiscales_of

MAX_LEVEL_DEPTH = 4
"""Most folders from the array of a level up to its OME-Zarr image."""
RETRY_PAUSES_SECONDS = (1.0, 2.0, 4.0, *(8.0,) * 7)
"""Seconds to wait before each retry while a store does not answer."""
MAX_LISTED = 8
"""Most names in an error message."""


@dataclass(frozen=True, slots=True)
class StoredVolume:
    """An array that contains a volume, or one for each channel and timepoint."""

    array: zarr.Array[Any]
    """The array, open for reading."""
    space: Space
    """Its axes."""
    labels: tuple[str, ...] = ()
    """Names of its channels, ``""`` for a channel without a name; there may be fewer than channels."""


class ZarrVolume:
    """An open volume; implements `emseg_core.ports.VolumeReader`.

    Threads may read at the same time, and share the cached chunks. It is pickled as its path, so another process opens it
    again.
    """

    def __init__(
        self, path: Place, stored: StoredVolume, part: Selection | None, cache_bytes: int, dtypes: tuple[str, ...] = DTYPES
    ) -> None:
        self.path = path
        self._part = part
        self._cache_bytes = cache_bytes
        self._dtypes = dtypes
        self.spec, self.front = _select(stored, part, dtypes)
        """Description of the volume, and selected index along each axis of the stored array in front of (z, y, x)."""
        alone = [(self.spec, self.front)]
        if part is not None and part.channels:
            alone = [_select(stored, Selection(channel, part.timepoint), dtypes) for channel in part.channels]
        limit = cache_bytes // len(alone)
        self._chunks, *self._others = (ChunkCache(one, partial(_load, stored.array, one, at), limit) for one, at in alone)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of all chunks decompressed so far, counted each time."""
        return sum(chunks.decoded_bytes for chunks in (self._chunks, *self._others))

    @property
    def first(self) -> ZarrVolume:
        """The first of the channels that are read together, as a volume of its own."""
        if not self.spec.channels:
            return self
        part = Selection(self.spec.channels[0], self.spec.timepoint)
        return open_volume(self.path, self._cache_bytes, self._dtypes, part)

    def read(self, box: Box) -> NDArray[Any]:
        """Read a box.

        Parameters
        ----------
        box
            A box within the volume.

        Returns
        -------
        ndarray
            Voxels ``(z, y, x)``, or ``(c, z, y, x)`` of several channels, of the volume's type; a chunk that was never written
            is read as the fill value.

        Raises
        ------
        BlockError
            If the voxels cannot be read.
        ValueError
            If the box is not within the volume.
        """
        if not self.spec.box.contains(box):
            raise ValueError(f"the box {box} is not within the volume {self.spec.box}")
        what = f"the voxels {box} of {self.path} cannot be read"
        with translate_errors(what, "restore them", transient_remedy="check the disk or the network"):
            found = [chunks.read(box) for chunks in (self._chunks, *self._others)]
        return np.stack(found) if self.spec.channels else found[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_volume, (self.path, self._cache_bytes, self._dtypes, self._part)

    def __repr__(self) -> str:
        return f"ZarrVolume({str(self.path)!r})"


def open_volume(
    path: str | Path | Address, cache_bytes: int = 0, dtypes: tuple[str, ...] = DTYPES, part: Selection | None = None
) -> ZarrVolume:
    """Open the volume at a path or an address: a Zarr array, or level 0 of an OME-Zarr image.

    The axes are (z, y, x) or (y, x). One entry is read of each axis in front of these, such as time and channel of an OME-Zarr
    image: the only one, or the selected one. The voxel size is that of the OME metadata, even if the path is that of the array
    of a level. For a plain array it is that of its own attributes ``voxel_size`` or ``resolution``, ``offset`` and ``units``,
    or else 1 without a unit.

    Parameters
    ----------
    cache_bytes
        Most bytes of decompressed chunks to keep in memory, as neighbouring blocks read the same chunks.
    dtypes
        Names of the NumPy types to accept.
    part
        Channel and timepoint to read; None where the user cannot choose.

    Returns
    -------
    ZarrVolume
        The open volume.

    Raises
    ------
    VolumeError
        If there is no such volume, or emseg cannot read it; the message says why, and how to fix it.
    """
    node = read_node(path)
    stored = stored_volume(node)
    try:
        return ZarrVolume(node.path, stored, part, cache_bytes, dtypes)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error


def stored_volume(node: Node) -> StoredVolume:
    """Open the array of a node, or of the finest level of an image, with its axes and the names of its channels.

    Parameters
    ----------
    node
        An array or a group.

    Returns
    -------
    StoredVolume
        The array.

    Raises
    ------
    VolumeError
        If there is no such array, or its metadata are wrong.
    """
    return _open_image(node) if node.kind == "group" else _open_plain(node)


def open_volume_patiently(path: str | Path | Address, cache_bytes: int = 0, part: Selection | None = None) -> ZarrVolume:
    """Open a volume as `open_volume` does, but retry for a minute if its remote store does not answer.

    Parameters
    ----------
    path
        Folder or address of an array, or of a group that is an OME-Zarr image.
    cache_bytes
        Size of the cache of decompressed chunks, in bytes.
    part
        Channel and timepoint to read.

    Returns
    -------
    ZarrVolume
        The open volume.

    Raises
    ------
    VolumeError
        If the store remains unavailable, or the volume cannot be opened.
    """
    for pause in RETRY_PAUSES_SECONDS:
        try:
            return open_volume(path, cache_bytes, part=part)
        except VolumeError as error:
            if not isinstance(error.__cause__, StoreError) or error.__cause__.permanent:
                raise
        sleep(pause)
    return open_volume(path, cache_bytes, part=part)


def level_path(path: str | Path | Address, number: int) -> Place:
    """Return where the array of a level of an OME-Zarr image is, which can be opened as a volume, too.

    Parameters
    ----------
    number
        Level, 0 for the finest.

    Returns
    -------
    Path or Address
        Place of the array.

    Raises
    ------
    VolumeError
        If there is no such image, or no such level.
    """
    group = read_node(path)
    multiscales = multiscales_of(group.attributes)
    if multiscales is None:
        raise VolumeError(f"{path} is not an OME-Zarr image and has no levels: leave --level out, or name the image")
    try:
        return group.path / level(multiscales, number)[0]
    except IndexError:
        most = len(list(levels(multiscales))) - 1
        raise VolumeError(f"{path} has no level {number}, its coarsest is {most}: choose one with --level") from None
    except ValueError as error:
        raise VolumeError(f"the OME metadata of {path} are wrong, {error}: repair them, or name the array itself") from error


def _load(array: zarr.Array[Any], spec: VolumeSpec, front: tuple[int, ...], box: Box) -> NDArray[Any]:
    """Read a box, ``(z, y, x)``, from the store; `front` are the indices along the axes in front."""

    def read(part: Box) -> NDArray[Any]:
        selection = front + part.slices()[-spec.rank :]
        return np.asarray(array[selection]).reshape(part.shape)

    files = cast("ArrayFiles", array.store).files
    if isinstance(files, RemoteFiles) and array.shards is not None:
        shard = triple((1,) * (3 - spec.rank) + array.shards[-spec.rank :])
        layers = math.prod(array.shards[: -spec.rank]) // math.prod(array.chunks[: -spec.rank])
        voxels = read_concurrently(read, box, spec.chunk, shard, spec.dtype, layers)
    else:
        voxels = read(box)
    return np.ascontiguousarray(voxels, dtype=spec.dtype)


def _open_plain(node: Node) -> StoredVolume:
    """Open an array, which may be a level of an image."""
    array = open_array(node)
    space, labels = _level_metadata(node)
    if space is not None and len(space.names) == array.ndim:
        return StoredVolume(array, space, labels)
    try:
        return StoredVolume(array, plain_space(node.attributes, array.ndim, _dimension_names(array)))
    except ValueError as error:
        raise VolumeError(f"the attributes of {node.path} are wrong, {error}: repair or remove them") from error


def _level_metadata(array: Node) -> tuple[Space | None, tuple[str, ...]]:
    """Return the axes of an array that is a level of an OME-Zarr image, and the names of its channels.

    None if it is not a level, or the metadata of the image are invalid.
    """
    parents: Sequence[Place] = array.path.parents
    for group in parents[:MAX_LEVEL_DEPTH]:
        try:
            attributes = read_node(group, METADATA_FILES_OF[array.format][-1:]).attributes
            found = levels(multiscales_of(attributes))
            if space := next((space for inside, space in found if group / inside == array.path), None):
                return space, channel_labels(attributes)
        except (VolumeError, ValueError) as error:
            if isinstance(error.__cause__, StoreError) and not error.__cause__.permanent:
                raise  # without these metadata the volume would have another voxel size
    return None, ()


def _open_image(group: Node) -> StoredVolume:
    """Open the finest level of an OME-Zarr image."""
    multiscales = multiscales_of(group.attributes)
    if multiscales is None:
        raise VolumeError(f"{group.path} is a Zarr group without multiscales: name an array inside it{_listed(group.path)}")
    repair = "repair them, or name the array itself"
    try:
        inside, space = level(multiscales, 0)
    except ValueError as error:
        raise VolumeError(f"the OME metadata of {group.path} are wrong, {error}: {repair}") from error
    try:
        array = open_array(read_node(group.path / inside, METADATA_FILES_OF[group.format]))
    except VolumeError as error:
        raise VolumeError(f"the OME metadata of {group.path} name the array {inside!r}, but {error}") from error
    if array.ndim != len(space.names):
        raise VolumeError(
            f"the OME metadata of {group.path} have axes {space.names}, but {inside!r} has {array.ndim}: {repair}"
        )
    own = spatial_names(_dimension_names(array))
    if own and own != space.names:
        raise VolumeError(f"the OME metadata of {group.path} have axes {space.names}, but {inside!r} has {own}: {repair}")
    return StoredVolume(array, space, channel_labels(group.attributes))


def _dimension_names(array: zarr.Array[Any]) -> Any:
    """Return the names of the axes as Zarr v3 stores them; None in v2."""
    return getattr(array.metadata, "dimension_names", None)


def _listed(group: Place) -> str:
    """List the images inside a group, for a message; none for a remote store, which may not support listing."""
    if isinstance(group, Address):
        return ""
    names = list(islice(_images_inside(group), MAX_LISTED + 1))
    return f"; there are {', '.join(names[:MAX_LISTED]) + (', ...' if len(names) > MAX_LISTED else '') or 'none'}"


def _images_inside(folder: Path) -> Iterator[str]:
    """Iterate over the relative paths of the arrays and OME-Zarr images below a group."""
    for root, names, _ in os.walk(folder):
        names.sort()
        if Path(root) == folder:
            continue
        try:
            node = read_node(root)
        except VolumeError:
            continue
        if node.kind == "array" or multiscales_of(node.attributes) is not None:
            names.clear()
            yield Path(root).relative_to(folder).as_posix()


def _select(stored: StoredVolume, part: Selection | None, dtypes: tuple[str, ...]) -> tuple[VolumeSpec, tuple[int, ...]]:
    """Return the spec of the selected volume of an array, and its index along each axis in front of (z, y, x)."""
    array, space = stored.array, stored.space
    rank: Literal[2, 3] = 3 if "z" in space.names else 2
    extra, spatial = space.names[:-rank], space.names[-rank:]
    if spatial != AXES[-rank:] or set(extra) & set(AXES):
        axes = f"({', '.join(space.names)})" if any(space.names) else f"{array.ndim} without names"
        raise VolumeError(f"the axes are {axes}, but emseg reads (z, y, x) or (y, x): transpose the array, or name its axes")
    long = [axis_kind(name) for name, length in zip(extra, array.shape, strict=False) if length != 1]
    if len(set(long)) < len(long) or 0 in array.shape[:-rank] or (long and part is None):
        raise VolumeError(
            f"the axes ({', '.join(space.names)}) have shape {array.shape}, but emseg reads one channel at one time: "
            f"copy the part you want into a volume where ({', '.join(extra)}) have length 1"
        )
    part = part or Selection()
    if part.channels:
        kinds = zip(extra, array.shape[:-rank], strict=True)
        count = max((length for name, length in kinds if axis_kind(name) == "channel"), default=1)
        if max(part.channels) >= count:
            raise VolumeError(
                f"the network takes the channels {', '.join(map(str, part.channels))} of a volume, counted from 0, but this "
                f"one has {count}: correct inputs in the file beside the network, or give another volume"
            )
        fronts = [
            choose_entries(extra, array.shape[:-rank], stored.labels, Selection(channel, part.timepoint))
            for channel in part.channels
        ]
        front = replace(fronts[0], channel=None)
    else:
        front = choose_entries(extra, array.shape[:-rank], stored.labels, part)
    dtype = array.dtype.newbyteorder("=").name
    check_dtype("the volume", dtype, dtypes)
    chunk = _chunks(array)
    flat = 3 - rank
    kept = space.last(rank)
    spec = VolumeSpec(
        shape=triple((1,) * flat + array.shape[-rank:]),
        dtype=dtype,
        chunk=triple((1,) * flat + chunk[-rank:]),
        rank=rank,
        scale=three((1.0,) * flat + kept.scale),
        translation=three((0.0,) * flat + kept.translation),
        units=three((None,) * flat + kept.units),
        channel=front.channel,
        timepoint=front.timepoint,
        together=math.prod(map(min, chunk[:-rank], array.shape[:-rank])),
        channels=part.channels,
    )
    return spec, front.entries


def _chunks(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Return the shape of the units of decompression: of the inner chunks if the array is sharded."""
    with translate_damage("the chunks have no common shape", "write the volume with regular chunks"):
        return tuple(int(length) for length in array.chunks)
