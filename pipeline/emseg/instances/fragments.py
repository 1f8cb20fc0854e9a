"""Fragments of one block: where it is decided, voxel by voxel, which neighbours belong together.

Two voxels that share a face are *joined* by a rule that looks no further than `Labelling.margin`; fragments are what hangs
together by such joints. So the fragments of a block, with the joints across its faces, are those of the whole volume, however
that is cut into blocks.

The rule of the watershed is that of rain: each voxel is joined to the lowest of its neighbours that is lower than itself (of
equally low ones to the first, along z, y, x, upwards before downwards), and where none is, to neighbours that are as low as
itself and have no lower one either. Heights are integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import fastremap
import numpy as np
from numpy.typing import NDArray

from emseg.box import AXES, Box
from emseg.grid.stitch import NOT_COMPUTED
from emseg.specs.labelling import Connectivity, Labelling

UP, DOWN = (1, 4, 16), (2, 8, 32)
"""Bits of a voxel that is joined to the next one, or the one before, along (z, y, x): those of cc3d."""
NOWHERE = np.iinfo(np.uint32).max
"""Height of what is not computed."""


@dataclass(frozen=True, slots=True)
class Fragments:
    """The fragments of one block."""

    ids: NDArray[np.uint32]
    """``(z, y, x)``: 1, 2, .. in the order of their first voxels; 0 where there is none."""
    joints: tuple[NDArray[np.bool_], ...]
    """For each axis, whether the voxels of the block's last plane are joined to the next ones; empty if there are none."""


def components(inside: NDArray[np.bool_], connectivity: Connectivity) -> NDArray[np.uint32]:
    """Number of the component of each voxel, ``(z, y, x) uint32``: 1, 2, .. in the order of first voxels, 0 outside.

    Across faces, whatever is inside on both sides is joined.
    """
    # As bytes: for bits, cc3d 4.1.1 runs out of labels where a block is one voxel wide along two axes.
    return _in_order(cc3d.connected_components(np.ascontiguousarray(inside, np.uint8), connectivity=connectivity))


def watershed(boundary: NDArray[np.uint8], window: Box, box: Box, labelling: Labelling) -> Fragments:
    """The fragments that grow from the lowest places of a boundary.

    Parameters
    ----------
    boundary
        Probability ``(z, y, x) uint8`` of the boundary in `window`, 0 to 254, 255 where not computed.
    window
        `box` with the margin of `labelling`, as far as there are voxels.
    """
    heights = _heights(boundary, labelling)
    grown = box.grow((1, 1, 1)).intersect(window)
    joined = _joints(heights, labelling.axes)
    local = box.relative_to(window.start).slices()
    bits = np.zeros(box.shape, np.uint8)
    faces = []
    for axis in range(3):
        # `joined[axis]` tells of each voxel but the last whether it goes on; the block's own last plane needs the next voxel
        inner = list(local)
        inner[axis] = slice(local[axis].start, local[axis].stop - 1)
        goes_on = joined[axis][tuple(inner)]
        ahead, behind = _pairs(axis)
        bits[ahead] |= goes_on * np.uint8(UP[axis])
        bits[behind] |= goes_on * np.uint8(DOWN[axis])
        last = list(local)
        last[axis] = slice(local[axis].stop - 1, local[axis].stop)
        faces.append(joined[axis][tuple(last)] if grown.stop[axis] > box.stop[axis] else np.zeros((0, 0, 0), bool))
    ids = cc3d.color_connectivity_graph(bits, connectivity=6)
    ids[boundary[local] == NOT_COMPUTED] = 0
    return Fragments(_in_order(ids), tuple(faces))


def _heights(boundary: NDArray[np.uint8], labelling: Labelling) -> NDArray[np.uint32]:
    """The boundary ``(z, y, x)``, smoothed in integers; a volume's end is repeated."""
    heights = boundary.astype(np.uint32)
    for _ in range(labelling.smoothing):
        for axis in labelling.axes:
            padded = np.pad(heights, [(1, 1) if other == axis else (0, 0) for other in range(3)], mode="edge")
            ahead, behind = _pairs(axis)
            pairs = padded[ahead] + padded[behind]
            heights = pairs[ahead] + pairs[behind]
    heights[boundary == NOT_COMPUTED] = NOWHERE
    return heights


def _joints(heights: NDArray[np.uint32], axes: tuple[int, ...]) -> tuple[NDArray[np.bool_], ...]:
    """For each axis, whether each voxel is joined to the next one along it, ``(z, y, x)``, one shorter along that axis.

    Right for what has all its neighbours' neighbours in sight.
    """
    lowest, way = heights.copy(), np.full(heights.shape, -1, np.int8)
    for axis in axes:
        for direction, (here, there) in enumerate((_pairs(axis), _pairs(axis)[::-1])):
            lower = heights[there] < lowest[here]
            np.copyto(lowest[here], heights[there], where=lower)
            np.copyto(way[here], np.int8(2 * axis + direction), where=lower)
    bottom = (way < 0) & (heights != NOWHERE)
    found = []
    for axis in range(3):
        here, there = _pairs(axis)
        if axis not in axes:
            found.append(np.zeros(heights[here].shape, bool))
            continue
        level = bottom[here] & bottom[there] & (heights[here] == heights[there])
        found.append((way[here] == 2 * axis) | (way[there] == 2 * axis + 1) | level)
    return tuple(found)


def _pairs(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of all voxels that have a next one along an axis, and of these next ones."""
    here, there = [slice(None)] * len(AXES), [slice(None)] * len(AXES)
    here[axis], there[axis] = slice(0, -1), slice(1, None)
    return tuple(here), tuple(there)


def _in_order(ids: NDArray[Any]) -> NDArray[np.uint32]:
    """The same components, numbered in the order of their first voxels."""
    renumbered, _ = fastremap.renumber(ids, preserve_zero=True)
    return np.asarray(renumbered, np.uint32)
