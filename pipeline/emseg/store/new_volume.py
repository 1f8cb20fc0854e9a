"""Writing a volume slab by slab: an OME-Zarr 0.5 image with one level.

.emseg-KEY         it is made here, beside its place, and renamed when it is complete
.emseg-KEY/emseg   who is making it: a lease, as outputs have; removed before that
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

from emseg.box import AXES, Box, Triple, triple
from emseg.errors import OrphanError, OutputError, VolumeError
from emseg.grid.blocks import Blocks
from emseg.specs.volume import VolumeSpec
from emseg.store.arrays import Shards, create_array, create_group, open_shards
from emseg.store.blame import reason
from emseg.store.files import Files
from emseg.store.lease import Lease, Token
from emseg.store.level import above
from emseg.store.making import clear, leased, written
from emseg.store.nodes import read_node
from emseg.store.ome import VERSION, Space, multiscales
from emseg.store.records import FOLDER
from emseg.store.staging import output_path, publish, refuse_taken, restore, staging_folder

SLAB_BYTES = 2**28
"""Most bytes of slices held at once."""

SIDE = 64
"""Edge of a chunk in voxels, where slices are small enough to hold that many at once."""

CHUNKS_PER_SHARD = 4
"""Chunks along each edge of a shard."""

MARK = {"volume": 1}
"""Attribute ``emseg`` of the volumes written here: what may be overwritten."""
MISSING = "missing_slices"
"""Key beside it: z of each slice that was missing, and is 0; not there if none was."""


def slab_layout(shape: Triple, dtype: str) -> tuple[Triple, Triple]:
    """Shapes (z, y, x) in voxels of shards, and of the chunks inside, for a volume that comes slice by slice.

    A slab is as deep as a shard and is held in memory. Chunks have 64^3 voxels; where a slab of that depth is more than
    `SLAB_BYTES`, they are flatter and wider.

    Examples
    --------
    >>> slab_layout((1000, 1024, 1024), "uint8")
    ((256, 256, 256), (64, 64, 64))
    >>> slab_layout((1000, 8192, 8192), "uint8")
    ((4, 1024, 1024), (4, 256, 256))
    """
    slices = SLAB_BYTES // (shape[1] * shape[2] * np.dtype(dtype).itemsize)
    depth = min(_power_of_two(max(slices, 1)), CHUNKS_PER_SHARD * SIDE)
    while depth >= 2 * shape[0]:
        depth //= 2
    thickness = min(depth, SIDE)
    side = SIDE * _power_of_two(math.isqrt(SIDE // thickness))
    return (depth, CHUNKS_PER_SHARD * side, CHUNKS_PER_SHARD * side), (thickness, side, side)


def brick_layout(depth: int, dtype: str) -> tuple[Triple, Triple]:
    """Shapes (z, y, x) in voxels of shards, and of the chunks inside, for a volume of that depth that comes shard by shard.

    Examples
    --------
    >>> brick_layout(1000, "float32")
    ((256, 256, 256), (64, 64, 64))
    """
    return slab_layout((depth, CHUNKS_PER_SHARD * SIDE, CHUNKS_PER_SHARD * SIDE), dtype)


def _power_of_two(number: int) -> int:
    """The largest power of two that is not above a positive number."""
    return 1 << number.bit_length() - 1


class SlabWriter:
    """A volume that is being written, in slabs as deep as a shard, or shard by shard; by several processes at once."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def done(self, blocks: Blocks) -> NDArray[np.bool_]:
        """Whether all shards of each block are stored already, ``(block,) bool``; one of nothing but 0 never is.

        What killed writers have left half-written is removed, so nobody may be writing.
        """
        parts = triple(-(-part // shard) for part, shard in zip(blocks.unit, self._shards.unit, strict=True))
        return above(self._shards.stored(tidy=True), parts).ravel()

    def write_box(self, box: Box, voxels: NDArray[Any], *, threads: bool = True) -> None:
        """Stores ``(z, y, x)``; `box` must be whole shards, which are compressed in threads, or else one after another."""
        if threads:
            self._shards.write(box, voxels)
            return
        for shard in Blocks(box, self._shards.unit):
            self._shards.write(shard.write, voxels[shard.write.relative_to(box.start).slices()])


def open_slabs(files: Files) -> SlabWriter:
    """What writes to a volume that is being made, by its files.

    Raises
    ------
    VolumeError
        If there is none.
    """
    try:
        return SlabWriter(open_shards(files, "0", 0))
    except Exception as error:  # metadata can be wrong in any way, and Zarr then raises almost any type
        raise VolumeError(
            f"the volume being made in {files.place} is gone or damaged ({reason(error)}): begin again"
        ) from error


class NewVolume:
    """A volume that is being made in a folder of its own, by one process and those that this tells to."""

    def __init__(self, lease: Lease, slabs: SlabWriter, kept: bool) -> None:
        self.lease = lease
        self.slabs = slabs
        self.kept = kept
        """Whether what is stored stays for others to go on with, if this does not come to its end."""

    @property
    def token(self) -> Token:
        """The right to write to it."""
        return self.lease.token

    def discard(self) -> None:
        """Keep nothing of it: what was being made cannot be."""
        self.kept = False


@contextmanager
def new_volume(
    path: str | Path, spec: VolumeSpec, shard: Triple, *, missing: Sequence[int] = (), replace: bool = False, source: str = ""
) -> Iterator[NewVolume]:
    """A new volume to be filled by slabs; it gets its name when the ``with`` ends.

    If that fails, and in any case after `NewVolume.discard`, it is gone. Only of one with a `source`, any text that tells it
    from others, stays what is stored: whoever makes the same volume of the same source next goes on with that.

    With `replace` it takes the place of a volume that was made here before. z of each slice that is `missing` is recorded in
    the attributes.

    Raises
    ------
    OutputError
        If `path` exists and is not to be replaced or not a volume that was made here, it cannot be written, or another process
        is making the same one.
    OrphanError
        If another process has taken over.
    """
    target = output_path(path)
    if not replace:
        refuse_taken(target)
    elif os.path.lexists(target):
        _refuse_foreign(target)
    facts = json.dumps([target.name, spec.to_json(), shard, list(missing), source])
    work = staging_folder(target, hashlib.sha256(facts.encode()).hexdigest()[:12] if source else "")
    aside = work.with_name(f"{work.name}-old")
    lease = leased(work, target)
    volume: NewVolume | None = None
    published = kept = False
    try:
        with lease.held():
            with written(target):
                restore(aside, target)
                if not (work / "0" / "zarr.json").exists():
                    clear(work)  # one that was begun no further
                    _begin(lease.token.files, spec, shard, missing)
                volume = NewVolume(lease, open_slabs(lease.token.files), bool(source))
            yield volume
            volume.token.check()
            volume.slabs.done(Blocks(spec.box, shard))  # workers that died have left files half-written
            volume.discard()  # if its name is taken by now, it has none
        with written(target):
            shutil.rmtree(work / FOLDER)
            publish(work, target, aside, replace=replace)
        published = True
    finally:
        try:
            kept = published or _goes_on(volume, Blocks(spec.box, shard))
        finally:  # also where that cannot be told
            if not kept:
                shutil.rmtree(work, ignore_errors=True)


def _goes_on(volume: NewVolume | None, shards: Blocks) -> bool:
    """Whether there is something to go on with, or somebody does already."""
    if volume is None:
        return False
    try:
        volume.token.check()
    except OrphanError:
        return True
    return volume.kept and bool(volume.slabs.done(shards).any())


def _begin(files: Files, spec: VolumeSpec, shard: Triple, missing: Sequence[int]) -> None:
    """Make an empty volume."""
    space = Space(AXES, spec.scale, spec.translation, spec.units)
    image = {"version": VERSION, "multiscales": multiscales([("0", space)], "volume")}
    create_group(files, "", {"ome": image, "emseg": MARK | ({MISSING: list(missing)} if missing else {})})
    create_array(files, "0", shape=spec.shape, shard=shard, chunk=spec.chunk, dtype=spec.dtype, fill_value=0, axes=AXES)


def _refuse_foreign(path: Path) -> None:
    """Only what was surely written here, and nothing that somebody has put inside, may be replaced."""
    try:
        node = read_node(path)
        ours = _marked(node.attributes.get("emseg")) and {entry.name for entry in path.iterdir()} == {"zarr.json", "0"}
    except (VolumeError, OSError):
        ours = False
    if path.is_symlink() or not ours:
        raise OutputError(f"{path} is not a volume that emseg has ingested and nothing else: choose another name, or remove it")


def _marked(own: Any) -> bool:
    """Whether attributes ``emseg`` are those of a volume that was written here."""
    return isinstance(own, dict) and {key: value for key, value in own.items() if key != MISSING} == MARK
