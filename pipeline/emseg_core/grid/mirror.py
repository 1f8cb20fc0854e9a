"""Mirroring at the volume's faces, as index arithmetic in the volume's coordinates.

The overlap-tile strategy of the U-Net paper extrapolates missing context by mirroring. Here a position outside the
volume is *folded* back to the position it mirrors::

    volume of 4 voxels       a b c d
    read box -3 .. 7     d c b a b c d c b a
    folded index         3 2 1 0 1 2 3 2 1 0

The pattern has period 2 (n - 1), so it holds at any distance, even at many times the length of a thin axis.
Only the volume's faces are mirrored: inside the volume, a block reads its real neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple, three, triple

Scalar = TypeVar("Scalar", bound=np.generic)


def fold(positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Fold positions into an axis of `length` voxels.

    Parameters
    ----------
    positions
        Positions inside or outside the axis, ``int64`` of any shape.
    length
        Number of voxels along the axis.

    Returns
    -------
    ndarray
        The positions inside the axis that these mirror, ``int64`` of the same shape.

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
    """Instructions to fill any box from voxels inside the volume."""

    source: Box
    """Voxels to read; inside the volume."""
    gather: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    """For each axis (z, y, x), the index within `source` from which each position of the box is filled."""

    def fill(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """Fill the box.

        Parameters
        ----------
        values
            Voxels of `source`, ``(..., z, y, x)``.

        Returns
        -------
        ndarray
            Voxels of the box, ``(..., z, y, x)``; `values` itself if nothing is mirrored.
        """
        for axis, positions in enumerate(self.gather):
            values = _gathered(values, positions, axis - len(self.gather))
        return values


def _gathered(values: NDArray[Scalar], positions: NDArray[np.int64], axis: int) -> NDArray[Scalar]:
    """Take these positions along an axis; if they contain the whole axis in order, copy that as one slice."""
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
    """Return the `Reflection` that fills a box.

    Parameters
    ----------
    box
        A box anywhere, in the volume's coordinates.
    shape
        Shape (z, y, x) of the volume, in voxels.

    Returns
    -------
    Reflection
        What to read, and where it goes.
    """
    folded = [fold(np.arange(start, stop), length) for start, stop, length in zip(box.start, box.stop, shape, strict=True)]
    first, last = triple(int(axis.min()) for axis in folded), triple(int(axis.max()) + 1 for axis in folded)
    return Reflection(Box(first, last), three(axis - start for axis, start in zip(folded, first, strict=True)))


def mirrored(values: NDArray[Any], box: Box) -> NDArray[Any]:
    """Return the voxels of a box of a volume that is mirrored without end.

    Parameters
    ----------
    values
        The whole volume, ``(z, y, x)``.
    box
        A box anywhere.

    Returns
    -------
    ndarray
        Voxels of the box, ``(z, y, x)``.
    """
    reflection = reflect(box, triple(values.shape))
    return reflection.fill(values[reflection.source.slices()])
