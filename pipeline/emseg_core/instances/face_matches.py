"""Matches of segments across the faces between blocks: segments on both sides of a face are compared voxel by voxel."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple, triple
from emseg_core.instances.block_segments import BlockSegments
from emseg_core.instances.contacts import Contacts, Indices, voxel_places
from emseg_core.specs.labelling import Connectivity, Labelling


@dataclass(frozen=True, slots=True)
class FaceMatches:
    """Segments that match or touch across faces between blocks; segments are numbered throughout the volume."""

    same: Indices
    """Pairs of segments that are the same segment, ``(n, 2)``."""
    contacts: Contacts
    """Contacts between segments that touch."""

    @classmethod
    def of(cls, contacts: Contacts) -> FaceMatches:
        """Return matches that consist of contacts only."""
        return cls(np.zeros((0, 2), np.int64), contacts)

    @classmethod
    def combined(cls, tables: Iterable[FaceMatches]) -> FaceMatches:
        """Combine several tables."""
        several = [cls.of(Contacts.empty()), *tables]
        return cls(np.concatenate([table.same for table in several]), Contacts.combined([table.contacts for table in several]))

    @property
    def segments(self) -> Indices:
        """All segments that are mentioned, possibly several times."""
        return np.concatenate([self.same.ravel(), self.contacts.one, self.contacts.other])

    def where(self, same: NDArray[np.bool_], contacts: NDArray[np.bool_]) -> FaceMatches:
        """Select pairs and contacts."""
        return FaceMatches(self.same[same], self.contacts.where(contacts))


def match_faces(
    segments: BlockSegments, box: Box, shape: Triple, labelling: Labelling, read: Callable[[Box], NDArray[np.int64]]
) -> FaceMatches:
    """Match segments across the faces of a block. Each pair of voxels of two blocks is counted by one of the two.

    Parameters
    ----------
    segments
        Segments of the block.
    box
        The block, counted from the region's first voxel.
    shape
        Shape (z, y, x) of the region, in voxels.
    labelling
        Method and parameters.
    read
        Function that reads the segments of a box, ``(z, y, x) int64``, numbered throughout the volume; 0 is background.

    Returns
    -------
    FaceMatches
        Segments that match or touch.
    """
    pairs, contacts = [np.zeros((0, 2), np.int64)], []
    if labelling.method == "components":
        for offset in _half(labelling.connectivity):
            for near, far in _across(box, offset, shape):
                pairs.append(_distinct(read(near), read(far)))
        return FaceMatches(_unique(pairs), Contacts.empty())
    for axis in range(3):
        offset = triple(int(other == axis) for other in range(3))
        for near, far in _across(box, offset, shape):
            one, other = read(near), read(far)
            linked = segments.face_links[axis]
            pairs.append(_distinct(one[linked], other[linked]))
            faces = 3 * voxel_places(near, shape) + axis
            apart = ~linked
            total = segments.face_totals[axis].astype(np.int64)
            contacts.append(Contacts.between(one[apart], other[apart], total[apart], faces[apart]))
    return FaceMatches(_unique(pairs), Contacts.combined(contacts))


def _half(connectivity: Connectivity) -> Iterator[Triple]:
    """Yield one of every two opposite steps from a voxel to its neighbours."""
    for step in map(triple, itertools.product((-1, 0, 1), repeat=3)):
        if step > (0, 0, 0) and sum(map(abs, step)) <= {6: 1, 18: 2, 26: 3}[connectivity]:
            yield step


def _across(box: Box, step: Triple, shape: Triple) -> Iterator[tuple[Box, Box]]:
    """Yield pairs of boxes: voxels of a block, and those one step away outside it; a pair of voxels may occur twice."""
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
    """Return the pairs of segments that face each other, ``(n, 2)``."""
    there = (one > 0) & (other > 0)
    return _unique([np.stack([one[there], other[there]], axis=1)])


def _unique(pairs: list[Indices]) -> Indices:
    found: Indices = np.unique(np.concatenate(pairs), axis=0)
    return found
