"""What one block knows of the segments in it, and what two blocks know together: all that the reduction is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import cc3d
import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple, triple
from emseg.instances.agglomerate import agglomerate
from emseg.instances.contacts import Contacts, Indices, contacts_within
from emseg.instances.fragments import Fragments, components, watershed
from emseg.specs.labelling import Connectivity, Labelling


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments, or parts of some, one row each; all of ``(n,) int64``, but for the last three of ``(n, 3)`` (z, y, x)."""

    first: Indices
    """Position in the volume of the first voxel: z, then y, then x counts."""
    voxels: Indices
    start: Indices
    """Corner of the bounding box."""
    stop: Indices
    """The corner beyond the opposite one."""
    sums: Indices
    """Sums of the voxels' coordinates."""

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def none(cls) -> Segments:
        """No segment."""
        nothing, nowhere = np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
        return cls(nothing, nothing, nowhere, nowhere, nowhere)

    @classmethod
    def stacked(cls, tables: Sequence[Segments]) -> Segments:
        """The rows of several tables."""
        columns = {field.name: [getattr(table, field.name) for table in (cls.none(), *tables)] for field in fields(cls)}
        return cls(**{name: np.concatenate(parts) for name, parts in columns.items()})

    def merged(self, into: Indices, count: int) -> Segments:
        """`count` segments, of which these parts are; part i is of segment ``into[i]``."""
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
        """Some of the rows."""
        return replace(self, **{field.name: getattr(self, field.name)[kept] for field in fields(self)})


@dataclass(frozen=True, slots=True)
class Piece:
    """What is known of the segments of one block, which are numbered from 1 in the order of their first voxels."""

    segments: Segments
    """Row i is of segment i + 1."""
    contacts: Contacts
    """Between segments that might still merge."""
    joints: tuple[NDArray[np.bool_], ...]
    """For each axis, whether the voxels of the last plane are joined to the next block's."""
    totals: tuple[NDArray[np.uint16], ...]
    """For each axis, the sum of the stored probabilities on both sides of that face."""


@dataclass(frozen=True, slots=True)
class Seam:
    """What is known of the segments on both sides of a block's faces; segments are numbered throughout the volume."""

    same: Indices
    """Pairs of segments that are one, ``(n, 2)``."""
    contacts: Contacts

    @classmethod
    def of(cls, contacts: Contacts) -> Seam:
        """Contacts alone."""
        return cls(np.zeros((0, 2), np.int64), contacts)

    @classmethod
    def joined(cls, seams: Iterable[Seam]) -> Seam:
        """What is known together."""
        several = [cls.of(Contacts.none()), *seams]
        return cls(np.concatenate([seam.same for seam in several]), Contacts.joined([seam.contacts for seam in several]))

    @property
    def segments(self) -> Indices:
        """The segments of which something is known; some come more than once."""
        return np.concatenate([self.same.ravel(), self.contacts.one, self.contacts.other])

    def where(self, same: NDArray[np.bool_], contacts: NDArray[np.bool_]) -> Seam:
        """Some of the pairs, and some of the contacts."""
        return Seam(self.same[same], self.contacts.where(contacts))


def cut(
    stored: NDArray[np.uint8], window: Box, box: Box, shape: Triple, labelling: Labelling
) -> tuple[NDArray[np.uint32], Piece]:
    """The segments of a block ``(z, y, x) uint32``, and what there is to know of them.

    Parameters
    ----------
    stored
        What a run has stored in `window`, ``(z, y, x)``: probabilities of the boundary, or for components labels.
    window
        `box` with the margin of `labelling`, as far as there are voxels. Both count from the region's first voxel.
    shape
        Shape (z, y, x) of the region.
    """
    own = stored[box.relative_to(window.start).slices()]
    if labelling.method == "components":
        ids = components(own == labelling.channel, labelling.connectivity)
        return ids, Piece(_segments(ids, box, shape), Contacts.none(), (), ())
    found = watershed(stored, window, box, labelling)
    ids, contacts = _merged(found.ids, own, box, shape, labelling)
    return ids, Piece(_segments(ids, box, shape), contacts, found.joints, _totals(stored, window, box, found))


def sew(piece: Piece, box: Box, shape: Triple, labelling: Labelling, read: Callable[[Box], NDArray[np.int64]]) -> Seam:
    """What lies across the faces of a block, each pair of voxels of two blocks counted by one of the two.

    Parameters
    ----------
    read
        The segments of a box, ``(z, y, x) int64``, numbered throughout the volume, 0 for none.
    """
    pairs, contacts = [np.zeros((0, 2), np.int64)], []
    if labelling.method == "components":
        for offset in _half(labelling.connectivity):
            for near, far in _across(box, offset, shape):
                pairs.append(_distinct(read(near), read(far)))
        return Seam(_unique(pairs), Contacts.none())
    for axis in range(3):
        offset = triple(int(other == axis) for other in range(3))
        for near, far in _across(box, offset, shape):
            one, other = read(near), read(far)
            joint = piece.joints[axis]
            pairs.append(_distinct(one[joint], other[joint]))
            faces = 3 * _places(near, shape) + axis
            apart = ~joint
            total = piece.totals[axis].astype(np.int64)
            contacts.append(Contacts.between(one[apart], other[apart], total[apart], faces[apart]))
    return Seam(_unique(pairs), Contacts.joined(contacts))


