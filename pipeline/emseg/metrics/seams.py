"""A detector of seams that needs no truth: do labels change more often across the faces of blocks? NumPy only.

For each plane between two neighbouring slices along an axis, the share of voxels whose label changes across it is taken, and
the mean jump of the probabilities. Where blocks were computed apart and put side by side, planes at their faces stand out::

    share      . . . | . . . | . . .        | a face of a block
    of changes 3 4 3 9 4 3 3 8 4 3 4        faces 8.5, others 3.4: ratio 2.5

Real sections in patches of 128 x 128 pixels, each normalised and mirrored by itself, change 2.1 to 2.2 times as often at faces
(z 10 to 17), and 0.9 to 1.0 times in one run. It finds what is wrong everywhere along a face, not a single wrong tile;
`emseg verify` proves more, and takes longer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SUSPECT = 5.0
"""Standard errors from which on faces stand out. Neighbouring planes are alike, so fewer would be found by chance."""
LEAST_EXCESS = 0.05
"""Least excess at faces, as a share of the others' mean, that counts: with many planes, the slightest one stands out."""


class Planes:
    """Sums over the planes along one axis, gathered piece by piece; plane i lies between slices i and i + 1."""

    def __init__(self, slices: int) -> None:
        self.pairs = np.zeros(max(0, slices - 1), np.int64)
        """Pairs of neighbours across each plane."""
        self.changes = np.zeros(max(0, slices - 1), np.int64)
        """Those with different labels."""
        self.jumps = np.zeros(max(0, slices - 1))
        """Sum of the jumps of their probabilities."""

    def add(self, first: int, axis: int, labels: NDArray[np.uint8], probabilities: NDArray[np.uint8] | None) -> None:
        """Count what lies between the slices of a piece.

        Parameters
        ----------
        first
            Number of the piece's first slice along the axis.
        axis
            Which of z, y, x it is: 0, 1 or 2.
        labels
            Class of each voxel, ``(z, y, x) uint8``.
        probabilities
            Stored probabilities, ``(class, z, y, x) uint8`` from 0 to 254, if there are any. A jump is half of the sum of the
            classes' differences: from 0 to 1.
        """
        if labels.shape[axis] < 2:
            return
        others = tuple(other for other in range(3) if other != axis)
        places = slice(first, first + labels.shape[axis] - 1)
        changed = np.count_nonzero(np.diff(labels, axis=axis), axis=others)
        self.pairs[places] += labels.size // labels.shape[axis]
        self.changes[places] += changed
        if probabilities is not None:
            steps = np.abs(np.diff(probabilities.astype(np.int16), axis=axis + 1)).sum(axis=0, dtype=np.int64)
            self.jumps[places] += steps.sum(axis=others) / (2 * 254)


@dataclass(frozen=True, slots=True)
class Excess:
    """How far faces stand out from the other planes."""

    faces: int
    """Planes at faces."""
    others: int
    """Planes that they are compared with."""
    at_faces: float
    """Mean over the planes at faces."""
    elsewhere: float
    """Mean over the others."""
    z: float
    """Difference of the two in standard errors, from the spread of the other planes; 0 where nothing can be told."""

    @property
    def ratio(self) -> float:
        """Faces to others; 1 if there is nothing at either."""
        if self.elsewhere == 0:
            return 1.0 if self.at_faces == 0 else float("inf")
        return self.at_faces / self.elsewhere

    @property
    def suspect(self) -> bool:
        """Whether there seems to be a seam."""
        return self.z >= SUSPECT and self.at_faces - self.elsewhere >= LEAST_EXCESS * self.elsewhere


def excess(
    sums: NDArray[np.float64] | NDArray[np.int64],
    pairs: NDArray[np.int64],
    faces: NDArray[np.bool_],
    others: NDArray[np.bool_],
) -> Excess | None:
    """How far some planes stand out from others; None if there are none, or fewer than three others.

    Parameters
    ----------
    sums
        What was summed over the pairs across each plane, ``(plane,)``.
    pairs
        Pairs across each plane, ``(plane,) int64``; planes without any are left out.
    faces
        Which planes are faces, ``(plane,) bool``.
    others
        Which planes they are compared with, ``(plane,) bool``.

    Examples
    --------
    >>> faces = np.arange(1, 12) % 4 == 0
    >>> found = excess(np.array([3, 4, 3, 9, 4, 3, 3, 8, 4, 3, 4]), np.full(11, 100), faces, ~faces)
    >>> found.faces, round(found.ratio, 2), found.suspect
    (2, 2.47, True)
    """
    shares = sums / np.maximum(pairs, 1)
    at, off = shares[faces & (pairs > 0)], shares[others & (pairs > 0)]
    if not len(at) or len(off) < 3:
        return None
    spread = float(off.std(ddof=1)) * np.sqrt(1 / len(at) + 1 / len(off))
    difference = float(at.mean() - off.mean())
    z = difference / spread if spread else (float("inf") if difference > 0 else 0.0)
    return Excess(len(at), len(off), float(at.mean()), float(off.mean()), float(z))
