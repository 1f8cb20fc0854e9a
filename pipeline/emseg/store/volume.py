"""Reading an input volume: Zarr v2 or v3, sharded or not, a plain array or an OME-Zarr image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Any, Literal, TypeVar, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from emseg.box import AXES, Box, triple
from emseg.errors import VolumeError
from emseg.specs.volume import DTYPES, Part, VolumeSpec
from emseg.store.at_once import read_at_once
from emseg.store.blame import StoreError, blamed, reason
from emseg.store.channels import front_of, kind_of
from emseg.store.chunk_cache import ChunkCache
from emseg.store.files import ArrayFiles
from emseg.store.nodes import METADATA_OF, Node, open_array, read_node
from emseg.store.ome import Space, channel_labels, level, levels, multiscales_of
from emseg.store.place import Address, Place
from emseg.store.plain import plain_space, spatial_names
from emseg.store.remote import RemoteFiles

T = TypeVar("T")

DEEPEST = 4
"""Most folders between an OME-Zarr image and the array of a level."""
AWAY = (1.0, 2.0, 4.0, *(8.0,) * 7)
"""Seconds before each further look for a store that does not answer."""
LISTED = 8
"""Most names that an error message lists."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An array that holds a volume, or one for each channel and timepoint."""

    array: zarr.Array[Any]
    space: Space
    """Where its voxels lie."""
    labels: tuple[str, ...] = ()
    """Names of its channels, as far as they have any."""