def _merged(
    ids: NDArray[np.uint32], boundary: NDArray[np.uint8], box: Box, shape: Triple, labelling: Labelling
) -> tuple[NDArray[np.uint32], Contacts]:
    """Fragments of a block merged as far as the block alone can tell, and what is left open."""
    count = int(ids.max(initial=0)) + 1
    contacts = contacts_within(ids, boundary, _places(box, shape))
    names, undecided = agglomerate(count, contacts, labelling.threshold, _open(ids, count, box, shape))
    kept = np.flatnonzero(names == np.arange(count))
    numbers = np.zeros(count, np.int64)
    numbers[kept] = np.arange(len(kept))  # 0, which is no segment, stays 0
    left = contacts.renamed(names)
    left = left.where(undecided[left.one] & undecided[left.other])
    return numbers[names].astype(np.uint32)[ids], left.renamed(numbers)


def _open(ids: NDArray[np.uint32], count: int, box: Box, shape: Triple) -> NDArray[np.bool_]:
    """Which fragments lie at a face with something beyond it."""
    found = np.zeros(count, bool)
    for axis in range(3):
        for plane, beyond in ((0, box.start[axis] > 0), (-1, box.stop[axis] < shape[axis])):
            if beyond:
                found[np.take(ids, plane, axis)] = True
    return found


def _segments(ids: NDArray[np.uint32], box: Box, shape: Triple) -> Segments:
    """What there is to know of each segment of a block."""
    count = int(ids.max(initial=0)) + 1
    flat = ids.ravel()
    first = np.zeros(count, np.int64)
    first[flat[::-1]] = _places(box, shape).ravel()[::-1]  # the last assignment wins: that of the first voxel
    found = cc3d.statistics(ids, no_slice_conversion=True)
    bounds = np.asarray(found["bounding_boxes"], np.int64).reshape(count, 6)
    grids = np.meshgrid(*(np.arange(*ends) for ends in zip(box.start, box.stop, strict=True)), indexing="ij", sparse=True)
    sums = [np.bincount(flat, np.broadcast_to(grid, ids.shape).ravel(), count) for grid in grids]
    start = np.array(box.start)
    return Segments(
        first[1:],
        np.asarray(found["voxel_counts"], np.int64)[1:],
        bounds[1:, 0::2] + start,
        bounds[1:, 1::2] + 1 + start,
        np.stack(sums, axis=1).astype(np.int64)[1:],
    )


def _totals(stored: NDArray[np.uint8], window: Box, box: Box, found: Fragments) -> tuple[NDArray[np.uint16], ...]:
    """For each axis, the sum of the probabilities on both sides of the block's last plane; empty where nothing follows."""
    totals = []
    for axis in range(3):
        if not found.joints[axis].size:
            totals.append(np.zeros((0, 0, 0), np.uint16))
            continue
        last = _plane(box, axis)
        step = triple(int(other == axis) for other in range(3))
        near, far = (stored[plane.relative_to(window.start).slices()] for plane in (last, last.shift(step)))
        totals.append(near.astype(np.uint16) + far)
    return tuple(totals)


def _plane(box: Box, axis: int) -> Box:
    """The last plane of a box along an axis."""
    start = list(box.start)
    start[axis] = box.stop[axis] - 1
    return Box(triple(start), box.stop)


def _places(box: Box, shape: Triple) -> Indices:
    """Position in the volume of each voxel of a box, ``(z, y, x) int64``."""
    z, y, x = np.meshgrid(*(np.arange(*ends) for ends in zip(box.start, box.stop, strict=True)), indexing="ij", sparse=True)
    places: Indices = (z * shape[1] + y) * shape[2] + x
    return places


def _half(connectivity: Connectivity) -> Iterator[Triple]:
    """One of each two opposite steps from a voxel to its neighbours."""
    for step in map(triple, itertools.product((-1, 0, 1), repeat=3)):
        if step > (0, 0, 0) and sum(map(abs, step)) <= {6: 1, 18: 2, 26: 3}[connectivity]:
            yield step


def _across(box: Box, step: Triple, shape: Triple) -> Iterator[tuple[Box, Box]]:
    """Boxes of voxels of a block, and of those a step from them, that lie beyond it; a pair of voxels may come twice."""
    for axis in range(3):
        if not step[axis]:
            continue
        start, stop = list(box.start), list(box.stop)
        start[axis] = box.stop[axis] - 1 if step[axis] > 0 else box.start[axis]
        stop[axis] = start[axis] + 1
        start = [max(a, -s) for a, s in zip(start, step, strict=True)]
        stop = [min(b, length - s) for b, length, s in zip(stop, shape, step, strict=True)]
        if all(a < b for a, b in zip(start, stop, strict=True)):
            near = Box(triple(start), triple(stop))
            yield near, near.shift(step)


def _distinct(one: Indices, other: Indices) -> Indices:
    """The pairs of segments that face each other, ``(n, 2)``."""
    there = (one > 0) & (other > 0)
    return _unique([np.stack([one[there], other[there]], axis=1)])


def _unique(pairs: list[Indices]) -> Indices:
    found: Indices = np.unique(np.concatenate(pairs), axis=0)
    return found
