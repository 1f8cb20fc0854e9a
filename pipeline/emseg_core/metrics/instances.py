"""Compare two instance labellings of a volume through the table of voxels that segments share; NumPy only.

Only the table is kept, so a volume of any size can be compared part by part. Voxels whose truth is 0 are ignored. Where the
proposal is 0, that counts as one more segment, as in scikit-image's ``adapted_rand_error`` and ``variation_of_information``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.metrics.partition import Overlap, Scores, scores


class Contingency:
    """Numbers of voxels that each pair of segments shares, added up part by part."""

    def __init__(self) -> None:
        self._pairs = np.zeros((0, 2), np.uint64)
        self._shared = np.zeros(0, np.int64)

    def add(self, proposal: NDArray[Any], truth: NDArray[Any]) -> None:
        """Count the voxels of a part.

        Parameters
        ----------
        proposal, truth
            Segment of each voxel, non-negative integers of one shape.

        Raises
        ------
        ValueError
            If the shapes differ.
        """
        if proposal.shape != truth.shape:
            raise ValueError(f"the proposal has shape {proposal.shape}, but the truth has shape {truth.shape}")
        known = truth != 0
        own, proposed = np.unique(proposal[known], return_inverse=True)
        wanted, true = np.unique(truth[known], return_inverse=True)
        cells, shared = np.unique(proposed * len(wanted) + true, return_counts=True)
        row, column = np.divmod(cells, max(len(wanted), 1))
        pairs = np.stack([own[row].astype(np.uint64), wanted[column].astype(np.uint64)], axis=1)
        pairs, place = np.unique(np.concatenate([self._pairs, pairs]), axis=0, return_inverse=True)
        self._shared = np.bincount(place, np.concatenate([self._shared, shared]), len(pairs)).astype(np.int64)
        self._pairs = pairs

    def compared(self, worst: int) -> Comparison:
        """Compute the scores, and find the worst segments.

        Parameters
        ----------
        worst
            Number of segments to list of each kind.

        Returns
        -------
        Comparison
            Scores, and the worst splits and merges.

        Raises
        ------
        ValueError
            If the truth has no segment.
        """
        if not len(self._shared):
            raise ValueError("the truth has no segment, so there is nothing to compare")
        proposed, own = np.unique(self._pairs[:, 0], return_inverse=True)
        true, wanted = np.unique(self._pairs[:, 1], return_inverse=True)
        sizes = [np.bincount(place, self._shared).astype(np.int64) for place in (own, wanted)]
        found = scores(Overlap(self._shared, *sizes))
        return Comparison(
            found,
            int(len(proposed) - (proposed[:1] == 0).sum()),
            len(true),
            _worst(wanted, true, self._pairs[:, 0], self._shared, worst),
            _worst(own, proposed, self._pairs[:, 1], self._shared, worst),
        )


@dataclass(frozen=True, slots=True)
class SegmentError:
    """A segment that overlaps several segments of the other labelling."""

    id: int
    """Number of the segment."""
    voxels: int
    """Voxels of the segment that are counted."""
    outside: int
    """Voxels outside the other segment that overlaps it most."""
    parts: int
    """Segments of the other labelling that overlap it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Similarity of two labellings."""

    scores: Scores
    """Scores over all counted voxels."""
    proposed: int
    """Segments of the proposal where the truth has some."""
    true: int
    """Segments of the truth."""
    splits: tuple[SegmentError, ...]
    """Segments of the truth, ordered by the number of voxels outside their largest part, the most first."""
    merges: tuple[SegmentError, ...]
    """Segments of the proposal, in the same order."""

    @property
    def cremi(self) -> float:
        """Score of the CREMI challenge (https://cremi.org/metrics/).

        It is the geometric mean of the variation of information in bits and the adapted Rand error.
        """
        return sqrt(self.scores.variation * self.scores.adapted_rand_error)


def _worst(
    place: NDArray[np.intp], ids: NDArray[np.uint64], others: NDArray[np.uint64], shared: NDArray[np.int64], most: int
) -> tuple[SegmentError, ...]:
    """Return the segments with most voxels outside their largest part; 0 is background."""
    voxels = np.bincount(place, shared).astype(np.int64)
    largest = np.zeros(len(ids), np.int64)
    np.maximum.at(largest, place, shared)
    parts = np.bincount(place[others != 0], minlength=len(ids))
    outside = np.where(ids == 0, 0, voxels - largest)
    order = np.argsort(-outside, kind="stable")[:most]
    return tuple(SegmentError(int(ids[i]), int(voxels[i]), int(outside[i]), int(parts[i])) for i in order if outside[i])
