"""Segments of one block, and data about its faces: the input of `emseg_core.instances.face_matches`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import cc3d
import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple, triple
from emseg_core.instances.agglomerate import agglomerate
from emseg_core.instances.contacts import Contacts, Indices, contacts_within, voxel_places
from emseg_core.instances.fragments import Fragments, components, watershed
from emseg_core.specs.labelling import Labelling


@dataclass(frozen=True, slots=True)
class Segments:
    """Table of segments or of parts of segments, one row each.

    All columns are ``(n,) int64``, except for the last three, ``(n, 3)`` in the order (z, y, x).
    """

    first: Indices
    """Position in the volume of the first voxel, ordered by z, then y, then x."""
    voxels: Indices
    """Number of voxels."""
    start: Indices
    """First corner of the bounding box."""
    stop: Indices
    """One past the last corner of the bounding box."""
    sums: Indices
    """Sums of the voxels' coordinates."""

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def empty(cls) -> Segments:
        """Return a table without rows."""
        nothing, nowhere = np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
        return cls(nothing, nothing, nowhere, nowhere, nowhere)

    @classmethod
    def stacked(cls, tables: Sequence[Segments]) -> Segments:
        """Concatenate tables.

        Parameters
        ----------
        tables
            Tables, at least one.

        Returns
        -------
        Segments
            Their rows, in order.
        """
        columns = {field.name: [getattr(table, field.name) for table in (cls.empty(), *tables)] for field in fields(cls)}
        return cls(**{name: np.concatenate(parts) for name, parts in columns.items()})

    def merged(self, into: Indices, count: int) -> Segments:
        """Combine parts into segments.

        Parameters
        ----------
        into
            Segment of each row, counted from 0, ``(n,)``.
        count
            Number of segments.

        Returns
        -------
        Segments
            Table of `count` segments.
        """
        least = np.iinfo(np.int64).max
        first, start = np.full(count, least), np.full((count, 3), least)
        stop, voxels, sums = np.zeros((count, 3), np.int64), np.zeros(count, np.int64), np.zeros((count, 3), np.int64)
        np.minimum.at(first, into, self.first)
        np.minimum.at(start, into, self.start)
        np.maximum.at(stop, into, self.stop)
        np.add.at(voxels, into, self.voxels)
        np.add.at(sums, into, self.sums)
        return Segments(first, voxels, start, stop, sums)

    def rows(self, kept: NDArray[np.bool_] | Indices) -> Segments:
        """Select rows.

        Parameters
        ----------
        kept
            Whether each row is kept, ``(n,) bool``, or indices of rows.

        Returns
        -------
        Segments
            These rows.
        """
        return replace(self, **{field.name: getattr(self, field.name)[kept] for field in fields(self)})


@dataclass(frozen=True, slots=True)
class BlockSegments:
    """Segments of one block, which are numbered from 1 in the order of their first voxels."""

    segments: Segments
    """Row i describes segment i + 1."""
    contacts: Contacts
    """Contacts between segments that might still merge."""
    face_links: tuple[NDArray[np.bool_], ...]
    """For each axis, whether the voxels of the last plane are linked to the next block's."""
    face_totals: tuple[NDArray[np.uint16], ...]
    """For each axis, the sum of the stored probabilities on both sides of that face."""


