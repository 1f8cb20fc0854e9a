"""The one step that sees the whole volume: merge segments across faces, and number all segments.

Blocks are merged in groups, as far as a group alone can decide, and then the groups are merged. Merging takes about two
thousand bytes per segment, for one group at a time and for the contacts between groups. A segment is open if it touches a face
between blocks or might merge with one that does; only its position and size are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from emseg_core.graph_components import connected_components
from emseg_core.instances.agglomerate import agglomerate
from emseg_core.instances.block_segments import BlockSegments, Segments
from emseg_core.instances.contacts import Contacts, Indices
from emseg_core.instances.face_matches import FaceMatches
from emseg_core.specs.labelling import Labelling

GROUP_SIDE = 12
"""Blocks along each axis of a group."""


@dataclass(frozen=True, slots=True)
class Merged:
    """Result of merging the open segments; the other segments stay as they are in their blocks."""

    parts: Indices
    """Open segments of blocks, ``(n,)`` ascending, numbered throughout the volume from 1."""
    rows: Indices
    """Row of `segments` that each of them is part of, ``(n,)``."""
    segments: Segments
    """The merged segments."""


def merge_segments(
    offsets: Indices,
    segments_of: Callable[[int], BlockSegments],
    matches_of: Callable[[int], FaceMatches],
    labelling: Labelling,
    side: int = GROUP_SIDE,
) -> Merged:
    """Merge the segments of all blocks across faces.

    Parameters
    ----------
    offsets
        Offset of each block, ``(z, y, x) int64`` on the grid of blocks: segment i of a block is segment ``offset + i`` of the
        volume.
    segments_of, matches_of
        Functions that read the data of a block, by its position in the grid; one is in memory at a time.
    labelling
        Method and parameters.
    side
        Blocks along each axis of a group.

    Returns
    -------
    Merged
        The merged segments.
    """
    grouping = _Grouping(offsets.ravel(), _groups(offsets, side))
    between = FaceMatches.combined(grouping.between(matches_of(block)) for block in range(offsets.size) if grouping.count > 1)
    ends = np.unique(between.segments)
    merged, left = [], []
    for blocks in grouping:
        within = FaceMatches.combined(
            known for block in blocks for known in grouping.within(block, matches_of(block), segments_of(block))
        )
        mapping, undecided = _merged(within, ends, labelling.threshold)
        merged.append(mapping)
        left.append(undecided)
    mapping = _Mapping.combined(merged)
    last, _ = _merged(FaceMatches.combined([mapping.rename(between), *left]), np.zeros(0, np.int64), labelling.threshold)
    mapping = _Mapping.combined([_Mapping(mapping.parts, last.of(mapping.targets)), last.without(mapping)])
    kept, rows = np.unique(mapping.targets, return_inverse=True)
    bounds = np.searchsorted(mapping.parts, [*(grouping.offsets + 1), np.iinfo(np.int64).max])
    tables = [
        segments_of(block).segments.rows(mapping.parts[begin:end] - offset - 1)
        for block, (offset, begin, end) in enumerate(zip(grouping.offsets, bounds[:-1], bounds[1:], strict=True))
        if end > begin
    ]
    return Merged(mapping.parts, rows, Segments.stacked(tables).merged(rows, len(kept)))


def number_segments(
    offsets: Indices,
    row: Sequence[int],
    segments_of: Callable[[int], BlockSegments],
    merged: Merged,
    given: NDArray[np.uint64],
    before: int,
    smallest: int,
) -> tuple[list[NDArray[np.uint64]], Segments]:
    """Assign the final numbers to the segments of one row of blocks, which share their z; rows come in the order of z.

    Parameters
    ----------
    offsets
        Offset of each block, ``(blocks,) int64``.
    row
        The blocks.
    segments_of
        Function that reads the segments of a block, by its position in the grid.
    merged
        The merged segments.
    given
        Numbers of all open segments that begin in earlier rows, by their row in ``merged.segments``, ``(n,)``. Those that begin
        in this row are added.
    before
        Number of segments that already have a number.
    smallest
        Segments with fewer voxels get the number 0.

    Returns
    -------
    maps
        For each block, the number of each of its segments, ``(n + 1,) uint64``; that of 0 is 0.
    table
        The segments that begin in this row, in the order of their numbers, which continue from `before`.
    """
    tables = [segments_of(block).segments for block in row]
    opened = [_open_of(merged, offsets[block], len(segments)) for block, segments in zip(row, tables, strict=True)]
    alone, begun = [], []
    for segments, (mine, rows) in zip(tables, opened, strict=True):
        closed = np.ones(len(segments), bool)
        closed[mine] = False
        alone.append(np.flatnonzero(closed))
        begun.append(rows[merged.segments.first[rows] == segments.first[mine]])
    starting = np.concatenate(begun)
    table = Segments.stacked(
        [*(segments.rows(rows) for segments, rows in zip(tables, alone, strict=True)), merged.segments.rows(starting)]
    )
    order = np.argsort(table.first, kind="stable")
    order = order[table.voxels[order] >= smallest]
    numbers = np.zeros(len(table), np.uint64)
    numbers[order] = np.arange(len(order), dtype=np.uint64) + np.uint64(before + 1)
    given[starting] = numbers[len(table) - len(starting) :]
    maps, end = [], 0
    for segments, rows, (mine, merged_rows) in zip(tables, alone, opened, strict=True):
        found = np.zeros(len(segments) + 1, np.uint64)
        found[rows + 1] = numbers[end : end + len(rows)]
        found[mine + 1] = given[merged_rows]
        end += len(rows)
        maps.append(found)
    return maps, table.rows(order)


@dataclass(frozen=True, slots=True)
class _Grouping:
    """Assignment of segments to groups of blocks; segments are numbered throughout the volume."""

    offsets: Indices
    """Offset of the segments of each block, ``(blocks,)``."""
    groups: Indices
    """Group of each block, ``(blocks,)``, numbered from 0."""

    @property
    def count(self) -> int:
        """Number of groups."""
        return int(self.groups.max(initial=-1)) + 1

    def __iter__(self) -> Iterator[list[int]]:
        """Iterate over the blocks of each group."""
        order = np.argsort(self.groups, kind="stable")
        return (blocks.tolist() for blocks in np.split(order, np.flatnonzero(np.diff(self.groups[order])) + 1))

    def between(self, matches: FaceMatches) -> FaceMatches:
        """Select what lies between segments of different groups."""
        same, contacts = self._alike(matches)
        return matches.where(~same, ~contacts)

    def within(self, block: int, matches: FaceMatches, segments: BlockSegments) -> Iterator[FaceMatches]:
        """Yield the data of a block about segments of its own group."""
        contacts, offset = segments.contacts, self.offsets[block]
        yield matches.where(*self._alike(matches))
        yield FaceMatches.of(replace(contacts, one=contacts.one + offset, other=contacts.other + offset))

    def _alike(self, matches: FaceMatches) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return whether both segments are in one group, for each pair that is the same segment and for each contact."""
        same, contacts = self._of(matches.same), matches.contacts
        return same[:, 0] == same[:, 1], self._of(contacts.one) == self._of(contacts.other)

    def _of(self, segments: Indices) -> Indices:
        """Return the group of each segment."""
        return self.groups[np.searchsorted(self.offsets, segments) - 1]


