"""Voxel-wise scores of membrane detection: counts, precision, recall and F1; NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

IGNORE = 255
"""Class of voxels to ignore."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of true positives, false positives and false negatives. Counts of parts add up to those of the whole."""

    found: int
    """Membrane in both prediction and truth (true positives)."""
    invented: int
    """Membrane in the prediction only (false positives)."""
    missed: int
    """Membrane in the truth only (false negatives)."""

    def __add__(self, other: Self) -> Counts:
        return Counts(self.found + other.found, self.invented + other.invented, self.missed + other.missed)

    @property
    def precision(self) -> float:
        """Share of the predicted membrane that is true; 0 if none is predicted."""
        return _share(self.found, self.found + self.invented)

    @property
    def recall(self) -> float:
        """Share of the true membrane that is predicted; 0 if there is none."""
        return _share(self.found, self.found + self.missed)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if there is no membrane in either."""
        return _share(2 * self.found, 2 * self.found + self.invented + self.missed)

    @property
    def iou(self) -> float:
        """Intersection over union of prediction and truth; 0 if there is no membrane in either."""
        return _share(self.found, self.found + self.invented + self.missed)


def count(prediction: NDArray[Any], truth: NDArray[np.uint8], *, membrane: int = 1) -> Counts:
    """Count membrane over all voxels whose truth is not 255.

    Parameters
    ----------
    prediction
        Class of each voxel, in the shape of `truth`.
    truth
        Class of each voxel, ``uint8``; 255 is ignored.
    membrane
        The class to count.

    Returns
    -------
    Counts
        True positives, false positives and false negatives.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction has shape {prediction.shape}, but the truth has shape {truth.shape}")
    predicted, true = prediction == membrane, truth == membrane
    return Counts(
        found=int(np.count_nonzero(predicted & true)),
        invented=int(np.count_nonzero(predicted & ~true & (truth != IGNORE))),
        missed=int(np.count_nonzero(true & ~predicted)),
    )


def f1(prediction: NDArray[Any], truth: NDArray[np.uint8], *, membrane: int = 1) -> float:
    """Return the F1 score of the membrane, 0 to 1, over all voxels whose truth is not 255; see `count`.

    Parameters
    ----------
    prediction
        Classes ``(z, y, x)``.
    truth
        True classes ``(z, y, x) uint8``, 255 where unknown.
    membrane
        Label of the membrane.

    Returns
    -------
    float
        The score.
    """
    return count(prediction, truth, membrane=membrane).f1


def best_threshold(scores: NDArray[np.floating[Any]], truth: NDArray[np.uint8]) -> tuple[float, float]:
    """Find the threshold on a score with the best F1.

    Every distinct score is tried with a single sort: in descending order of scores, the first k voxels are the prediction.

    Parameters
    ----------
    scores
        Numbers that are higher where membrane is more likely, in the shape of `truth`.
    truth
        Class of each voxel, ``uint8``: 1 is membrane, 255 is ignored.

    Returns
    -------
    threshold
        Voxels with a score above it are called membrane.
    f1
        F1 at this threshold.

    Raises
    ------
    ValueError
        If no voxel is membrane.

    Examples
    --------
    >>> threshold, best = best_threshold(np.array([0.1, 0.4, 0.6, 0.9]), np.array([0, 1, 0, 1], np.uint8))
    >>> round(threshold, 2), round(best, 2)
    (0.25, 0.8)
    """
    known = truth != IGNORE
    order = np.argsort(-scores[known], kind="stable")
    falling, true = scores[known][order].astype(np.float64), truth[known][order] == 1
    members = np.count_nonzero(true)
    if not members:
        raise ValueError("the truth has no membrane, so no threshold can be chosen")
    last = np.append(np.flatnonzero(np.diff(falling)), falling.size - 1)  # last index of each distinct score
    values = 2 * np.cumsum(true)[last] / (last + 1 + members)
    best = int(np.argmax(values))
    below = falling[last[best] + 1] if last[best] + 1 < falling.size else falling[-1] - 1
    return float((falling[last[best]] + below) / 2), float(values[best])


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