class ZarrVolume:
    """An open volume; fulfils `emseg.ports.VolumeReader`.

    Threads may read at the same time, and share the chunks that are kept. Pickled it is its place, so another process
    opens it anew.
    """

    def __init__(
        self, path: Place, stored: Stored, part: Part | None, cache_bytes: int, dtypes: tuple[str, ...] = DTYPES
    ) -> None:
        self.path = path
        self._part = part
        self._cache_bytes = cache_bytes
        self._dtypes = dtypes
        self._spec, self.front = _chosen(stored, part, dtypes)
        """Entry of each axis of the stored array in front of (z, y, x)."""
        self._chunks = ChunkCache(self._spec, partial(_load, stored.array, self._spec, self.front), cache_bytes)

    @property
    def spec(self) -> VolumeSpec:
        """What the volume is."""
        return self._spec

    @property
    def decoded_bytes(self) -> int:
        """Bytes of all chunks decompressed so far, each as often as it was."""
        return self._chunks.decoded_bytes

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of `box`, ``(z, y, x)`` in the volume's type; a chunk that was never written reads as its fill value.

        Raises
        ------
        BlockError
            If what is stored there cannot be read.
        ValueError
            If the box is not within the volume.
        """
        if not self.spec.box.contains(box):
            raise ValueError(f"the box {box} is not within the volume {self.spec.box}")
        what = f"the voxels {box} of {self.path} cannot be read"
        with blamed(what, "restore them", passing="check the disk or the network"):
            return self._chunks.read(box)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_volume, (self.path, self._cache_bytes, self._dtypes, self._part)

    def __repr__(self) -> str:
        return f"ZarrVolume({str(self.path)!r})"


def open_volume(
    path: str | Path | Address, cache_bytes: int = 0, dtypes: tuple[str, ...] = DTYPES, part: Part | None = None
) -> ZarrVolume:
    """The volume at a path or an address: a Zarr array, or level 0 of an OME-Zarr image.

    Axes are (z, y, x) or (y, x). Of each axis in front of these, such as time and channel of an OME-Zarr image, one entry is
    read: the only one, or that of the part. The voxel size is that of the OME metadata, also where the array of a level is
    named by itself; for a plain array that of its own attributes ``voxel_size`` or ``resolution``, ``offset`` and ``units``,
    and else 1 with no unit.

    Parameters
    ----------
    cache_bytes
        Most bytes of chunks that are kept, uncompressed, for those who read where others have read before.
    dtypes
        Names of the NumPy types that will do.
    part
        Which channel, and which timepoint; None where the user cannot choose.

    Raises
    ------
    VolumeError
        If there is no such volume, or one that emseg cannot read; the message says why and what helps.
    """
    node = read_node(path)
    stored = stored_at(node)
    try:
        return ZarrVolume(node.path, stored, part, cache_bytes, dtypes)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error


def stored_at(node: Node) -> Stored:
    """The array of a node, of an image its finest level, where the voxels lie, and what channels are called.

    Raises
    ------
    VolumeError
        If there is no such array, or its metadata are wrong.
    """
    return _open_image(node) if node.kind == "group" else _open_plain(node)


def await_volume(path: str | Path | Address, cache_bytes: int = 0, part: Part | None = None) -> ZarrVolume:
    """The volume as `open_volume` opens it, once its remote store answers, which may be away for a minute.

    Raises
    ------
    VolumeError
        If the store stays away, or the volume cannot be opened.
    """
    for pause in AWAY:
        try:
            return open_volume(path, cache_bytes, part=part)
        except VolumeError as error:
            if not isinstance(error.__cause__, StoreError) or error.__cause__.lasting:
                raise
        sleep(pause)
    return open_volume(path, cache_bytes, part=part)


def level_path(path: str | Path | Address, number: int) -> Place:
    """Where the array of a level is, of an OME-Zarr image, level 0 the finest; what it leads to is a volume as well.

    Raises
    ------
    VolumeError
        If there is no such image, or no such level.
    """
    group = read_node(path)
    multiscales = multiscales_of(group.attributes)
    if multiscales is None:
        raise VolumeError(f"{path} is no OME-Zarr image and has no levels: leave --level out, or name the image")
    try:
        return group.path / level(multiscales, number)[0]
    except IndexError:
        most = len(list(levels(multiscales))) - 1
        raise VolumeError(f"{path} has no level {number}, its coarsest is {most}: choose one with --level") from None
    except ValueError as error:
        raise VolumeError(f"the OME metadata of {path} are wrong, {error}: repair them, or name the array itself") from error


def _load(array: zarr.Array[Any], spec: VolumeSpec, front: tuple[int, ...], box: Box) -> NDArray[Any]:
    """The voxels of a box, ``(z, y, x)``, from the store; `front` are the entries of the axes in front."""

    def read(part: Box) -> NDArray[Any]:
        selection = front + part.slices()[-spec.rank :]
        return np.asarray(array[selection]).reshape(part.shape)

    files = cast("ArrayFiles", array.store).files
    if isinstance(files, RemoteFiles) and array.shards is not None:
        shard = triple((1,) * (3 - spec.rank) + array.shards[-spec.rank :])
        layers = math.prod(array.shards[: -spec.rank]) // math.prod(array.chunks[: -spec.rank])
        voxels = read_at_once(read, box, spec.chunk, shard, spec.dtype, layers)
    else:
        voxels = read(box)
    return np.ascontiguousarray(voxels, dtype=spec.dtype)


def _open_plain(node: Node) -> Stored:
    array = open_array(node)
    space, labels = _told_of_level(node)
    if space is not None and len(space.names) == array.ndim:
        return Stored(array, space, labels)
    try:
        return Stored(array, plain_space(node.attributes, array.ndim, _dimension_names(array)))
    except ValueError as error:
        raise VolumeError(f"the attributes of {node.path} are wrong, {error}: repair or remove them") from error


def _told_of_level(array: Node) -> tuple[Space | None, tuple[str, ...]]:
    """Where the voxels of an array lie that is a level of an OME-Zarr image, and names of its channels.

    None if it is none, or none that is sound.
    """
    parents: Sequence[Place] = array.path.parents
    for group in parents[:DEEPEST]:
        try:
            attributes = read_node(group, METADATA_OF[array.format][-1:]).attributes
            found = levels(multiscales_of(attributes))
            if space := next((space for inside, space in found if group / inside == array.path), None):
                return space, channel_labels(attributes)
        except (VolumeError, ValueError) as error:
            if isinstance(error.__cause__, StoreError) and not error.__cause__.lasting:
                raise  # without its space the volume would be another one
    return None, ()


def _open_image(group: Node) -> Stored:
    multiscales = multiscales_of(group.attributes)
    if multiscales is None:
        raise VolumeError(f"{group.path} is a Zarr group without multiscales: name an array inside it{_listed(group.path)}")
    repair = "repair them, or name the array itself"
    try:
        inside, space = level(multiscales, 0)
    except ValueError as error:
        raise VolumeError(f"the OME metadata of {group.path} are wrong, {error}: {repair}") from error
    try:
        array = open_array(read_node(group.path / inside, METADATA_OF[group.format]))
    except VolumeError as error:
        raise VolumeError(f"the OME metadata of {group.path} name the array {inside!r}, but {error}") from error
    if array.ndim != len(space.names):
        raise VolumeError(
            f"the OME metadata of {group.path} have axes {space.names}, but {inside!r} has {array.ndim}: {repair}"
        )
    own = spatial_names(_dimension_names(array))
    if own and own != space.names:
        raise VolumeError(f"the OME metadata of {group.path} have axes {space.names}, but {inside!r} has {own}: {repair}")
    return Stored(array, space, channel_labels(group.attributes))


def _dimension_names(array: zarr.Array[Any]) -> Any:
    """Names of the axes as Zarr v3 stores them; None in v2."""
    return getattr(array.metadata, "dimension_names", None)


def _listed(group: Place) -> str:
    """The images inside a group, for a message; nothing of a remote store, which may not list what it has."""
    if isinstance(group, Address):
        return ""
    names = list(islice(_images_inside(group), LISTED + 1))
    return f"; there are {', '.join(names[:LISTED]) + (', ...' if len(names) > LISTED else '') or 'none'}"


def _images_inside(folder: Path) -> Iterator[str]:
    """Relative path of each array or OME-Zarr image below a group."""
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


def _chosen(stored: Stored, part: Part | None, dtypes: tuple[str, ...]) -> tuple[VolumeSpec, tuple[int, ...]]:
    """The spec of a volume in an array whose axes are known, and its entry of each axis in front of (z, y, x)."""
    array, space = stored.array, stored.space
    rank: Literal[2, 3] = 3 if "z" in space.names else 2
    extra, spatial = space.names[:-rank], space.names[-rank:]
    if spatial != AXES[-rank:] or set(extra) & set(AXES):
        axes = f"({', '.join(space.names)})" if any(space.names) else f"{array.ndim} without names"
        raise VolumeError(f"the axes are {axes}, but emseg reads (z, y, x) or (y, x): transpose the array, or name its axes")
    long = [kind_of(name) for name, length in zip(extra, array.shape, strict=False) if length != 1]
    if len(set(long)) < len(long) or 0 in array.shape[:-rank] or (long and part is None):
        raise VolumeError(
            f"the axes ({', '.join(space.names)}) have shape {array.shape}, but emseg reads one channel at one time: "
            f"copy the part you want into a volume where ({', '.join(extra)}) have length 1"
        )
    front = front_of(extra, array.shape[:-rank], stored.labels, part or Part())
    if (dtype := array.dtype.newbyteorder("=").name) not in dtypes:
        raise VolumeError(f"the volume is {dtype}, but emseg reads {', '.join(dtypes)}: convert it first")
    chunk = _chunks(array)
    flat = 3 - rank
    kept = space.last(rank)
    spec = VolumeSpec(
        shape=triple((1,) * flat + array.shape[-rank:]),
        dtype=dtype,
        chunk=triple((1,) * flat + chunk[-rank:]),
        rank=rank,
        scale=_three((1.0,) * flat + kept.scale),
        translation=_three((0.0,) * flat + kept.translation),
        units=_three((None,) * flat + kept.units),
        channel=front.channel,
        timepoint=front.timepoint,
        together=math.prod(map(min, chunk[:-rank], array.shape[:-rank])),
    )
    return spec, front.entries


def _chunks(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Shape of what is decompressed at once: of the chunks inside the shards, if it is sharded."""
    try:
        return tuple(int(length) for length in array.chunks)
    except Exception as error:  # grids of chunks other than regular ones have no such shape
        raise VolumeError(f"the chunks have no common shape ({reason(error)}): write the volume with regular chunks") from error


def _three(values: tuple[T, ...]) -> tuple[T, T, T]:
    z, y, x = values
    return z, y, x
