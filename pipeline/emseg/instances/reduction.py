"""The one step that sees the whole volume: segments that touch faces are merged, and all get their numbers.

Blocks are merged in groups, as far as a group alone can tell, and then the groups: what it takes to merge a segment, some two
thousand bytes, is in memory for one group, and for what lies between groups. All that stays of each segment that is open,
because it touches a face between blocks or might merge with one that does, is its place and size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from emseg.instances.agglomerate import agglomerate
from emseg.instances.contacts import Contacts, Indices
from emseg.instances.piece import Piece, Seam, Segments
from emseg.joining import joined
from emseg.specs.labelling import Labelling

SIDE = 12
"""Blocks along each axis of a group."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What has become of the open segments; the others are what they are in their blocks."""

    parts: Indices
    """Segments of blocks, ``(n,)`` ascending, numbered throughout the volume from 1."""
    wholes: Indices
    """Row of `segments` that each of them is part of, ``(n,)``."""
    segments: Segments
    """What they are together."""


def merge(
    offsets: Indices, piece: Callable[[int], Piece], seam: Callable[[int], Seam], labelling: Labelling, side: int = SIDE
) -> Merged:
    """Merges what blocks share.

    Parameters
    ----------
    offsets
        Segment i of a block is segment ``offset + i`` of the volume, ``(z, y, x) int64`` on the grid of blocks.
    piece, seam
        Read what is known of a block, by its place in the order of the grid; one is in memory at a time.
    side
        Blocks along each axis of a group.
    """
    grouping = _Grouping(offsets.ravel(), _groups(offsets, side))
    between = Seam.joined(grouping.between(seam(block)) for block in range(offsets.size) if grouping.count > 1)
    ends = np.unique(between.segments)
    merged, left = [], []
    for blocks in grouping:
        within = Seam.joined(known for block in blocks for known in grouping.within(block, seam(block), piece(block)))
        wholes, undecided = _merged(within, ends, labelling.threshold)
        merged.append(wholes)
        left.append(undecided)
    wholes = _Wholes.joined(merged)
    last, _ = _merged(Seam.joined([wholes.rename(between), *left]), np.zeros(0, np.int64), labelling.threshold)
    wholes = _Wholes.joined([_Wholes(wholes.parts, last.of(wholes.wholes)), last.without(wholes)])
    kept, rows = np.unique(wholes.wholes, return_inverse=True)
    bounds = np.searchsorted(wholes.parts, [*(grouping.offsets + 1), np.iinfo(np.int64).max])
    tables = [
        piece(block).segments.rows(wholes.parts[begin:end] - offset - 1)
        for block, (offset, begin, end) in enumerate(zip(grouping.offsets, bounds[:-1], bounds[1:], strict=True))
        if end > begin
    ]
    return Merged(wholes.parts, rows, Segments.stacked(tables).merged(rows, len(kept)))


def number(
    offsets: Indices,
    row: Sequence[int],
    piece: Callable[[int], Piece],
    merged: Merged,
    given: NDArray[np.uint64],
    before: int,
    smallest: int,
) -> tuple[list[NDArray[np.uint64]], Segments]:
    """Final numbers of the segments of a row of blocks that share their z; rows come in the order of z.

    Parameters
    ----------
    row
        The blocks.
    given
        Numbers of all open segments that begin in earlier rows, by their row in ``merged.segments``, ``(n,)``; those that begin
        in this row get theirs here.
    before
        Segments that have a number already.
    smallest
        Segments of fewer voxels get the number 0.

    Returns
    -------
    maps
        For each block the number of each of its segments, ``(n + 1,) uint64``; that of 0 is 0.
    table
        The segments that begin in this row, in the order of their numbers, which go on from `before`.
    """
    pieces = [piece(block).segments for block in row]
    opened = [_open_of(merged, offsets[block], len(segments)) for block, segments in zip(row, pieces, strict=True)]
    alone, begun = [], []
    for segments, (mine, wholes) in zip(pieces, opened, strict=True):
        closed = np.ones(len(segments), bool)
        closed[mine] = False
        alone.append(np.flatnonzero(closed))
        begun.append(wholes[merged.segments.first[wholes] == segments.first[mine]])
    wholes = np.concatenate(begun)
    table = Segments.stacked(
        [*(segments.rows(rows) for segments, rows in zip(pieces, alone, strict=True)), merged.segments.rows(wholes)]
    )
    order = np.argsort(table.first, kind="stable")
    order = order[table.voxels[order] >= smallest]
    numbers = np.zeros(len(table), np.uint64)
    numbers[order] = np.arange(len(order), dtype=np.uint64) + np.uint64(before + 1)
    given[wholes] = numbers[len(table) - len(wholes) :]
    maps, end = [], 0
    for segments, rows, (mine, whole) in zip(pieces, alone, opened, strict=True):
        found = np.zeros(len(segments) + 1, np.uint64)
        found[rows + 1] = numbers[end : end + len(rows)]
        found[mine + 1] = given[whole]
        end += len(rows)
        maps.append(found)
    return maps, table.rows(order)