@dataclass(frozen=True, slots=True)
class _Mapping:
    """Map from segments to the merged segments they are part of; segments that are not listed stay the same."""

    parts: Indices
    """Listed segments, ``(n,)``, ascending."""
    targets: Indices
    """Smallest segment that each is merged with, ``(n,)``."""

    @classmethod
    def combined(cls, several: Sequence[_Mapping]) -> _Mapping:
        """Combine maps of different segments."""
        none = np.zeros(0, np.int64)
        parts = np.concatenate([none, *(each.parts for each in several)])
        targets = np.concatenate([none, *(each.targets for each in several)])
        order = np.argsort(parts)
        return cls(parts[order], targets[order])

    def of(self, segments: Indices) -> Indices:
        """Return the target of each of these segments."""
        known = np.isin(segments, self.parts)
        found = segments.copy()
        found[known] = self.targets[np.searchsorted(self.parts, segments[known])]
        return found

    def rename(self, matches: FaceMatches) -> FaceMatches:
        """Rename segments to their targets."""
        contacts = matches.contacts
        return FaceMatches(self.of(matches.same), replace(contacts, one=self.of(contacts.one), other=self.of(contacts.other)))

    def without(self, others: _Mapping) -> _Mapping:
        """Select segments that the other map does not list."""
        new = ~np.isin(self.parts, others.parts)
        return _Mapping(self.parts[new], self.targets[new])


def _merged(known: FaceMatches, open_: Indices, threshold: float) -> tuple[_Mapping, FaceMatches]:
    """Merge segments as far as their contacts decide, and return the undecided contacts.

    Parameters
    ----------
    known
        Pairs that are the same segment, and contacts.
    open_
        Segments whose contacts are not all known.
    threshold
        Mean boundary probability below which segments are merged.

    Returns
    -------
    mapping
        Map to the merged segments.
    undecided
        Contacts between merged segments that might still merge.
    """
    parts = np.unique(known.segments)
    roots = connected_components(len(parts), *np.searchsorted(parts, known.same).T)
    if not len(known.contacts):
        return _Mapping(parts, parts[roots]), FaceMatches.of(Contacts.empty())
    one, other = np.searchsorted(parts, known.contacts.one), np.searchsorted(parts, known.contacts.other)
    contacts = replace(known.contacts, one=one, other=other).renamed(roots)
    waiting = np.zeros(len(parts), bool)
    waiting[roots[np.isin(parts, open_)]] = True
    names, undecided = agglomerate(len(parts), contacts, threshold, waiting)
    left = contacts.renamed(names)
    left = left.where(undecided[left.one] & undecided[left.other])
    return _Mapping(parts, parts[names[roots]]), FaceMatches.of(left.renamed(parts))


def _groups(offsets: Indices, side: int) -> Indices:
    """Return the group of each block ``(blocks,)`` of a grid ``(z, y, x)``."""
    places = [np.arange(length) // side for length in offsets.shape]
    counts = tuple(int(place.max(initial=-1)) + 1 for place in places)
    groups: Indices = np.ravel_multi_index(np.meshgrid(*places, indexing="ij"), counts).ravel()
    return groups


def _open_of(merged: Merged, offset: np.int64, count: int) -> tuple[Indices, Indices]:
    """Return the open segments of a block, counted from 0, and the rows of the merged segments they are part of."""
    begin, end = np.searchsorted(merged.parts, [offset + 1, offset + count + 1])
    return merged.parts[begin:end] - offset - 1, merged.rows[begin:end]
