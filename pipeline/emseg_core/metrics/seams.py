"""Detect seams between blocks without ground truth, from label changes across block faces; NumPy only.

For each plane between two neighbouring slices along an axis, the share of voxels whose label changes across it is computed,
and the mean jump of the probabilities. If blocks were computed separately and put side by side, planes at their faces stand
out::

    share      . . . | . . . | . . .        | a face of a block
    of changes 3 4 3 9 4 3 3 8 4 3 4        faces 8.5, others 3.4: ratio 2.5

Real sections in patches of 128 x 128 pixels, each normalised and mirrored by itself, change 2.1 to 2.2 times as often at faces
(z 10 to 17), and 0.9 to 1.0 times in a single run. The test finds errors that extend along a face, not a single wrong tile;
`emseg verify` proves more, but takes longer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_STANDARD_ERRORS = 5.0
"""Smallest excess at faces, in standard errors, that counts as a seam.

Neighbouring planes are similar, so a lower bound would be exceeded by chance.
"""
MIN_RELATIVE_EXCESS = 0.05
"""Smallest excess at faces that counts as a seam, relative to the mean of the other planes.

With many planes, even the slightest excess is significant.
"""


class Planes:
    """Sums over the planes along one axis, collected part by part. Plane i lies between slices i and i + 1.

    Parameters
    ----------
    slices
        Number of slices along the axis.
    """

    def __init__(self, slices: int) -> None:
        self.pairs = np.zeros(max(0, slices - 1), np.int64)
        """Pairs of neighbouring voxels across each plane."""
        self.changes = np.zeros(max(0, slices - 1), np.int64)
        """Pairs with different labels."""
        self.jumps = np.zeros(max(0, slices - 1))
        """Sum of the jumps of probabilities over the pairs."""

    def add(self, first: int, axis: int, labels: NDArray[np.uint8], probabilities: NDArray[np.uint8] | None) -> None:
        """Add the planes between the slices of a part.

        Parameters
        ----------
        first
            Index of the part's first slice along the axis.
        axis
            The axis, 0 to 2 for z, y, x.
        labels
            Class of each voxel, ``(z, y, x) uint8``.
        probabilities
            Stored probabilities, ``(class, z, y, x) uint8`` from 0 to 254, if there are any. A jump is half of the sum of the
            classes' differences, 0 to 1.
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
    """The difference between planes at faces and the others."""

    faces: int
    """Number of planes at faces."""
    others: int
    """Number of planes they are compared with."""
    at_faces: float
    """Mean over the planes at faces."""
    elsewhere: float
    """Mean over the other planes."""
    z: float
    """Difference of the two means in standard errors, from the spread of the other planes; 0 if it is not known."""

    @property
    def ratio(self) -> float:
        """Ratio of faces to others; 1 if both are 0."""
        if self.elsewhere == 0:
            return 1.0 if self.at_faces == 0 else float("inf")
        return self.at_faces / self.elsewhere

    @property
    def suspect(self) -> bool:
        """Whether there seems to be a seam."""
        return self.z >= MIN_STANDARD_ERRORS and self.at_faces - self.elsewhere >= MIN_RELATIVE_EXCESS * self.elsewhere


def excess(
    sums: NDArray[np.float64] | NDArray[np.int64], pairs: NDArray[np.int64], faces: NDArray[np.bool_], others: NDArray[np.bool_]
) -> Excess | None:
    """Measure how far some planes stand out from others.

    Parameters
    ----------
    sums
        Sums over the pairs across each plane, ``(plane,)``.
    pairs
        Pairs across each plane, ``(plane,) int64``; planes without any are left out.
    faces
        Whether each plane is at a face, ``(plane,) bool``.
    others
        Whether each plane is compared with those, ``(plane,) bool``.

    Returns
    -------
    Excess or None
        None if there are no planes at faces, or fewer than three others.

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