@dataclass(frozen=True, slots=True)
class _Grouping:
    """Which segments lie in blocks of one group; segments are numbered throughout the volume."""

    offsets: Indices
    """Of the segments of each block, ``(blocks,)``."""
    groups: Indices
    """Group of each block, ``(blocks,)``, numbered from 0."""

    @property
    def count(self) -> int:
        """Number of groups."""
        return int(self.groups.max(initial=-1)) + 1

    def __iter__(self) -> Iterator[list[int]]:
        """The blocks of each group."""
        order = np.argsort(self.groups, kind="stable")
        return (blocks.tolist() for blocks in np.split(order, np.flatnonzero(np.diff(self.groups[order])) + 1))

    def between(self, seam: Seam) -> Seam:
        """What lies between segments of two groups."""
        return seam.where(*(~alike for alike in self._alike(seam)))

    def within(self, block: int, seam: Seam, piece: Piece) -> Iterator[Seam]:
        """What lies between segments of the group of a block, of which that block knows."""
        contacts, offset = piece.contacts, self.offsets[block]
        yield seam.where(*self._alike(seam))
        yield Seam.of(replace(contacts, one=contacts.one + offset, other=contacts.other + offset))

    def _alike(self, seam: Seam) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether both segments lie in one group, of each pair that is one segment, and of each contact."""
        same, contacts = self._of(seam.same), seam.contacts
        return same[:, 0] == same[:, 1], self._of(contacts.one) == self._of(contacts.other)

    def _of(self, segments: Indices) -> Indices:
        """Group of each segment."""
        return self.groups[np.searchsorted(self.offsets, segments) - 1]


@dataclass(frozen=True, slots=True)
class _Wholes:
    """What segments are part of; those that are not mentioned are what they were."""

    parts: Indices
    """``(n,)``, ascending."""
    wholes: Indices
    """The smallest segment of all that each is part of one with, ``(n,)``."""

    @classmethod
    def joined(cls, several: Sequence[_Wholes]) -> _Wholes:
        """The parts of all, which are different ones."""
        parts, wholes = (
            np.concatenate([np.zeros(0, np.int64), *columns])
            for columns in ([each.parts for each in several], [each.wholes for each in several])
        )
        order = np.argsort(parts)
        return cls(parts[order], wholes[order])

    def of(self, segments: Indices) -> Indices:
        """What each of these segments is part of."""
        known = np.isin(segments, self.parts)
        found = segments.copy()
        found[known] = self.wholes[np.searchsorted(self.parts, segments[known])]
        return found

    def rename(self, seam: Seam) -> Seam:
        """What is known of the wholes, by what is known of parts."""
        contacts = seam.contacts
        return Seam(self.of(seam.same), replace(contacts, one=self.of(contacts.one), other=self.of(contacts.other)))

    def without(self, others: _Wholes) -> _Wholes:
        """Those whose parts the others do not mention."""
        new = ~np.isin(self.parts, others.parts)
        return _Wholes(self.parts[new], self.wholes[new])


def _merged(known: Seam, open_: Indices, threshold: float) -> tuple[_Wholes, Seam]:
    """What segments become part of by all that is known between them, and what is left to decide.

    Parameters
    ----------
    open_
        Segments of which not all is known.
    """
    parts = np.unique(known.segments)
    wholes = joined(len(parts), *np.searchsorted(parts, known.same).T)
    if not len(known.contacts):
        return _Wholes(parts, parts[wholes]), Seam.of(Contacts.none())
    one, other = np.searchsorted(parts, known.contacts.one), np.searchsorted(parts, known.contacts.other)
    contacts = replace(known.contacts, one=one, other=other).renamed(wholes)
    waiting = np.zeros(len(parts), bool)
    waiting[wholes[np.isin(parts, open_)]] = True
    names, undecided = agglomerate(len(parts), contacts, threshold, waiting)
    left = contacts.renamed(names)
    left = left.where(undecided[left.one] & undecided[left.other])
    return _Wholes(parts, parts[names[wholes]]), Seam.of(left.renamed(parts))


def _groups(offsets: Indices, side: int) -> Indices:
    """Group of each block ``(blocks,)`` of a grid ``(z, y, x)``."""
    places = [np.arange(length) // side for length in offsets.shape]
    counts = tuple(int(place.max(initial=-1)) + 1 for place in places)
    groups: Indices = np.ravel_multi_index(np.meshgrid(*places, indexing="ij"), counts).ravel()
    return groups


def _open_of(merged: Merged, offset: np.int64, count: int) -> tuple[Indices, Indices]:
    """Open segments of a block, counted from 0, and what they are part of."""
    begin, end = np.searchsorted(merged.parts, [offset + 1, offset + count + 1])
    return merged.parts[begin:end] - offset - 1, merged.wholes[begin:end]
