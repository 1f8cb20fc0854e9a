"""Coarser levels of an image: what shapes they have, and what their voxels hold.

A level is made of the next finer one. A voxel stands for a step of voxels there, at an array's far end for those that there
are: nothing is cut off, so ``n`` voxels become ``ceil(n / step)``.

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

from emseg.box import Triple, triple
from emseg.grid.stitch import NOT_COMPUTED

Rule = Literal["mode", "mean"]
"""What a voxel holds of those that it stands for: of numbers that name something the most frequent, of amounts the mean."""

SMALL = 256
"""An image no longer than this along any axis has no coarser level."""


def steps_of(shape: Triple, sizes: Sequence[float]) -> tuple[Triple, ...]:
    """Step (z, y, x) of each coarser level, in voxels of the next finer one, until an image is `SMALL`.

    An axis is halved where voxels are less than twice as long as along the shortest axis, so that they become as long as
    they are wide.

    Parameters
    ----------
    shape
        Shape (z, y, x) of the image, in voxels.
    sizes
        Size (z, y, x) of a voxel, in one unit.

    Examples
    --------
    >>> steps_of((40, 1250, 1250), (8, 8, 8))
    ((2, 2, 2), (2, 2, 2), (2, 2, 2))
    >>> steps_of((30, 512, 1024), (50, 4, 4))
    ((1, 2, 2), (1, 2, 2))
    """
    steps: list[Triple] = []
    while max(shape) > SMALL:
        shortest = min(size for size, length in zip(sizes, shape, strict=True) if length > 1)
        step = triple(2 if length > 1 and size < 2 * shortest else 1 for size, length in zip(sizes, shape, strict=True))
        steps.append(step)
        shape, sizes = coarser_shape(shape, step), [size * s for size, s in zip(sizes, step, strict=True)]
    return tuple(steps)


def level_shapes(shape: Triple, steps: Sequence[Triple]) -> list[Triple]:
    """Shape (z, y, x) of each level, the finest first.

    Examples
    --------
    >>> level_shapes((40, 1250, 1250), [(2, 2, 2), (1, 2, 2)])
    [(40, 1250, 1250), (20, 625, 625), (20, 313, 313)]
    """
    return list(itertools.accumulate(steps, coarser_shape, initial=shape))


def coarser_shape(shape: Triple, step: Triple) -> Triple:
    """Shape of the level that is coarser by a step."""
    return triple(-(-length // s) for length, s in zip(shape, step, strict=True))


def coarsened(values: NDArray[Any], step: Triple, rule: Rule) -> NDArray[Any]:
    """The voxels of the next level, ``(..., ceil(z / step), ceil(y / step), ceil(x / step))`` in the type of `values`.

    Of equally frequent values the smallest is taken; means are rounded, halves up, and of the amounts that are there:
    `NOT_COMPUTED` is none. All is integers' arithmetic.

    Parameters
    ----------
    values
        Unsigned integers ``(..., z, y, x)``: all that the voxels of the next level stand for.
    """
    lead = values.ndim - len(step)
    ends = [-length % s for length, s in zip(values.shape[lead:], step, strict=True)]
    if any(ends):  # what is doubled at an end changes neither means nor which value is the most frequent
        values = np.pad(values, [(0, 0)] * lead + [(0, end) for end in ends], "edge")
    split = [part for length, s in zip(values.shape[lead:], step, strict=True) for part in (length // s, s)]
    cells = values.reshape(*values.shape[:lead], *split)
    inner = tuple(range(lead + 1, cells.ndim, 2))
    parts = np.moveaxis(cells, inner, range(len(inner))).reshape(math.prod(step), *values.shape[:lead], *split[::2])
    return _mode(parts) if rule == "mode" else _mean(parts)


def _mean(parts: NDArray[Any]) -> NDArray[Any]:
    """The rounded mean along the first axis, of what is computed."""
    there = parts != NOT_COMPUTED
    count = there.sum(axis=0, dtype=np.uint32)
    total = np.where(there, parts, 0).sum(axis=0, dtype=np.uint32)
    rounded = (total + count // 2) // np.maximum(count, 1)
    mean: NDArray[Any] = np.where(count > 0, rounded, NOT_COMPUTED).astype(parts.dtype)
    return mean


def _mode(parts: NDArray[Any]) -> NDArray[Any]:
    """The most frequent value along the first axis, the smallest of those that are equally frequent."""
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
