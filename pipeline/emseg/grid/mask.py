"""Which blocks of a plan a mask leaves out: those that no voxel of it that is not 0 touches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box
from emseg.errors import VolumeError
from emseg.grid.blocks import Blocks
from emseg.ports import VolumeReader
from emseg.specs.volume import VolumeSpec

EDGE = 1e-6
"""Of a mask's voxel: what is nearer to one than this does not count as touching it."""
AT_ONCE = 2**27
"""Most voxels of a mask that are read at once."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a volume's voxels lie among those of a mask, on one axis."""

    step: float
    """Voxels of the mask that a voxel of the volume is long."""
    start: float
    """Where the first voxel of the volume begins, in voxels of the mask."""

    def touched(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """From which voxel of a mask of some length to before which one those of the volume from `start` to `stop` touch it."""
        first = math.floor(self.start + start * self.step + EDGE)
        last = math.ceil(self.start + stop * self.step - EDGE)
        return max(0, first), min(length, last)


def outside(blocks: Blocks, volume: VolumeSpec, mask: VolumeReader) -> NDArray[np.bool_]:
    """Which blocks lie wholly outside a mask, ``(z, y, x) bool`` on their grid.

    The mask may have voxels of another size, and cover more or less than the volume: beyond it, all is outside. One that has
    no unit on an axis covers that axis of the volume from end to end.

    Raises
    ------
    BlockError
        If the mask cannot be read.
    VolumeError
        If all is outside.
    """
    axes = [_places(volume, mask.spec, axis) for axis in range(3)]
    lengths = mask.spec.shape
    spans: list[list[tuple[int, int]]] = []
    for axis, (places, count, unit, length) in enumerate(zip(axes, blocks.grid, blocks.unit, lengths, strict=True)):
        first, end = blocks.region.start[axis], blocks.region.stop[axis]
        spans.append([places.touched(first + i * unit, min(first + (i + 1) * unit, end), length) for i in range(count)])
    found = np.ones(blocks.grid, bool)
    for z, (start, stop) in enumerate(spans[0]):
        if start < stop:
            found[z] = ~_touched(_flattened(mask, start, stop), spans[1], spans[2])
    if found.all():
        raise VolumeError("no block of the region lies within the mask: check the mask's voxel size and offset, or the region")
    return found


def _places(volume: VolumeSpec, mask: VolumeSpec, axis: int) -> Places:
    """Where voxels lie on one axis; a voxel reaches from half a voxel before its centre to half a voxel behind."""
    here, there = volume.unit_sizes[axis], mask.unit_sizes[axis]
    if here is None or there is None:
        return Places(mask.shape[axis] / volume.shape[axis], 0.0)
    size, other = volume.scale[axis] * here, mask.scale[axis] * there
    begins = volume.translation[axis] * here - size / 2
    origin = mask.translation[axis] * there - other / 2
    return Places(size / other, (begins - origin) / other)


def _flattened(mask: VolumeReader, start: int, stop: int) -> NDArray[np.bool_]:
    """Whether a mask is not 0 anywhere in some of its slices, ``(y, x) bool``."""
    _, height, width = mask.spec.shape
    depth = max(1, AT_ONCE // (height * width))
    parts = (Box((z, 0, 0), (min(z + depth, stop), height, width)) for z in range(start, stop, depth))
    found = np.zeros((height, width), bool)
    for part in parts:
        found |= (mask.read(part) != 0).any(axis=0)
    return found


def _touched(inside: NDArray[np.bool_], rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """Whether there is anything in each rectangle of these rows and columns, ``(rows, columns) bool``."""
    sums = np.zeros((inside.shape[0] + 1, inside.shape[1] + 1), np.int64)
    sums[1:, 1:] = inside.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    (top, bottom), (left, right) = (np.array([(a, max(a, b)) for a, b in spans]).T for spans in (rows, columns))
    top, bottom = (np.minimum(part, inside.shape[0])[:, None] for part in (top, bottom))
    left, right = (np.minimum(part, inside.shape[1]) for part in (left, right))
    counts = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    found: NDArray[np.bool_] = counts > 0
    return found
