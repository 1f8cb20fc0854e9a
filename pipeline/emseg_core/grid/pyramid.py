"""Pyramid levels of an image: their shapes and their voxels.

Each level is computed from the next finer one. A voxel represents a step of finer voxels; at the far end of an array, only
those that exist. Nothing is cropped, so ``n`` voxels become ``ceil(n / step)``.

    finer      | 0 | 1 | 2 | 3 | 4 |         step 2
    coarser    |   0   |   1   |   2  .      its centres lie half a finer voxel further than those of 0, 2, 4
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Triple, triple
from emseg_core.grid.stitch import NOT_COMPUTED

Rule = Literal["mode", "mean"]
"""How finer voxels are combined: ``mode``, the most frequent value, for labels; ``mean`` for intensities."""

MAX_COARSEST_LENGTH = 256
"""Longest axis, in voxels, of an image without coarser levels."""


def steps_of(shape: Triple, sizes: Sequence[float]) -> tuple[Triple, ...]:
    """Choose the step of each coarser level, until the longest axis has at most `MAX_COARSEST_LENGTH` voxels.

    An axis is halved while its voxels are less than twice as long as those of the shortest axis, so that voxels become
    isotropic.

    Parameters
    ----------
    shape
        Shape (z, y, x) of the image, in voxels.
    sizes
        Size (z, y, x) of a voxel, in any common unit.

    Returns
    -------
    tuple of Triple
        Step (z, y, x) of each coarser level, in voxels of the next finer one.

    Examples
    --------
    >>> steps_of((40, 1250, 1250), (8, 8, 8))
    ((2, 2, 2), (2, 2, 2), (2, 2, 2))
    >>> steps_of((30, 512, 1024), (50, 4, 4))
    ((1, 2, 2), (1, 2, 2))
    """
    steps: list[Triple] = []
    while max(shape) > MAX_COARSEST_LENGTH:
        shortest = min(size for size, length in zip(sizes, shape, strict=True) if length > 1)
        step = triple(2 if length > 1 and size < 2 * shortest else 1 for size, length in zip(sizes, shape, strict=True))
        steps.append(step)
        shape, sizes = coarser_shape(shape, step), [size * s for size, s in zip(sizes, step, strict=True)]
    return tuple(steps)


def level_shapes(shape: Triple, steps: Sequence[Triple]) -> list[Triple]:
    """Return the shapes of all levels.

    Parameters
    ----------
    shape
        Shape (z, y, x) of the finest level, in voxels.
    steps
        Step (z, y, x) of each coarser level.

    Returns
    -------
    list of Triple
        Shape (z, y, x) of each level, the finest first.

    Examples
    --------
    >>> level_shapes((40, 1250, 1250), [(2, 2, 2), (1, 2, 2)])
    [(40, 1250, 1250), (20, 625, 625), (20, 313, 313)]
    """
    return list(itertools.accumulate(steps, coarser_shape, initial=shape))


def coarser_shape(shape: Triple, step: Triple) -> Triple:
    """Return the shape (z, y, x) of the level that is coarser by `step`.

    Parameters
    ----------
    shape
        Shape (z, y, x) of the finer level, in voxels.
    step
        Number of finer voxels (z, y, x) along each edge of a coarser one.

    Returns
    -------
    Triple
        Shape in voxels, rounded up.
    """
    return triple(-(-length // s) for length, s in zip(shape, step, strict=True))


def coarsened(values: NDArray[Any], step: Triple, rule: Rule) -> NDArray[Any]:
    """Compute the voxels of the next coarser level.

    Of equally frequent values, the smallest is taken. Means leave out voxels that are not computed, `NOT_COMPUTED` or NaN.
    Those of integers are rounded, halves up, by arithmetic in integers.

    Parameters
    ----------
    values
        Unsigned integers, or `float16` for means, ``(..., z, y, x)``: all voxels that those of the coarser level represent.
    step
        Step (z, y, x) to the coarser level.
    rule
        How voxels are combined.

    Returns
    -------
    ndarray
        Coarser voxels, ``(..., ceil(z / step), ceil(y / step), ceil(x / step))`` in the type of `values`.
    """
    lead = values.ndim - len(step)
    ends = [-length % s for length, s in zip(values.shape[lead:], step, strict=True)]
    if any(ends):  # repeated voxels at an end change neither the mean nor the most frequent value
        values = np.pad(values, [(0, 0)] * lead + [(0, end) for end in ends], "edge")
    split = [part for length, s in zip(values.shape[lead:], step, strict=True) for part in (length // s, s)]
    cells = values.reshape(*values.shape[:lead], *split)
    inner = tuple(range(lead + 1, cells.ndim, 2))
    parts = np.moveaxis(cells, inner, range(len(inner))).reshape(math.prod(step), *values.shape[:lead], *split[::2])
    return _mode(parts) if rule == "mode" else _mean(parts)


def _mean(parts: NDArray[Any]) -> NDArray[Any]:
    """Return the mean along the first axis of the voxels that are computed."""
    if parts.dtype.kind == "f":
        known = ~np.isnan(parts)
        sums = np.where(known, parts, 0).sum(axis=0, dtype=np.float64)  # exact, so it does not depend on the order
        means = sums / np.maximum(known.sum(axis=0, dtype=np.uint32), 1)
        averages: NDArray[Any] = np.where(known.any(axis=0), means, np.nan).astype(parts.dtype)
        return averages
    there = parts != NOT_COMPUTED
    count = there.sum(axis=0, dtype=np.uint32)
    total = np.where(there, parts, 0).sum(axis=0, dtype=np.uint32)
    rounded = (total + count // 2) // np.maximum(count, 1)
    mean: NDArray[Any] = np.where(count > 0, rounded, NOT_COMPUTED).astype(parts.dtype)
    return mean


def _mode(parts: NDArray[Any]) -> NDArray[Any]:
    """Return the most frequent value along the first axis, the smallest if several are equally frequent."""
    counts = np.ones(parts.shape, np.uint8)
    for one, other in itertools.combinations(range(len(parts)), 2):
        same = (parts[one] == parts[other]).view(np.uint8)
        counts[one] += same
        counts[other] += same
    best: NDArray[Any] = parts[0].copy()
    most = counts[0]
    for candidate, count in zip(parts[1:], counts[1:], strict=True):
        np.copyto(best, candidate, where=(count > most) | ((count == most) & (candidate < best)))
        np.maximum(most, count, out=most)
    return best
