"""Estimate how much a run reads and decompresses, depending on the order of blocks.

A block reads whole chunks and a context around its own voxels, so neighbours read many of the same chunks. A worker caches
the chunks that it used last. Therefore blocks are processed in *sequences*: a few blocks along z and y, then the same ones a
step further along x, and so on. Chunks stay in the cache from one step to the next, so each is decompressed only once::

      y   +---+---+---+---+
          | 1 | 3 | 5 | 7 |      a sequence with a cross-section of two blocks along y
          +---+---+---+---+
          | 0 | 2 | 4 | 6 |
          +---+---+---+---+  x

The larger the cross-section, the fewer chunks a sequence shares with others. Thin blocks within one layer of chunks belong
together in any case: if the cache is too small for more, they share the chunks of a single step.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple
from emseg_core.specs.network import NetworkSpec
from emseg_core.specs.volume import VolumeSpec

CACHE_BYTES = 2**28
"""Largest size of a worker process's cache of decompressed chunks: 1024 chunks of 64 cubed voxels of one byte."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Blocks along one axis in groups, each of which decompresses its chunks once."""

    length: int
    """Distance between the earliest starts of successive groups, in voxels."""
    decoded: int
    """Voxels along the axis that all groups together decompress."""
    widest: int
    """Most voxels along the axis that one group decompresses."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Extent of what blocks read along one axis, in voxels of whole chunks."""

    alone: int
    """Sum over all blocks, if each decompresses all that it reads."""
    whole: int
    """Total if no chunk is decompressed twice."""
    single: int
    """Most that one block reads."""
    unshared: int
    """Largest part of a block's input that it does not share with a neighbour, for the one of the two that reads less."""
    groupings: tuple[Grouping, ...]
    """Groupings to choose from."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The amount that a run decompresses, and the cross-section of its sequences."""

    section: tuple[int, int]
    """Length (z, y) of a sequence's cross-section, in voxels; that of a block if nothing can be shared."""
    voxels: int
    """Voxels that a single worker decompresses at most, counting a chunk each time."""
    alone: int
    """Voxels that it would decompress without a cache."""


def reading_of(volume: VolumeSpec, region: Box, model: NetworkSpec, unit: Triple, tile: Triple) -> Reading:
    """Choose the sequences that share most, and predict what they read.

    Parameters
    ----------
    volume
        The volume.
    region
        The region to segment.
    model
        The network.
    unit
        Shape (z, y, x) of a write unit, in voxels.
    tile
        Shape (z, y, x) of a network input, in voxels.

    Returns
    -------
    Reading
        Cross-section of the sequences, and voxels to decompress.
    """
    z, y, x = (_axis(volume, region, model, axis, unit[axis], tile[axis]) for axis in range(3))
    room = CACHE_BYTES // volume.itemsize
    alone = z.alone * y.alone * x.alone
    best = alone, unit[0], unit[1]
    for deep, high in itertools.product(z.groupings, y.groupings):
        if _between(deep, high, y, x) <= room:
            best = min(best, (deep.decoded * high.decoded * x.whole, deep.length, high.length))
        elif deep.widest * high.widest * x.single <= room:  # chunks stay in the cache within a step, but not until the next one
            best = min(best, (deep.decoded * high.decoded * x.alone, deep.length, high.length))
    return Reading(best[1:], best[0], alone)


def _between(deep: Grouping, high: Grouping, y: Axis, x: Axis) -> int:
    """Return the most voxels that a sequence reads between two uses of a chunk, which a cache of that size keeps.

    In the worst case, a chunk is used in one step along x and again in the next. The rest of the one step and the start of the
    other lie in between: the cross-section once, and twice where the chunk is.
    """
    return deep.widest * (high.widest * x.single + min(high.widest, y.single) * x.unshared)


def groups(volume: VolumeSpec, region: Box, axis: int, unit: int, length: int) -> NDArray[np.int64]:
    """Find where the groups along an axis start.

    Where chunks are longer than write units, groups end where chunks end.

    Parameters
    ----------
    volume
        The volume.
    region
        The region to segment.
    axis
        The axis, 0 to 2.
    unit
        Length of a write unit, in voxels.
    length
        Length of a group, in voxels.

    Returns
    -------
    ndarray
        First write unit of each group, ``(groups,) int64``, counted from the start of the region.
    """
    start = np.arange(region.start[axis], region.stop[axis], unit)
    return np.flatnonzero(np.diff((start - _origin(volume, region, axis, unit)) // length, prepend=-1))


@lru_cache(maxsize=512)
def _axis(volume: VolumeSpec, region: Box, model: NetworkSpec, axis: int, unit: int, tile: int) -> Axis:
    first, end = _spans(volume, region, model, axis, unit, tile)
    width, whole = end - first, int(end.max() - first.min())
    single, unshared = int(width.max()), 0
    if (np.diff(first) < 0).any() or (np.diff(end) < 0).any():  # a block mirrored at the far end reads further back than others
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
    """List the lengths of groups to try: whole chunks or units, about half as many more each time, distributed evenly."""
    base = max(unit, volume.chunk[axis])
    parts = -(-(region.stop[axis] - _origin(volume, region, axis, unit)) // base)
    tried = {math.ceil(2 ** (power / 2)) for power in range(2 * parts.bit_length() + 1)}
    return sorted({base * -(-parts // -(-parts // size)) for size in tried} | {unit})


def _origin(volume: VolumeSpec, region: Box, axis: int, unit: int) -> int:
    return 0 if volume.chunk[axis] > unit else region.start[axis]


def _spans(
    volume: VolumeSpec, region: Box, model: NetworkSpec, axis: int, unit: int, tile: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the chunks that each block reads along an axis start, and where they end.

    This is the closed form of `emseg_core.grid.tiles.hull_of` and `emseg_core.grid.mirror.reflect` for all blocks at once.
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
