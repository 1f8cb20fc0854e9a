"""What lies between segments: sums and counts of boundary probabilities over the faces of voxels that two of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Contacts:
    """Pairs of segments that touch, one row each, sorted; all arrays are ``(n,) int64``.

    Sums, counts and smallest faces of the parts of a contact add up to those of the whole, in any order.
    """

    one: Indices
    """The segment of the smaller number."""
    other: Indices
    total: Indices
    """Sum of the stored probabilities, 0 to 254, of both voxels of each shared face."""
    count: Indices
    """Twice the number of shared faces."""
    face: Indices
    """The first shared face: three times the position in the volume of its first voxel, and its axis."""

    def __len__(self) -> int:
        return len(self.one)

    @classmethod
    def none(cls) -> Self:
        """No contact."""
        nothing = np.zeros(0, np.int64)
        return cls(nothing, nothing, nothing, nothing, nothing)

    @classmethod
    def between(cls, one: Indices, other: Indices, total: Indices, face: Indices) -> Self:
        """The contacts that single faces add up to, a row each; rows of one segment, or of none, are left out."""
        apart = (one != other) & (one > 0) & (other > 0)
        one, other, total, face = (column[apart] for column in (one, other, total, face))
        return cls.summed(one, other, total, np.full(len(one), 2, np.int64), face)

    @classmethod
    def summed(cls, one: Indices, other: Indices, total: Indices, count: Indices, face: Indices) -> Self:
        """The contacts that these parts add up to; segments of one pair may come in either order, and more than once."""
        if not len(one):
            return cls.none()
        low, high = np.minimum(one, other), np.maximum(one, other)
        order = np.lexsort((high, low))
        low, high = low[order], high[order]
        first = np.flatnonzero(np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])])
        totals, counts = (np.add.reduceat(column[order], first) for column in (total, count))
        return cls(low[first], high[first], totals, counts, np.minimum.reduceat(face[order], first))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All parts together."""
        columns = ([getattr(part, field.name) for part in (cls.none(), *parts)] for field in fields(cls))
        return cls.summed(*map(np.concatenate, columns))

    def renamed(self, names: Indices) -> Self:
        """The contacts of segments that are now called ``names[segment]``; one segment has no contact with itself."""
        one, other = names[self.one], names[self.other]
        apart = one != other
        return self.summed(one[apart], other[apart], self.total[apart], self.count[apart], self.face[apart])

    def where(self, kept: NDArray[np.bool_]) -> Self:
        """Some of the rows."""
        return type(self)(*(getattr(self, field.name)[kept] for field in fields(self)))


def contacts_within(ids: NDArray[np.uint32], boundary: NDArray[np.uint8], places: NDArray[np.int64]) -> Contacts:
    """The contacts of the segments of a block.

    Parameters
    ----------
    ids
        Segment of each voxel, ``(z, y, x)``, 0 for none.
    boundary
        Stored probability of each voxel, ``(z, y, x)``.
    places
        Position of each voxel in the volume, ``(z, y, x)``.
    """
    parts = []
    for axis in range(3):
        here, there = [slice(None)] * 3, [slice(None)] * 3
        here[axis], there[axis] = slice(0, -1), slice(1, None)
        a, b = tuple(here), tuple(there)
        apart = ids[a] != ids[b]
        total = boundary[a][apart].astype(np.int64) + boundary[b][apart]
        one, other = ids[a][apart].astype(np.int64), ids[b][apart].astype(np.int64)
        parts.append(Contacts.between(one, other, total, 3 * places[a][apart] + axis))
    return Contacts.joined(parts)
