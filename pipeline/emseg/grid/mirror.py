"""Mirroring at the volume's faces, as index arithmetic in the volume's coordinates.

The overlap-tile strategy of the U-Net paper extrapolates missing context by mirroring. Here a position outside the
volume is *folded* back to the position it mirrors::

    volume of 4 voxels       a b c d
    read box -3 .. 7     d c b a b c d c b a
    folded index         3 2 1 0 1 2 3 2 1 0

The pattern repeats with period 2 (n - 1), so it holds for any distance, also many times the length of a thin axis.
Only the volume's faces are mirrored: inside, a block reads its real neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple, triple

Scalar = TypeVar("Scalar", bound=np.generic)


def fold(positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Positions inside an axis of `length` voxels that these positions, inside or outside, mirror.

    Examples
    --------
    >>> fold(np.arange(-3, 7), 4)
    array([3, 2, 1, 0, 1, 2, 3, 2, 1, 0])
    """
    if length == 1:
        return np.zeros_like(positions)
    period = 2 * (length - 1)
    inside: NDArray[np.int64] = (length - 1) - np.abs(positions % period - (length - 1))
    return inside


@dataclass(frozen=True, slots=True)
class Reflection:
    """How to fill a box, wherever it lies, from voxels inside the volume."""

    source: Box
    """The voxels to read; inside the volume."""
    gather: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    """For each axis (z, y, x), the position within `source` that each position of the box takes."""

    def fill(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """The box ``(z, y, x)``, filled from the voxels ``(z, y, x)`` of `source`."""
        for axis, positions in enumerate(self.gather):
            values = _gathered(values, positions, axis)
        return values


def _gathered(values: NDArray[Scalar], positions: NDArray[np.int64], axis: int) -> NDArray[Scalar]:
    """What is at these positions of an axis; where all of it lies in a row among them, only the rest is picked one by one."""
    length = values.shape[axis]
    if len(positions) == length and (np.diff(positions) == 1).all():
        return values
    for first in np.flatnonzero(positions[: len(positions) - length + 1] == 0):
        if (np.diff(positions[first : first + length]) == 1).all():
            ends = positions[:first], positions[first + length :]
            low, high = (np.take(values, end, axis=axis) for end in ends)
            return np.concatenate((low, values, high), axis=axis)
    return np.take(values, positions, axis=axis)


def reflect(box: Box, shape: Triple) -> Reflection:
    """The `Reflection` that fills `box` from a volume of `shape` (z, y, x) voxels."""
    folded = [fold(np.arange(start, stop), length) for start, stop, length in zip(box.start, box.stop, shape, strict=True)]
    first, last = triple(int(axis.min()) for axis in folded), triple(int(axis.max()) + 1 for axis in folded)
    z, y, x = (axis - start for axis, start in zip(folded, first, strict=True))
    return Reflection(Box(first, last), (z, y, x))


def mirrored(values: NDArray[Any], box: Box) -> NDArray[Any]:
    """The voxels of `box`, cut out of a whole volume `values` ``(z, y, x)`` mirrored without end."""
    reflection = reflect(box, triple(values.shape))
    return reflection.fill(values[reflection.source.slices()])
