"""Write a volume slab by slab, as an OME-Zarr 0.5 image with one level.

.emseg-KEY         folder next to the target, where the volume is written; renamed when it is complete
.emseg-KEY/emseg   lease of the writer, as outputs have; removed before renaming
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import AXES, Box, Triple, triple
from emseg_core.errors import OrphanError, OutputError, VolumeError
from emseg_core.grid.blocks import Blocks
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files.atomic_folder import clear_leftovers, lease_folder
from emseg_core.store.files.atomic_write import (
    output_path,
    publish,
    refuse_existing,
    restore,
    staging_folder,
    translate_oserror,
)
from emseg_core.store.files.faults import translate_damage
from emseg_core.store.files.files import Files
from emseg_core.store.files.lease import Lease, Token
from emseg_core.store.files.records import RECORDS_FOLDER
from emseg_core.store.outputs.level import complete_parents
from emseg_core.store.zarrs.arrays import Shards, create_array, create_group, open_shards
from emseg_core.store.zarrs.nodes import read_node
from emseg_core.store.zarrs.ome import VERSION, Space, multiscales

MAX_SLAB_BYTES = 2**28
"""Most bytes of slices in memory at once."""

CHUNK_SIDE_VOXELS = 64
"""Edge of a chunk in voxels, if slices are small enough to hold that many in memory."""

CHUNKS_PER_SHARD = 4
"""Chunks along each edge of a shard."""

VOLUME_MARK = {"volume": 1}
"""Attribute ``emseg`` of the volumes written here: these may be overwritten."""
MISSING_KEY = "missing_slices"
"""Key in that attribute: z of each slice that was missing, and is 0; absent if none was."""


def slab_layout(shape: Triple, dtype: str) -> tuple[Triple, Triple]:
    """Choose shards and chunks for a volume that arrives slice by slice.

    A slab is as deep as a shard and is held in memory. Chunks have 64^3 voxels, or are flatter and wider if a slab of that
    depth exceeds `MAX_SLAB_BYTES`.

    Parameters
    ----------
    shape
        Shape (z, y, x) of the volume in voxels.
    dtype
        Name of the NumPy dtype.

    Returns
    -------
    tuple
        Shapes (z, y, x) in voxels of the shards, and of the chunks inside.

    Examples
    --------
    >>> slab_layout((1000, 1024, 1024), "uint8")
    ((256, 256, 256), (64, 64, 64))
    >>> slab_layout((1000, 8192, 8192), "uint8")
    ((4, 1024, 1024), (4, 256, 256))
    """
    slices = MAX_SLAB_BYTES // (shape[1] * shape[2] * np.dtype(dtype).itemsize)
    depth = min(_power_of_two(max(slices, 1)), CHUNKS_PER_SHARD * CHUNK_SIDE_VOXELS)
    while depth >= 2 * shape[0]:
        depth //= 2
    thickness = min(depth, CHUNK_SIDE_VOXELS)
    side = CHUNK_SIDE_VOXELS * _power_of_two(math.isqrt(CHUNK_SIDE_VOXELS // thickness))
    return (depth, CHUNKS_PER_SHARD * side, CHUNKS_PER_SHARD * side), (thickness, side, side)


def brick_layout(depth: int, dtype: str) -> tuple[Triple, Triple]:
    """Choose shards and chunks for a volume of `depth` slices that arrives shard by shard.

    Parameters
    ----------
    depth
        Number of slices.
    dtype
        NumPy name of the voxel type.

    Returns
    -------
    tuple
        Shapes (z, y, x) in voxels of the shards, and of the chunks inside.

    Examples
    --------
    >>> brick_layout(1000, "float32")
    ((256, 256, 256), (64, 64, 64))
    """
    return slab_layout((depth, CHUNKS_PER_SHARD * CHUNK_SIDE_VOXELS, CHUNKS_PER_SHARD * CHUNK_SIDE_VOXELS), dtype)


def _power_of_two(number: int) -> int:
    """Return the largest power of two that does not exceed a positive number."""
    return 1 << number.bit_length() - 1


class SlabWriter:
    """Writer of a volume, in slabs as deep as a shard or shard by shard, by several processes at once."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def done(self, blocks: Blocks) -> NDArray[np.bool_]:
        """Find the blocks whose shards are all stored; a block that contains only 0 never is.

        Partial files that killed writers have left are removed, so no writer may be active.

        Parameters
        ----------
        blocks
            Blocks of the volume, of one shard each.

        Returns
        -------
        ndarray
            ``(block,) bool``.
        """
        parts = triple(-(-part // shard) for part, shard in zip(blocks.unit, self._shards.unit, strict=True))
        return complete_parents(self._shards.stored(tidy=True), parts).ravel()

    def write_box(self, box: Box, voxels: NDArray[Any], *, threads: bool = True) -> None:
        """Store the voxels of a box.

        Parameters
        ----------
        box
            Whole shards.
        voxels
            ``(z, y, x)``.
        threads
            Whether to compress shards in threads, or one after another.
        """
        if threads:
            self._shards.write(box, voxels)
            return
        for shard in Blocks(box, self._shards.unit):
            self._shards.write(shard.write, voxels[shard.write.relative_to(box.start).slices()])


def open_slabs(files: Files) -> SlabWriter:
    """Open a volume that is being written, to write to it.

    Parameters
    ----------
    files
        Files of the unfinished volume.

    Returns
    -------
    SlabWriter
        Writer of the volume.

    Raises
    ------
    VolumeError
        If there is no such volume.
    """
    with translate_damage(f"the unfinished volume in {files.place} is missing or damaged", "start again"):
        return SlabWriter(open_shards(files, "0", 0))


class NewVolume:
    """A volume that is being written in a folder of its own, by one process and its workers."""

    def __init__(self, lease: Lease, slabs: SlabWriter, kept: bool) -> None:
        self.lease = lease
        self.slabs = slabs
        self.kept = kept
        """Whether an interrupted volume is kept, to be resumed later."""

    @property
    def token(self) -> Token:
        """Token of the lease, which permits writing."""
        return self.lease.token

    def discard(self) -> None:
        """Remove the volume at the end instead of keeping it, as it cannot be completed."""
        self.kept = False


@contextmanager
def new_volume(
    path: str | Path, spec: VolumeSpec, shard: Triple, *, missing: Sequence[int] = (), replace: bool = False, source: str = ""
) -> Iterator[NewVolume]:
    """Create a volume to be filled by slabs; it gets its name when the ``with`` block ends.

    If the block fails, and in any case after `NewVolume.discard`, the volume is removed. Stored slabs are kept only with a
    `source`: the next writer of the same volume from the same source resumes it.

    Parameters
    ----------
    path
        Path of the volume.
    spec
        Shape, dtype, chunks and voxel size.
    shard
        Shape (z, y, x) of the shards in voxels.
    missing
        z of each missing slice, to be recorded in the attributes.
    replace
        Whether to replace an earlier volume that was written here.
    source
        Any text that identifies the source; empty if the volume cannot be resumed.

    Yields
    ------
    NewVolume
        The unfinished volume.

    Raises
    ------
    OutputError
        If `path` exists and is not to be replaced, or is not a volume that was written here, if it cannot be written, or
        another process is writing the same volume.
    OrphanError
        If another process has taken over.
    """
    target = output_path(path)
    if not replace:
        refuse_existing(target)
    elif os.path.lexists(target):
        _refuse_foreign(target)
    facts = json.dumps([target.name, spec.to_json(), shard, list(missing), source])
    work = staging_folder(target, hashlib.sha256(facts.encode()).hexdigest()[:12] if source else "")
    aside = work.with_name(f"{work.name}-old")
    lease = lease_folder(work, target)
    volume: NewVolume | None = None
    published = kept = False
    try:
        with lease.held():
            with translate_oserror(target):
                restore(aside, target)
                if not (work / "0" / "zarr.json").exists():
                    clear_leftovers(work)  # its creation was interrupted
                    _create_empty(lease.token.files, spec, shard, missing)
                volume = NewVolume(lease, open_slabs(lease.token.files), bool(source))
            yield volume
            volume.token.check()
            volume.slabs.done(Blocks(spec.box, shard))  # killed workers leave partial files
            volume.discard()  # if the name is taken by now, the volume is lost
        with translate_oserror(target):
            shutil.rmtree(work / RECORDS_FOLDER)
            publish(work, target, aside, replace=replace)
        published = True
    finally:
        try:
            kept = published or _is_resumable(volume, Blocks(spec.box, shard))
        finally:  # also if that check fails
            if not kept:
                shutil.rmtree(work, ignore_errors=True)


def _is_resumable(volume: NewVolume | None, shards: Blocks) -> bool:
    """Check whether there is something to resume, or another process is already resuming it."""
    if volume is None:
        return False
    try:
        volume.token.check()
    except OrphanError:
        return True
    return volume.kept and bool(volume.slabs.done(shards).any())


def _create_empty(files: Files, spec: VolumeSpec, shard: Triple, missing: Sequence[int]) -> None:
    """Create an empty volume."""
    space = Space(AXES, spec.scale, spec.translation, spec.units)
    image = {"version": VERSION, "multiscales": multiscales([("0", space)], "volume")}
    create_group(files, "", {"ome": image, "emseg": VOLUME_MARK | ({MISSING_KEY: list(missing)} if missing else {})})
    create_array(files, "0", shape=spec.shape, shard=shard, chunk=spec.chunk, dtype=spec.dtype, fill_value=0, axes=AXES)


def _refuse_foreign(path: Path) -> None:
    """Raise an `OutputError` unless a folder was written here and contains no other files."""
    try:
        node = read_node(path)
        ours = _is_marked(node.attributes.get("emseg")) and {entry.name for entry in path.iterdir()} == {"zarr.json", "0"}
    except (VolumeError, OSError):
        ours = False
    if path.is_symlink() or not ours:
        raise OutputError(
            f"{path} is not a volume that emseg has ingested, or contains other files: choose another name, or remove it"
        )


def _is_marked(own: Any) -> bool:
    """Check whether an attribute ``emseg`` is that of a volume written here."""
    return isinstance(own, dict) and {key: value for key, value in own.items() if key != MISSING_KEY} == VOLUME_MARK
