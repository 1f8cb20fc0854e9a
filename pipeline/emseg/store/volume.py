"""Reading an input volume: Zarr v2 or v3, sharded or not, a plain array or an OME-Zarr image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Any, Literal, TypeVar, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from emseg.box import AXES, Box, triple
from emseg.errors import BlockError, VolumeError
from emseg.specs.volume import DTYPES, VolumeSpec
from emseg.store.at_once import read_at_once
from emseg.store.blame import StoreError, fault_of, reason
from emseg.store.chunk_cache import ChunkCache
from emseg.store.files import Files
from emseg.store.nodes import METADATA_OF, Node, open_array, read_node
from emseg.store.ome import Space, level, levels, multiscales_of
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


class ZarrVolume:
    """An open volume; fulfils `emseg.ports.VolumeReader`.

    Threads may read at the same time, and share the chunks that are kept. Pickled it is its place, so another process
    opens it anew.
    """

    def __init__(
        self, path: Place, array: zarr.Array[Any], spec: VolumeSpec, cache_bytes: int, dtypes: tuple[str, ...] = DTYPES
    ) -> None:
        self.path = path
        self._array = array
        self._spec = spec
        self._cache_bytes = cache_bytes
        self._dtypes = dtypes
        self._chunks = ChunkCache(spec, partial(_load, path, array, spec), cache_bytes)

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
        try:
            return self._chunks.read(box)
        except BlockError:
            raise
        except Exception as error:  # a damaged chunk may raise anything, according to the codec that meets it
            fault = fault_of(error)
            remedy = "restore them" if fault == "block" else "check the disk or the network"
            raise BlockError(f"the voxels {box} of {self.path} cannot be read ({reason(error)}): {remedy}", fault) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return open_volume, (self.path, self._cache_bytes, self._dtypes)

    def __repr__(self) -> str:
        return f"ZarrVolume({str(self.path)!r})"


def open_volume(path: str | Path | Address, cache_bytes: int = 0, dtypes: tuple[str, ...] = DTYPES) -> ZarrVolume:
    """The volume at a path or an address: a Zarr array, or level 0 of an OME-Zarr image.

    Axes are (z, y, x) or (y, x); axes in front of these that hold one entry each, such as time and channel of an
    OME-Zarr image, are left out. The voxel size is that of the OME metadata, also where the array of a level is named by
    itself; for a plain array that of its own attributes ``voxel_size`` or ``resolution``, ``offset`` and ``units``, and
    else 1 with no unit.

    Parameters
    ----------
    cache_bytes
        Most bytes of chunks that are kept, uncompressed, for those who read where others have read before.
    dtypes
        Names of the NumPy types that will do.

    Raises
    ------
    VolumeError
        If there is no such volume, or one that emseg cannot read; the message says why and what helps.
    """
    node = read_node(path)
    array, space = array_and_space(node)
    try:
        return ZarrVolume(node.path, array, _spec(array, space, dtypes), cache_bytes, dtypes)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error


def array_and_space(node: Node) -> tuple[zarr.Array[Any], Space]:
    """The array of a node, of an image its finest level, and where the voxels lie.

    Raises
    ------
    VolumeError
        If there is no such array, or its metadata are wrong.
    """
    return _open_image(node) if node.kind == "group" else _open_plain(node)


def await_volume(path: str | Path | Address, cache_bytes: int = 0) -> ZarrVolume:
    """The volume as `open_volume` opens it, once its remote store answers, which may be away for a minute.

    Raises
    ------
    VolumeError
        If the store stays away, or the volume cannot be opened.
    """
    for pause in AWAY:
        try:
            return open_volume(path, cache_bytes)
        except VolumeError as error:
            if not isinstance(error.__cause__, StoreError) or error.__cause__.lasting:
                raise
        sleep(pause)
    return open_volume(path, cache_bytes)


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


def _load(path: Place, array: zarr.Array[Any], spec: VolumeSpec, box: Box) -> NDArray[Any]:
    """The voxels of a box, ``(z, y, x)``, from the store."""

    def read(part: Box) -> NDArray[Any]:
        selection = (0,) * (array.ndim - spec.rank) + part.slices()[-spec.rank :]
        return np.asarray(array[selection]).reshape(part.shape)

    files = cast("Files", array.store)
    missed = files.missed
    if isinstance(files, RemoteFiles) and array.shards is not None:
        shard = triple((1,) * (3 - spec.rank) + array.shards[-spec.rank :])
        voxels = read_at_once(read, box, spec.chunk, shard, spec.dtype)
    else:
        voxels = read(box)
    # Zarr takes what is missing for what was never written
    if files.missed > missed and files.read(METADATA_OF[array.metadata.zarr_format][0]) is None:
        raise BlockError(f"the volume {path} is not there any more: mount or restore it", "store")
    return np.ascontiguousarray(voxels, dtype=spec.dtype)


def _open_plain(node: Node) -> tuple[zarr.Array[Any], Space]:
    array = open_array(node)
    if (space := _space_of_level(node)) is not None and len(space.names) == array.ndim:
        return array, space
    try:
        return array, plain_space(node.attributes, array.ndim, _dimension_names(array))
    except ValueError as error:
        raise VolumeError(f"the attributes of {node.path} are wrong, {error}: repair or remove them") from error


def _space_of_level(array: Node) -> Space | None:
    """Where the voxels of an array lie that is a level of an OME-Zarr image; None if it is none, or none that is sound."""
    parents: Sequence[Place] = array.path.parents
    for group in parents[:DEEPEST]:
        try:
            found = levels(multiscales_of(read_node(group, METADATA_OF[array.format][-1:]).attributes))
            if space := next((space for inside, space in found if group / inside == array.path), None):
                return space
        except (VolumeError, ValueError) as error:
            if isinstance(error.__cause__, StoreError) and not error.__cause__.lasting:
                raise  # without its space the volume would be another one
    return None


def _open_image(group: Node) -> tuple[zarr.Array[Any], Space]:
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
    return array, space


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


def _spec(array: zarr.Array[Any], space: Space, dtypes: tuple[str, ...]) -> VolumeSpec:
    """The spec of an array whose axes are known."""
    rank: Literal[2, 3] = 3 if "z" in space.names else 2
    extra, spatial = space.names[:-rank], space.names[-rank:]
    if spatial != AXES[-rank:] or set(extra) & set(AXES):
        axes = f"({', '.join(space.names)})" if any(space.names) else f"{array.ndim} without names"
        raise VolumeError(f"the axes are {axes}, but emseg reads (z, y, x) or (y, x): transpose the array, or name its axes")
    if any(length != 1 for length in array.shape[:-rank]):
        raise VolumeError(
            f"the axes ({', '.join(space.names)}) have shape {array.shape}, but emseg reads one channel at one time: "
            f"copy the part you want into a volume where ({', '.join(extra)}) have length 1"
        )
    if (dtype := array.dtype.newbyteorder("=").name) not in dtypes:
        raise VolumeError(f"the volume is {dtype}, but emseg reads {', '.join(dtypes)}: convert it first")
    chunk = _chunks(array)[-rank:]
    front = 3 - rank
    kept = space.last(rank)
    return VolumeSpec(
        shape=triple((1,) * front + array.shape[-rank:]),
        dtype=dtype,
        chunk=triple((1,) * front + chunk),
        rank=rank,
        scale=_three((1.0,) * front + kept.scale),
        translation=_three((0.0,) * front + kept.translation),
        units=_three((None,) * front + kept.units),
    )


def _chunks(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Shape of what is decompressed at once: of the chunks inside the shards, if it is sharded."""
    try:
        return tuple(int(length) for length in array.chunks)
    except Exception as error:  # grids of chunks other than regular ones have no such shape
        raise VolumeError(f"the chunks have no common shape ({reason(error)}): write the volume with regular chunks") from error


def _three(values: tuple[T, ...]) -> tuple[T, T, T]:
    z, y, x = values
    return z, y, x
