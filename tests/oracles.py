"""Slow and obvious reference implementations, in NumPy alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple


def mirror(values: NDArray[Any], box: Box) -> NDArray[Any]:
    """Return the voxels of a box that may reach beyond the volume: mirror the whole volume with `numpy.pad`, then slice it."""
    before = [max(0, -start) for start in box.start]
    after = [max(0, stop - length) for stop, length in zip(box.stop, values.shape, strict=True)]
    padded = np.pad(values, list(zip(before, after, strict=True)), mode="reflect")
    return padded[tuple(slice(a + b, c + b) for a, b, c in zip(box.start, before, box.stop, strict=True))]


def voxels(box: Box) -> set[Triple]:
    """Yield each voxel of a box."""
    z, y, x = map(range, box.start, box.stop)
    return set(itertools.product(z, y, x))


def painted(within: Box, parts: list[Box]) -> NDArray[np.int64]:
    """Count how often each voxel of `within` lies in a part. A part that reaches outside is an error."""
    count = np.zeros(within.shape, np.int64)
    for part in parts:
        assert within.contains(part), f"{part} is not inside {within}"
        count[part.relative_to(within.start).slices()] += 1
    return count


def hull(parts: list[Box]) -> Box:
    """Return the smallest box around all parts."""
    starts, stops = np.array([part.start for part in parts]), np.array([part.stop for part in parts])
    z, y, x = (int(v) for v in starts.min(axis=0))
    last_z, last_y, last_x = (int(v) for v in stops.max(axis=0))
    return Box((z, y, x), (last_z, last_y, last_x))


def chunk_voxels(box: Box, shape: Triple, chunk: Triple) -> int:
    """Return the number of voxels in all chunks that a box inside a volume touches, listed chunk by chunk."""
    total = 0
    grid = (range(-(-length // size)) for length, size in zip(shape, chunk, strict=True))
    for place in itertools.product(*grid):
        start = [i * size for i, size in zip(place, chunk, strict=True)]
        stop = [min(s + size, length) for s, size, length in zip(start, chunk, shape, strict=True)]
        if all(a < d and c < b for a, b, c, d in zip(start, stop, box.start, box.stop, strict=True)):
            total += int(np.prod([b - a for a, b in zip(start, stop, strict=True)]))
    return total
