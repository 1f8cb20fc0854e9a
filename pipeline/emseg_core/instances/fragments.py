"""Fragments of one block: decide for each pair of neighbouring voxels whether they belong together.

Two voxels that share a face are *linked* by a rule that looks no further than `Labelling.margin`. Fragments are the connected
components of these links. So the fragments of a block, with the links across its faces, are those of the whole volume, however
it is divided into blocks.

The watershed follows the flow of rain: each voxel is linked to the lowest of its lower neighbours (in a tie, to the first
along z, y, x, with the next voxel before the previous one). A voxel without a lower neighbour is linked to neighbours of equal
height that have no lower neighbour either. Heights are integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import fastremap
import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box
from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.instances.contacts import neighbour_slices
from emseg_core.specs.labelling import Connectivity, Labelling

NEXT_BITS, PREVIOUS_BITS = (1, 4, 16), (2, 8, 32)
"""Bits of cc3d for a voxel that is linked to the next or to the previous one along (z, y, x)."""
NOT_COMPUTED_HEIGHT = np.iinfo(np.uint32).max
"""Height of voxels that are not computed."""


@dataclass(frozen=True, slots=True)
class Fragments:
    """Fragments of one block."""

    ids: NDArray[np.uint32]
    """Fragment of each voxel, ``(z, y, x)``: 1, 2, ... in the order of their first voxels; 0 is background."""
    face_links: tuple[NDArray[np.bool_], ...]
    """For each axis, whether the voxels of the block's last plane are linked to the next; empty at the end of the volume."""


def components(inside: NDArray[np.bool_], connectivity: Connectivity) -> NDArray[np.uint32]:
    """Label the connected components of a block.

    Across the faces of the block, any two neighbouring voxels that are inside belong to one component.

    Parameters
    ----------
    inside
        Voxels to label, ``(z, y, x) bool``.
    connectivity
        Neighbours of a voxel.

    Returns
    -------
    ndarray
        Component of each voxel, ``(z, y, x) uint32``: 1, 2, ... in the order of their first voxels, 0 outside.
    """
    # As bytes: with booleans, cc3d 4.1.1 runs out of labels if a block is one voxel wide along two axes.
    return _in_order(cc3d.connected_components(np.ascontiguousarray(inside, np.uint8), connectivity=connectivity))


def watershed(boundary: NDArray[np.uint8], window: Box, box: Box, labelling: Labelling) -> Fragments:
    """Find the fragments of a block by a watershed on the boundary probability.

    Parameters
    ----------
    boundary
        Stored boundary probability in `window`, ``(z, y, x) uint8``, 0 to 254, or 255 if not computed.
    window
        `box` extended by the margin of `labelling`, clipped to the volume.
    box
        The block.
    labelling
        Method and parameters.

    Returns
    -------
    Fragments
        Fragments, and links across the block's faces.
    """
    heights = _heights(boundary, labelling)
    grown = box.grow((1, 1, 1)).intersect(window)
    links = _face_links(heights, labelling.axes)
    local = box.relative_to(window.start).slices()
    bits = np.zeros(box.shape, np.uint8)
    faces = []
    for axis in range(3):
        # `links[axis]` covers all voxels but the last of the window; the block's last plane needs the voxel after it
        inner = list(local)
        inner[axis] = slice(local[axis].start, local[axis].stop - 1)
        linked = links[axis][tuple(inner)]
        ahead, behind = neighbour_slices(axis)
        bits[ahead] |= linked * np.uint8(NEXT_BITS[axis])
        bits[behind] |= linked * np.uint8(PREVIOUS_BITS[axis])
        last = list(local)
        last[axis] = slice(local[axis].stop - 1, local[axis].stop)
        faces.append(links[axis][tuple(last)] if grown.stop[axis] > box.stop[axis] else np.zeros((0, 0, 0), bool))
    ids = cc3d.color_connectivity_graph(bits, connectivity=6)
    ids[boundary[local] == NOT_COMPUTED] = 0
    return Fragments(_in_order(ids), tuple(faces))


def _heights(boundary: NDArray[np.uint8], labelling: Labelling) -> NDArray[np.uint32]:
    """Return the boundary ``(z, y, x)``, smoothed in integers; values at the volume's faces are repeated."""
    heights = boundary.astype(np.uint32)
    for _ in range(labelling.smoothing):
        for axis in labelling.axes:
            padded = np.pad(heights, [(1, 1) if other == axis else (0, 0) for other in range(3)], mode="edge")
            ahead, behind = neighbour_slices(axis)
            pairs = padded[ahead] + padded[behind]
            heights = pairs[ahead] + pairs[behind]
    heights[boundary == NOT_COMPUTED] = NOT_COMPUTED_HEIGHT
    return heights


def _face_links(heights: NDArray[np.uint32], axes: tuple[int, ...]) -> tuple[NDArray[np.bool_], ...]:
    """Return for each axis whether each voxel is linked to the next, ``(z, y, x)`` and one shorter along that axis.

    Correct for voxels whose neighbours' neighbours are all present.
    """
    lowest, way = heights.copy(), np.full(heights.shape, -1, np.int8)
    for axis in axes:
        for direction, (here, there) in enumerate((neighbour_slices(axis), neighbour_slices(axis)[::-1])):
            lower = heights[there] < lowest[here]
            np.copyto(lowest[here], heights[there], where=lower)
            np.copyto(way[here], np.int8(2 * axis + direction), where=lower)
    bottom = (way < 0) & (heights != NOT_COMPUTED_HEIGHT)
    found = []
    for axis in range(3):
        here, there = neighbour_slices(axis)
        if axis not in axes:
            found.append(np.zeros(heights[here].shape, bool))
            continue
        level = bottom[here] & bottom[there] & (heights[here] == heights[there])
        found.append((way[here] == 2 * axis) | (way[there] == 2 * axis + 1) | level)
    return tuple(found)


def _in_order(ids: NDArray[Any]) -> NDArray[np.uint32]:
    """Renumber components in the order of their first voxels."""
    renumbered, _ = fastremap.renumber(ids, preserve_zero=True)
    return np.asarray(renumbered, np.uint32)
