"""Contacts between segments: boundary probabilities summed over the faces that two segments share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import AXES, Box, Triple

Indices = NDArray[np.int64]
"""Numbers of segments, rows or positions."""


@dataclass(frozen=True, slots=True)
class Contacts:
    """Pairs of segments that touch, one row each, sorted; all arrays are ``(n,) int64``.

    Sums, counts and smallest faces of the parts of a contact can be combined in any order.
    """

    one: Indices
    """Segment with the smaller number."""
    other: Indices
    """Segment with the larger number."""
    total: Indices
    """Sum of the stored probabilities, 0 to 254, of both voxels of each shared face."""
    count: Indices
    """Twice the number of shared faces."""
    face: Indices
    """First shared face: three times the position of its first voxel in the volume, plus its axis."""

    def __len__(self) -> int:
        return len(self.one)

    @classmethod
    def empty(cls) -> Self:
        """Return an empty table."""
        nothing = np.zeros(0, np.int64)
        return cls(nothing, nothing, nothing, nothing, nothing)

    @classmethod
    def between(cls, one: Indices, other: Indices, total: Indices, face: Indices) -> Self:
        """Sum up single faces to contacts; faces within a segment or beside background are left out.

        Parameters
        ----------
        one, other
            Segments on the two sides of each face, ``(faces,)``; 0 is background.
        total
            Sum of the stored probabilities of both voxels, ``(faces,)``.
        face
            Number of each face, ``(faces,)``.

        Returns
        -------
        Contacts
            One row for each pair of segments.
        """
        apart = (one != other) & (one > 0) & (other > 0)
        one, other, total, face = (column[apart] for column in (one, other, total, face))
        return cls.summed(one, other, total, np.full(len(one), 2, np.int64), face)

    @classmethod
    def summed(cls, one: Indices, other: Indices, total: Indices, count: Indices, face: Indices) -> Self:
        """Sum up parts of contacts. A pair of segments may occur several times and in either order.

        Parameters
        ----------
        one, other, total, count, face
            Columns of the parts, ``(n,)``, as in `Contacts`.

        Returns
        -------
        Contacts
            One row for each pair of segments.
        """
        if not len(one):
            return cls.empty()
        low, high = np.minimum(one, other), np.maximum(one, other)
        order = np.lexsort((high, low))
        low, high = low[order], high[order]
        first = np.flatnonzero(np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])])
        totals, counts = (np.add.reduceat(column[order], first) for column in (total, count))
        return cls(low[first], high[first], totals, counts, np.minimum.reduceat(face[order], first))

    @classmethod
    def combined(cls, parts: Sequence[Self]) -> Self:
        """Combine several tables.

        Parameters
        ----------
        parts
            Several tables.

        Returns
        -------
        Contacts
            One row for each pair of segments.
        """
        columns = ([getattr(part, field.name) for part in (cls.empty(), *parts)] for field in fields(cls))
        return cls.summed(*map(np.concatenate, columns))

    def renamed(self, names: Indices) -> Self:
        """Rename segments to ``names[segment]`` and combine their contacts; contacts within a segment are dropped.

        Parameters
        ----------
        names
            New name of each segment, ``(segment,)``.

        Returns
        -------
        Contacts
            One row for each pair of new names.
        """
        one, other = names[self.one], names[self.other]
        apart = one != other
        return self.summed(one[apart], other[apart], self.total[apart], self.count[apart], self.face[apart])

    def where(self, kept: NDArray[np.bool_]) -> Self:
        """Select rows.

        Parameters
        ----------
        kept
            Whether each row is kept, ``(n,) bool``.

        Returns
        -------
        Contacts
            These rows.
        """
        return type(self)(**{field.name: getattr(self, field.name)[kept] for field in fields(self)})


def contacts_within(ids: NDArray[np.uint32], boundary: NDArray[np.uint8], places: NDArray[np.int64]) -> Contacts:
    """Find the contacts of the segments of a block.

    Parameters
    ----------
    ids
        Segment of each voxel, ``(z, y, x)``; 0 is background.
    boundary
        Stored boundary probability of each voxel, ``(z, y, x)``.
    places
        Position of each voxel in the volume, ``(z, y, x)``.

    Returns
    -------
    Contacts
        One row for each pair of segments.
    """
    parts = []
    for axis in range(3):
        a, b = neighbour_slices(axis)
        apart = ids[a] != ids[b]
        total = boundary[a][apart].astype(np.int64) + boundary[b][apart]
        one, other = ids[a][apart].astype(np.int64), ids[b][apart].astype(np.int64)
        parts.append(Contacts.between(one, other, total, 3 * places[a][apart] + axis))
    return Contacts.combined(parts)


def voxel_places(box: Box, shape: Triple) -> Indices:
    """Return the position in a volume of this shape of each voxel of a box, ``(z, y, x) int64``."""
    z, y, x = np.meshgrid(*(np.arange(*ends) for ends in zip(box.start, box.stop, strict=True)), indexing="ij", sparse=True)
    places: Indices = (z * shape[1] + y) * shape[2] + x
    return places


def neighbour_slices(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return slices of all voxels that have a next one along an axis, and of these next ones."""
    here, there = [slice(None)] * len(AXES), [slice(None)] * len(AXES)
    here[axis], there[axis] = slice(0, -1), slice(1, None)
    return tuple(here), tuple(there)
