"""Coordinates: one frozen, half-open box of voxels, always (z, y, x), always absolute."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Triple = tuple[int, int, int]
"""Three integers in the order (z, y, x)."""

AXES = ("z", "y", "x")


def triple(values: Iterable[int]) -> Triple:
    """Three integers as a `Triple`.

    Raises
    ------
    ValueError
        If there are not exactly three of them.
    """
    z, y, x = (int(value) for value in values)
    return (z, y, x)


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A half-open box of voxels, ``start <= voxel < stop`` on each axis (z, y, x).

    A box may lie outside a volume (a read box at a volume's face does); nothing is ever clamped
    in silence: only `intersect`, whose name says so, makes a box smaller.

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
    stop: Triple

    def __post_init__(self) -> None:
        if any(stop <= start for start, stop in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"a box must hold a voxel on each axis, but goes from {self.start} to {self.stop}")

    @classmethod
    def of_shape(cls, shape: Triple) -> Box:
        """The box from the origin with this shape, in voxels."""
        return cls((0, 0, 0), shape)

    @classmethod
    def at(cls, place: Triple, shape: Triple) -> Box:
        """The box at a place (z, y, x) in a grid of boxes of this shape, in voxels; the grid starts at the origin."""
        return cls(place, triple(index + 1 for index in place)).refine(shape)

    @property
    def shape(self) -> Triple:
        """Length per axis (z, y, x), in voxels."""
        return triple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def voxels(self) -> int:
        """Number of voxels inside."""
        return math.prod(self.shape)

    def grow(self, margin: Triple) -> Box:
        """This box with `margin` voxels more on both sides of each axis."""
        return Box(
            triple(start - m for start, m in zip(self.start, margin, strict=True)),
            triple(stop + m for stop, m in zip(self.stop, margin, strict=True)),
        )

    def shift(self, offset: Triple) -> Box:
        """This box moved by `offset` voxels."""
        return Box(
            triple(start + o for start, o in zip(self.start, offset, strict=True)),
            triple(stop + o for stop, o in zip(self.stop, offset, strict=True)),
        )

    def refine(self, step: Triple) -> Box:
        """The same place where each voxel is divided into `step` voxels."""
        start, stop = (triple(c * s for c, s in zip(corner, step, strict=True)) for corner in (self.start, self.stop))
        return Box(start, stop)

    def relative_to(self, origin: Triple) -> Box:
        """This box in coordinates whose zero is `origin`."""
        return self.shift(triple(-o for o in origin))

    def contains(self, other: Box) -> bool:
        """Whether each voxel of `other` is inside this box."""
        return all(a <= b for a, b in zip(self.start, other.start, strict=True)) and all(
            a >= b for a, b in zip(self.stop, other.stop, strict=True)
        )

    def intersect(self, other: Box) -> Box:
        """The voxels that both boxes hold.

        Raises
        ------
        ValueError
            If they share none.
        """
        return Box(
            triple(max(a, b) for a, b in zip(self.start, other.start, strict=True)),
            triple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True)),
        )

    def slices(self) -> tuple[slice, slice, slice]:
        """NumPy slices (z, y, x) that cut this box out of an array.

        Raises
        ------
        ValueError
            If the box starts below zero, where NumPy would count from the end.
        """
        if min(self.start) < 0:
            raise ValueError(f"a box that starts at {self.start} cannot index an array")
        z, y, x = (slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))
        return (z, y, x)

    def __str__(self) -> str:
        """The box as it is typed after ``--roi``: ``z0:z1,y0:y1,x0:x1``."""
        return ",".join(f"{start}:{stop}" for start, stop in zip(self.start, self.stop, strict=True))
