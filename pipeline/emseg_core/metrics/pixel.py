"""Voxel-wise scores: a confusion table, and histograms of probabilities from which all curves follow; NumPy only.

Tables and histograms of parts add up to those of the whole, so a volume of any size can be scored slice by slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from emseg_core.metrics.membrane import IGNORE, Counts

LEVELS = 255
"""Number of stored probabilities, which are integers from 0 to 254 for 0 to 1."""


def confusion(prediction: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Count voxels by true and predicted class. Voxels whose truth is 255 are left out.

    Parameters
    ----------
    prediction
        Class of each voxel, ``uint8``.
    truth
        True class of each voxel, ``uint8`` of the same shape.
    classes
        Number of classes.

    Returns
    -------
    ndarray
        Confusion table, ``(true, predicted) int64``.

    Raises
    ------
    ValueError
        If the shapes differ, or a label is not below `classes`.

    Examples
    --------
    >>> confusion(np.array([0, 1, 1], np.uint8), np.array([0, 0, 255], np.uint8), 2)
    array([[1, 1],
           [0, 0]])
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction has shape {prediction.shape}, but the truth has shape {truth.shape}")
    known = truth != IGNORE
    predicted, true = prediction[known].astype(np.int64), truth[known].astype(np.int64)
    for labels in (predicted, true):
        if (highest := int(labels.max(initial=0))) >= classes:
            raise ValueError(f"labels reach {highest}, but there are {classes} classes")
    return np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)


def counts_of(table: NDArray[np.int64], label: int) -> Counts:
    """Return the counts of one class in a confusion table.

    Parameters
    ----------
    table
        Confusion table, ``(truth, prediction) int64``.
    label
        Label of the class.

    Returns
    -------
    Counts
        True and false positives and negatives, in voxels.
    """
    found = int(table[label, label])
    return Counts(found, int(table[:, label].sum()) - found, int(table[label].sum()) - found)


def pixel_error(table: NDArray[np.int64]) -> float:
    """Return the share of voxels in a confusion table whose class is wrong; 0 if there are no voxels.

    Parameters
    ----------
    table
        Confusion table, ``(truth, prediction) int64``.

    Returns
    -------
    float
        0 to 1.
    """
    total = int(table.sum())
    return (total - int(np.trace(table))) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Histogram:
    """Distribution of stored probabilities, for voxels of the class and for others."""

    members: NDArray[np.int64]
    """Voxels of the class by stored probability, ``(255,) int64``."""
    others: NDArray[np.int64]
    """Voxels of other classes by stored probability, ``(255,) int64``."""

    @classmethod
    def empty(cls) -> Self:
        """Return the histogram of no voxels."""
        return cls(np.zeros(LEVELS, np.int64), np.zeros(LEVELS, np.int64))

    @classmethod
    def of(cls, stored: NDArray[np.uint8], truth: NDArray[np.uint8], label: int) -> Self:
        """Count the voxels whose truth is not 255.

        Parameters
        ----------
        stored
            Stored probability of the class, ``uint8`` from 0 to 254, in the shape of `truth`.
        truth
            Class of each voxel, ``uint8``; 255 is ignored.
        label
            The class.

        Returns
        -------
        Histogram
            Histogram of these voxels.
        """
        chosen = (truth == label, (truth != label) & (truth != IGNORE))
        members, others = (np.bincount(stored[voxels], minlength=LEVELS) for voxels in chosen)
        return cls(members, others)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.members + other.members, self.others + other.others)


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision and recall as functions of a threshold on the probability; thresholds decrease."""

    thresholds: NDArray[np.float64]
    """Thresholds, ``(threshold,) float64``; a voxel is predicted from this probability on."""
    precision: NDArray[np.float64]
    """Precision at each threshold, ``(threshold,) float64``."""
    recall: NDArray[np.float64]
    """Recall at each threshold, ``(threshold,) float64``."""

    @property
    def average_precision(self) -> float:
        """Sum of the precision times the gain in recall, without interpolation."""
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision))

    @property
    def best(self) -> tuple[float, float]:
        """The threshold with the best F1, and that F1."""
        both = self.precision + self.recall
        values = 2 * self.precision * self.recall / np.where(both == 0, 1, both)
        place = int(np.argmax(values))
        return float(self.thresholds[place]), float(values[place])


def precision_recall(histogram: Histogram) -> Curve:
    """Compute precision and recall at each probability that occurs.

    Parameters
    ----------
    histogram
        Histogram of the class.

    Returns
    -------
    Curve
        The precision-recall curve.

    Raises
    ------
    ValueError
        If no voxel is of the class.

    Examples
    --------
    One voxel of each kind at 0.5, and one of the class at 1: precision 1 for half of the class, then 2/3 for all of it.

    >>> stored, truth = np.array([127, 127, 254], np.uint8), np.array([0, 1, 1], np.uint8)
    >>> curve = precision_recall(Histogram.of(stored, truth, 1))
    >>> curve.thresholds.tolist(), curve.recall.tolist(), round(curve.average_precision, 3)
    ([1.0, 0.5], [0.5, 1.0], 0.833)
    """
    members, others = histogram.members[::-1], histogram.others[::-1]
    if not members.any():
        raise ValueError("no voxel is of the class, so recall is not defined")
    occurs = np.flatnonzero(members + others)
    found, invented = np.cumsum(members)[occurs], np.cumsum(others)[occurs]
    thresholds = np.linspace(1, 0, LEVELS)[occurs]
    return Curve(thresholds, found / (found + invented), found / members.sum())


@dataclass(frozen=True, slots=True)
class Reliability:
    """Calibration of probabilities: predicted probability and observed frequency, bin by bin."""

    voxels: NDArray[np.int64]
    """Voxels in each bin, ``(bin,) int64``."""
    stated: NDArray[np.float64]
    """Mean predicted probability in each bin, ``(bin,) float64``; 0 in an empty bin."""
    observed: NDArray[np.float64]
    """Share of the bin's voxels that are of the class, ``(bin,) float64``; 0 in an empty bin."""

    @property
    def expected_error(self) -> float:
        """Expected calibration error, the mean over voxels of the error of their bin (Guo et al. 2017, arXiv:1706.04599)."""
        total = self.voxels.sum()
        return float(np.sum(self.voxels * np.abs(self.stated - self.observed)) / total) if total else 0.0


def reliability(histogram: Histogram, bins: int = 10) -> Reliability:
    """Compare probabilities with observed frequencies, in bins of equal width; the last bin includes 1.

    Parameters
    ----------
    histogram
        Histogram of the class.
    bins
        Number of bins.

    Returns
    -------
    Reliability
        Calibration per bin.

    Examples
    --------
    If 0.5 is predicted ten times and is true four times, the error is 0.1.

    >>> stated, truth = np.full(10, 127, np.uint8), np.array([1] * 4 + [0] * 6, np.uint8)
    >>> round(reliability(Histogram.of(stated, truth, 1)).expected_error, 3)
    0.1
    """
    levels = np.arange(LEVELS)
    place = np.minimum(levels * bins // (LEVELS - 1), bins - 1)
    both = histogram.members + histogram.others
    voxels = np.bincount(place, both, minlength=bins)
    true = np.bincount(place, histogram.members, minlength=bins)
    stated = np.bincount(place, both * (levels / (LEVELS - 1)), minlength=bins)
    whole = np.maximum(voxels, 1)
    return Reliability(voxels.astype(np.int64), stated / whole, true / whole)