def label_block(
    stored: NDArray[np.uint8], window: Box, box: Box, shape: Triple, labelling: Labelling
) -> tuple[NDArray[np.uint32], BlockSegments]:
    """Label the segments of one block.

    Parameters
    ----------
    stored
        Stored values of a run in `window`, ``(z, y, x)``: boundary probabilities for the watershed, labels for components.
    window
        `box` extended by the margin of `labelling`, clipped to the region. Both boxes count from the region's first voxel.
    box
        The block.
    shape
        Shape (z, y, x) of the region, in voxels.
    labelling
        Method and parameters.

    Returns
    -------
    ids
        Segment of each voxel, ``(z, y, x) uint32``; 0 is background.
    segments
        Properties of the segments, and links across the block's faces.
    """
    own = stored[box.relative_to(window.start).slices()]
    if labelling.method == "components":
        ids = components(own == labelling.channel, labelling.connectivity)
        return ids, BlockSegments(_segments(ids, box, shape), Contacts.empty(), (), ())
    found = watershed(stored, window, box, labelling)
    ids, contacts = _merged(found.ids, own, box, shape, labelling)
    return ids, BlockSegments(_segments(ids, box, shape), contacts, found.face_links, _totals(stored, window, box, found))


def _merged(
    ids: NDArray[np.uint32], boundary: NDArray[np.uint8], box: Box, shape: Triple, labelling: Labelling
) -> tuple[NDArray[np.uint32], Contacts]:
    """Merge the fragments of a block as far as the block alone can decide, and return the contacts that are left open."""
    count = int(ids.max(initial=0)) + 1
    contacts = contacts_within(ids, boundary, voxel_places(box, shape))
    names, undecided = agglomerate(count, contacts, labelling.threshold, _open(ids, count, box, shape))
    kept = np.flatnonzero(names == np.arange(count))
    numbers = np.zeros(count, np.int64)
    numbers[kept] = np.arange(len(kept))  # 0, which is no segment, stays 0
    left = contacts.renamed(names)
    left = left.where(undecided[left.one] & undecided[left.other])
    return numbers[names].astype(np.uint32)[ids], left.renamed(numbers)


def _open(ids: NDArray[np.uint32], count: int, box: Box, shape: Triple) -> NDArray[np.bool_]:
    """Return which fragments touch a face that has voxels beyond it."""
    found = np.zeros(count, bool)
    for axis in range(3):
        for plane, beyond in ((0, box.start[axis] > 0), (-1, box.stop[axis] < shape[axis])):
            if beyond:
                found[np.take(ids, plane, axis)] = True
    return found


def _segments(ids: NDArray[np.uint32], box: Box, shape: Triple) -> Segments:
    """Measure the segments of a block."""
    count = int(ids.max(initial=0)) + 1
    flat = ids.ravel()
    first = np.zeros(count, np.int64)
    places = voxel_places(box, shape).ravel()
    first[flat[::-1]] = places[::-1]  # reversed, since the last assignment wins: that of the first voxel
    found = cc3d.statistics(ids, no_slice_conversion=True)
    bounds = np.asarray(found["bounding_boxes"], np.int64).reshape(count, 6)
    sums = [np.bincount(flat, np.broadcast_to(grid, ids.shape).ravel(), count) for grid in np.ogrid[box.slices()]]
    start = np.array(box.start)
    return Segments(
        first[1:],
        np.asarray(found["voxel_counts"], np.int64)[1:],
        bounds[1:, 0::2] + start,
        bounds[1:, 1::2] + 1 + start,
        np.stack(sums, axis=1).astype(np.int64)[1:],
    )


def _totals(stored: NDArray[np.uint8], window: Box, box: Box, found: Fragments) -> tuple[NDArray[np.uint16], ...]:
    """Return for each axis the sum of probabilities on both sides of the last plane; empty at the end of the region."""
    totals = []
    for axis in range(3):
        if not found.face_links[axis].size:
            totals.append(np.zeros((0, 0, 0), np.uint16))
            continue
        last = _plane(box, axis)
        step = triple(int(other == axis) for other in range(3))
        near, far = (stored[plane.relative_to(window.start).slices()] for plane in (last, last.shift(step)))
        totals.append(near.astype(np.uint16) + far)
    return tuple(totals)


def _plane(box: Box, axis: int) -> Box:
    """Return the last plane of a box along an axis."""
    start = list(box.start)
    start[axis] = box.stop[axis] - 1
    return Box(triple(start), box.stop)
