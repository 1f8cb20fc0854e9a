"""Writing a volume slab by slab: an OME-Zarr 0.5 image with one level."""

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

from emseg.box import AXES, Box, Triple
from emseg.errors import OutputError, VolumeError
from emseg.specs.volume import VolumeSpec
from emseg.store.arrays import Shards, create_array, create_group, open_shards
from emseg.store.files import LocalFiles
from emseg.store.nodes import read_node
from emseg.store.ome import VERSION, Space, multiscales
from emseg.store.staging import output_path, staged

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
    """A volume that is being written, in slabs as deep as a shard, or shard by shard."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def write(self, start: int, slab: NDArray[Any]) -> None:
        """Stores slices ``(z, y, x)`` from slice `start` on; only the last slab may be less deep than a shard."""
        depth, height, width = slab.shape
        self.write_box(Box((start, 0, 0), (start + depth, height, width)), slab)

    def has(self, box: Box) -> bool:
        """Whether all shards of `box` are stored already; one of nothing but 0 never is."""
        return all(self._shards.has(index) for index in self._shards.indices(box))

    def write_box(self, box: Box, voxels: NDArray[Any]) -> None:
        """Stores ``(z, y, x)``; `box` must be whole shards."""
        self._shards.write(box, voxels)


@contextmanager
def new_volume(
    path: str | Path, spec: VolumeSpec, shard: Triple, *, missing: Sequence[int] = (), replace: bool = False, source: str = ""
) -> Iterator[SlabWriter]:
    """A new volume to be filled by slabs; it gets its name when the ``with`` ends, and is gone if that fails.

    Whoever was killed or stopped on the way is followed by the next who makes the same volume of the same `source`, any text
    that tells it from others: what is stored is there still.

    With `replace` it takes the place of a volume that was made here before. z of each slice that is `missing` is recorded in
    the attributes.

    Raises
    ------
    OutputError
        If `path` exists and is not to be replaced or not a volume that was made here, or it cannot be written.
    """
    target = output_path(path)
    if replace and os.path.lexists(target):
        _refuse_foreign(target)
    facts = json.dumps([target.name, spec.to_json(), shard, list(missing), source])
    key = hashlib.sha256(facts.encode()).hexdigest()[:12] if source else ""
    with staged(target, replace=replace, key=key) as work:
        if not (work / "0" / "zarr.json").exists():
            _begin(work, spec, shard, missing)
        shards = open_shards(LocalFiles(work), "0", 0)
        shards.stored(tidy=True)
        yield SlabWriter(shards)


def _begin(work: Path, spec: VolumeSpec, shard: Triple, missing: Sequence[int]) -> None:
    """Make an empty volume in a folder, in the place of one that was begun no further."""
    for left in work.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    space = Space(AXES, spec.scale, spec.translation, spec.units)
    image = {"version": VERSION, "multiscales": multiscales([("0", space)], "volume")}
    files = LocalFiles(work)
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
