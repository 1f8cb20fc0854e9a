"""What a run reads and decompresses: how often a chunk, according to which blocks follow one another.

A block reads whole chunks, and a context around its own voxels, so neighbours read many of the same chunks. A worker
keeps those it used last. Hence blocks are done in *strands*: a few of them along z and y, then the same ones a step
further along x, and so on. Its chunks stay in the cache from one step to the next, so it decompresses each of them once::

      y   +---+---+---+---+
          | 1 | 3 | 5 | 7 |      a strand of two blocks along y
          +---+---+---+---+
          | 0 | 2 | 4 | 6 |
          +---+---+---+---+  x

The larger its cross-section, the fewer chunks does a strand share with others. Thin blocks of one layer of chunks belong
together in any case: where the cache is too small for more, they share the chunks of one step.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.specs.network import NetworkSpec
from emseg.specs.volume import VolumeSpec

CACHE_BYTES = 2**28
"""Most bytes of decompressed chunks that a worker process keeps: 1024 of 64 cubed voxels and a byte each."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Blocks along one axis in groups, each of which decompresses its chunks once."""

    length: int
    """Voxels from where a group may start to where the next one may."""
    decoded: int
    """Voxels along the axis that all groups together decompress."""
    widest: int
    """Most that one of them does."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What blocks read along one axis, in voxels of whole chunks."""

    alone: int
    """If each block decompresses all that it reads."""
    whole: int
    """If no chunk is decompressed twice."""
    single: int
    """Most that one block reads."""
    unshared: int
    """Most that, of two neighbours, the one that reads less does not share with the other."""
    groupings: tuple[Grouping, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a run decompresses, and in which strands."""

    section: tuple[int, int]
    """Length (z, y) in voxels of a strand's cross-section; where nothing can be shared, that of a block."""
    voxels: int
    """Voxels that one worker decompresses at most, those of a chunk as often as it does."""
    alone: int
    """Voxels that it would decompress if it kept nothing."""


def reading_of(volume: VolumeSpec, region: Box, model: NetworkSpec, unit: Triple, tile: Triple) -> Reading:
    """What is read in those strands that share most, for write units and tiles of these shapes (z, y, x) in voxels."""
    z, y, x = (_axis(volume, region, model, axis, unit[axis], tile[axis]) for axis in range(3))
    room = CACHE_BYTES // volume.itemsize
    alone = z.alone * y.alone * x.alone
    best = alone, unit[0], unit[1]
    for deep, high in itertools.product(z.groupings, y.groupings):
        if _between(deep, high, y, x) <= room:
            best = min(best, (deep.decoded * high.decoded * x.whole, deep.length, high.length))
        elif deep.widest * high.widest * x.single <= room:  # what a step reads is kept, but not until the next one
            best = min(best, (deep.decoded * high.decoded * x.alone, deep.length, high.length))
    return Reading(best[1:], best[0], alone)


def _between(deep: Grouping, high: Grouping, y: Axis, x: Axis) -> int:
    """Most voxels that a strand reads from one use of a chunk to the next: then a cache of so many still has it.

    At worst, a chunk was last used in one step along x, and is used again in the next. Meanwhile the blocks after it are
    done in the one, and those before it in the other: the cross-section once, and twice where the chunk is.
    """
    return deep.widest * (high.widest * x.single + min(high.widest, y.single) * x.unshared)


def groups(volume: VolumeSpec, region: Box, axis: int, unit: int, length: int) -> NDArray[np.int64]:
    """For each group along an axis, its first write unit, counted from the region's start.

    Where chunks are longer than units, groups end where chunks do.
    """
    start = np.arange(region.start[axis], region.stop[axis], unit)
    return np.flatnonzero(np.diff((start - _origin(volume, region, axis, unit)) // length, prepend=-1))


@lru_cache(maxsize=512)
def _axis(volume: VolumeSpec, region: Box, model: NetworkSpec, axis: int, unit: int, tile: int) -> Axis:
    first, end = _spans(volume, region, model, axis, unit, tile)
    width, whole = end - first, int(end.max() - first.min())
    single, unshared = int(width.max()), 0
    if (np.diff(first) < 0).any() or (np.diff(end) < 0).any():  # mirrored at the far end, a block reads back beyond others
        single = whole
    elif len(first) > 1:
        unshared = int((end[1:] - first[:-1] - np.maximum(width[1:], width[:-1])).max())
    groupings = []
    for length in _lengths(volume, region, axis, unit):
        places = groups(volume, region, axis, unit, length)
        widths = np.maximum.reduceat(end, places) - np.minimum.reduceat(first, places)
        groupings.append(Grouping(length, int(widths.sum()), int(widths.max())))
    return Axis(int(width.sum()), whole, single, unshared, tuple(groupings))


def _lengths(volume: VolumeSpec, region: Box, axis: int, unit: int) -> list[int]:
    """Lengths of groups to try: whole chunks or units, about half as many more each time, shared out evenly."""
    base = max(unit, volume.chunk[axis])
    parts = -(-(region.stop[axis] - _origin(volume, region, axis, unit)) // base)
    tried = {math.ceil(2 ** (power / 2)) for power in range(2 * parts.bit_length() + 1)}
    return sorted({base * -(-parts // -(-parts // size)) for size in tried} | {unit})


def _origin(volume: VolumeSpec, region: Box, axis: int, unit: int) -> int:
    return 0 if volume.chunk[axis] > unit else region.start[axis]


def _spans(
    volume: VolumeSpec, region: Box, model: NetworkSpec, axis: int, unit: int, tile: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the chunks that each block reads along an axis start, and where they end.

    The closed form of `emseg.grid.tiles.hull_of` and `emseg.grid.mirror.reflect` for all blocks at once.
    """
    chunk, length = volume.chunk[axis], volume.shape[axis]
    lattice, context = model.lattice[axis], model.context[axis]
    step = (tile - 2 * context) // lattice * lattice
    start = np.arange(region.start[axis], region.stop[axis], unit)
    stop = np.minimum(start + unit, region.stop[axis])
    origin = start // lattice * lattice
    tiles = -(-(stop - origin) // step)
    lowest = origin - context
    highest = lowest + (tiles - 1) * step + tile - 1
    mirrored_low = np.where(lowest < 0, -lowest, 0)
    mirrored_high = np.where(highest >= length, 2 * (length - 1) - highest, length)
    first = np.maximum(np.minimum(np.maximum(lowest, 0), mirrored_high), 0)
    last = np.minimum(np.maximum(np.minimum(highest, length - 1), mirrored_low), length - 1)
    return first // chunk * chunk, np.minimum((last // chunk + 1) * chunk, length)
