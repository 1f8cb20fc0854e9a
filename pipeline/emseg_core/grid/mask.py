"""Find the blocks of a plan that a mask leaves out: those that contain no nonzero mask voxel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box
from emseg_core.errors import VolumeError
from emseg_core.grid.blocks import Blocks
from emseg_core.ports import VolumeReader
from emseg_core.specs.volume import VolumeSpec

OVERLAP_TOLERANCE = 1e-6
"""Tolerance in voxels of the mask: a smaller overlap does not count."""
MAX_READ_VOXELS = 2**27
"""Largest number of mask voxels that are read at once."""


@dataclass(frozen=True, slots=True)
class AxisMap:
    """Affine map from a volume's voxels to those of a mask, along one axis."""

    step: float
    """Length of a voxel of the volume, in voxels of the mask."""
    start: float
    """Start of the volume's first voxel, in voxels of the mask."""

    def overlapped(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """Return the range of mask voxels that overlap some voxels of the volume.

        Parameters
        ----------
        start, stop
            First voxel of the volume, and one past the last.
        length
            Number of mask voxels along the axis.

        Returns
        -------
        tuple of int
            First mask voxel and one past the last; the first is not below that if none overlaps.
        """
        first = math.floor(self.start + start * self.step + OVERLAP_TOLERANCE)
        last = math.ceil(self.start + stop * self.step - OVERLAP_TOLERANCE)
        return max(0, first), min(length, last)


def outside(blocks: Blocks, volume: VolumeSpec, mask: VolumeReader) -> NDArray[np.bool_]:
    """Find the blocks that lie outside a mask.

    The voxels of the mask may have another size, and the mask may cover more or less than the volume; everything beyond it is
    outside. A mask without a unit of length on an axis covers that axis of the volume from end to end.

    Parameters
    ----------
    blocks
        Blocks of the run.
    volume
        The volume.
    mask
        The open mask.

    Returns
    -------
    ndarray
        Whether each block is outside, ``(z, y, x) bool`` on the grid of blocks.

    Raises
    ------
    BlockError
        If the mask cannot be read.
    VolumeError
        If all blocks are outside.
    """
    axes = [_axis_map(volume, mask.spec, axis) for axis in range(3)]
    lengths = mask.spec.shape
    spans: list[list[tuple[int, int]]] = []
    for axis, (axis_map, count, unit, length) in enumerate(zip(axes, blocks.grid, blocks.unit, lengths, strict=True)):
        first, end = blocks.region.start[axis], blocks.region.stop[axis]
        spans.append([axis_map.overlapped(first + i * unit, min(first + (i + 1) * unit, end), length) for i in range(count)])
    found = np.ones(blocks.grid, bool)
    for z, (start, stop) in enumerate(spans[0]):
        if start < stop:
            found[z] = ~_touched(_flattened(mask, start, stop), spans[1], spans[2])
    if found.all():
        raise VolumeError("no block of the region lies within the mask: check the mask's voxel size and offset, or the region")
    return found


def _axis_map(volume: VolumeSpec, mask: VolumeSpec, axis: int) -> AxisMap:
    """Map voxels along one axis; a voxel extends half its size to either side of its centre."""
    here, there = volume.unit_sizes[axis], mask.unit_sizes[axis]
    if here is None or there is None:
        return AxisMap(mask.shape[axis] / volume.shape[axis], 0.0)
    size, other = volume.scale[axis] * here, mask.scale[axis] * there
    begins = volume.translation[axis] * here - size / 2
    origin = mask.translation[axis] * there - other / 2
    return AxisMap(size / other, (begins - origin) / other)


def _flattened(mask: VolumeReader, start: int, stop: int) -> NDArray[np.bool_]:
    """Return where a mask is nonzero in any of some slices, ``(y, x) bool``."""
    _, height, width = mask.spec.shape
    depth = max(1, MAX_READ_VOXELS // (height * width))
    parts = (Box((z, 0, 0), (min(z + depth, stop), height, width)) for z in range(start, stop, depth))
    found = np.zeros((height, width), bool)
    for part in parts:
        found |= (mask.read(part) != 0).any(axis=0)
    return found


def _touched(inside: NDArray[np.bool_], rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return whether each rectangle of these rows and columns holds a True, ``(rows, columns) bool``."""
    sums = np.zeros((inside.shape[0] + 1, inside.shape[1] + 1), np.int64)
    sums[1:, 1:] = inside.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    (top, bottom), (left, right) = (np.array([(a, max(a, b)) for a, b in spans]).T for spans in (rows, columns))
    top, bottom = (np.minimum(part, inside.shape[0])[:, None] for part in (top, bottom))
    left, right = (np.minimum(part, inside.shape[1]) for part in (left, right))
    counts = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    found: NDArray[np.bool_] = counts > 0
    return found
