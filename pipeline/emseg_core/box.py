"""Coordinates: a frozen, half-open box of voxels, always (z, y, x) and always absolute."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from operator import ge, le
from typing import TypeVar

Triple = tuple[int, int, int]
"""Three integers in the order (z, y, x)."""

AXES = ("z", "y", "x")

T = TypeVar("T")


def three(values: Iterable[T]) -> tuple[T, T, T]:
    """Return three values, one for each axis (z, y, x), as a tuple.

    Raises
    ------
    ValueError
        If there are more values or fewer.
    """
    z, y, x = values
    return z, y, x


def triple(values: Iterable[int]) -> Triple:
    """Convert three numbers to a `Triple`.

    Parameters
    ----------
    values
        Numbers in the order (z, y, x).

    Returns
    -------
    Triple
        The numbers as integers.

    Raises
    ------
    ValueError
        If there are not exactly three.
    """
    return three(map(int, values))


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A half-open box of voxels, ``start <= voxel < stop`` on each axis (z, y, x).

    A box may reach outside a volume, as a read box at the volume's face does. Boxes are never clipped silently: only
    `intersect` makes a box smaller.

    Raises
    ------
    ValueError
        If the box would hold no voxel.

    Examples
    --------
    >>> box = Box((0, 0, 0), (2, 4, 8))
    >>> box.grow((0, 1, 1))
    Box(start=(0, -1, -1), stop=(2, 5, 9))
    >>> box.shift((1, 0, 0)).intersect(box)
    Box(start=(1, 0, 0), stop=(2, 4, 8))
    """

    start: Triple
    """First voxel (z, y, x)."""
    stop: Triple
    """One past the last voxel (z, y, x)."""

    def __post_init__(self) -> None:
        if any(stop <= start for start, stop in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"a box must hold a voxel on each axis, but goes from {self.start} to {self.stop}")

    @classmethod
    def of_shape(cls, shape: Triple) -> Box:
        """Return the box of this shape (z, y, x), in voxels, that starts at the origin.

        Parameters
        ----------
        shape
            Shape (z, y, x) in voxels.

        Returns
        -------
        Box
            From (0, 0, 0) to `shape`.
        """
        return cls((0, 0, 0), shape)

    @classmethod
    def at(cls, place: Triple, shape: Triple) -> Box:
        """Return one box of a grid of boxes.

        Parameters
        ----------
        place
            Index (z, y, x) in the grid, which starts at the origin.
        shape
            Shape (z, y, x) of each box of the grid, in voxels.

        Returns
        -------
        Box
            The box at that index.
        """
        return cls(place, triple(index + 1 for index in place)).refine(shape)

    @property
    def shape(self) -> Triple:
        """Length per axis (z, y, x), in voxels."""
        return triple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def voxels(self) -> int:
        """Number of voxels in the box."""
        return math.prod(self.shape)

    def grow(self, margin: Triple) -> Box:
        """Return this box extended by `margin` voxels (z, y, x) on both sides of each axis.

        Parameters
        ----------
        margin
            Voxels (z, y, x) to add on either side.

        Returns
        -------
        Box
            The larger box, which may start below zero.
        """
        return Box(self.relative_to(margin).start, self.shift(margin).stop)

    def shift(self, offset: Triple) -> Box:
        """Return this box moved by `offset` voxels (z, y, x).

        Parameters
        ----------
        offset
            Distance (z, y, x) in voxels.

        Returns
        -------
        Box
            A box of the same shape.
        """
        start, stop = (triple(c + o for c, o in zip(corner, offset, strict=True)) for corner in (self.start, self.stop))
        return Box(start, stop)

    def refine(self, step: Triple) -> Box:
        """Return the same box on a grid where each voxel is divided into `step` (z, y, x) voxels.

        Parameters
        ----------
        step
            Number of finer voxels (z, y, x) along each edge of a voxel.

        Returns
        -------
        Box
            In finer voxels.
        """
        start, stop = (triple(c * s for c, s in zip(corner, step, strict=True)) for corner in (self.start, self.stop))
        return Box(start, stop)

    def cells(self, shape: Triple) -> list[Triple]:
        """Return the cells that this box touches in a grid of boxes of this shape; the grid starts at the origin.

        Parameters
        ----------
        shape
            Shape (z, y, x) of a cell, in voxels.

        Returns
        -------
        list of tuple of int
            Index (z, y, x) of each cell, in C order. `Box.at` turns one into a box again.

        Examples
        --------
        >>> Box((0, 2, 5), (1, 5, 6)).cells((1, 4, 4))
        [(0, 0, 1), (0, 1, 1)]
        """
        ranges = (range(a // length, -(-b // length)) for a, b, length in zip(self.start, self.stop, shape, strict=True))
        return [triple(cell) for cell in itertools.product(*ranges)]

    def relative_to(self, origin: Triple) -> Box:
        """Return this box in coordinates whose origin is at `origin`.

        Parameters
        ----------
        origin
            Position (z, y, x) of the origin, in voxels.

        Returns
        -------
        Box
            A box of the same shape.
        """
        return self.shift(triple(-o for o in origin))

    def contains(self, other: Box) -> bool:
        """Return whether every voxel of `other` lies in this box.

        Parameters
        ----------
        other
            Another box.

        Returns
        -------
        bool
            False if a voxel of `other` lies outside.
        """
        return all(map(le, self.start, other.start)) and all(map(ge, self.stop, other.stop))

    def intersect(self, other: Box) -> Box:
        """Return the box of the voxels that both boxes share.

        Parameters
        ----------
        other
            Another box.

        Returns
        -------
        Box
            The shared voxels.

        Raises
        ------
        ValueError
            If they share none.
        """
        return Box(triple(map(max, self.start, other.start)), triple(map(min, self.stop, other.stop)))

    def slices(self) -> tuple[slice, slice, slice]:
        """Return NumPy slices (z, y, x) that select this box from an array.

        Returns
        -------
        tuple of slice
            One slice for each axis.

        Raises
        ------
        ValueError
            If the box starts below zero, where NumPy would count from the end.
        """
        if min(self.start) < 0:
            raise ValueError(f"a box that starts at {self.start} cannot index an array")
        return three(map(slice, self.start, self.stop))

    def __str__(self) -> str:
        """Return the box as it is typed after ``--roi``: ``z0:z1,y0:y1,x0:x1``."""
        return ",".join(f"{start}:{stop}" for start, stop in zip(self.start, self.stop, strict=True))
