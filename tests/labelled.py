"""Label arrays in memory, block by block and by slow reference algorithms."""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple, triple
from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.instances.block_segments import Segments, label_block
from emseg_core.instances.face_matches import match_faces
from emseg_core.instances.reduction import merge_segments, number_segments
from emseg_core.specs.labelling import Labelling

Ids = NDArray[np.uint64]
STEPS = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]


def by_blocks(stored: NDArray[np.uint8], unit: Triple, labelling: Labelling, side: int = 2) -> tuple[Ids, Segments]:
    """Label an array in blocks of a shape, in groups. Return the segment of each voxel and the table of segments."""
    shape, whole = triple(stored.shape), Box.of_shape(triple(stored.shape))
    grid = [range(-(-length // edge)) for length, edge in zip(shape, unit, strict=True)]
    boxes = [
        Box.of_shape(unit).shift(triple(i * edge for i, edge in zip(place, unit, strict=True))).intersect(whole)
        for place in itertools.product(*grid)
    ]
    windows = [box.grow(labelling.margin).intersect(whole) for box in boxes]
    found = [
        label_block(stored[window.slices()], window, box, shape, labelling) for window, box in zip(windows, boxes, strict=True)
    ]
    tables_of_blocks = [segments for _, segments in found]
    offsets = np.cumsum([0, *(len(segments.segments) for segments in tables_of_blocks)])[:-1]
    numbered = np.zeros(shape, np.int64)
    for (ids, _), box, offset in zip(found, boxes, offsets, strict=True):
        numbered[box.slices()] = np.where(ids > 0, ids + offset, 0)
    matches = [
        match_faces(segments, box, shape, labelling, lambda asked: numbered[asked.slices()])
        for segments, box in zip(tables_of_blocks, boxes, strict=True)
    ]
    blocks = offsets.reshape([len(places) for places in grid])
    merged = merge_segments(blocks, lambda block: tables_of_blocks[block], lambda block: matches[block], labelling, side)
    given = np.zeros(len(merged.segments), np.uint64)
    tables: list[Segments] = []
    final, width = np.zeros(shape, np.uint64), len(grid[1]) * len(grid[2])
    for first in range(0, len(boxes), width):
        row = range(first, first + width)
        before = sum(map(len, tables))
        maps, table = number_segments(
            offsets, row, lambda block: tables_of_blocks[block], merged, given, before, labelling.smallest
        )
        tables.append(table)
        for block, names in zip(row, maps, strict=True):
            final[boxes[block].slices()] = names[found[block][0]]
    return final, Segments.stacked(tables)


def flooded(joined: dict[Triple, set[Triple]], shape: Triple) -> Ids:
    """Return connected components, by a search from each voxel in the order z, y, x. Voxels without an entry get 0."""
    ids, count = np.zeros(shape, np.uint64), 0
    for start in np.ndindex(shape):
        if start not in joined or ids[start]:
            continue
        count += 1
        queue = deque([start])
        ids[start] = count
        while queue:
            for there in joined[queue.popleft()]:
                if not ids[there]:
                    ids[there] = count
                    queue.append(there)
    return ids


def slow_components(inside: NDArray[np.bool_], connectivity: int) -> Ids:
    """Return components by a search over neighbours."""
    steps = [step for step in STEPS if sum(map(abs, step)) <= {6: 1, 18: 2, 26: 3}[connectivity]]
    joined: dict[Triple, set[Triple]] = {}
    for place in map(triple, np.argwhere(inside).tolist()):
        near = [triple(np.add(place, step)) for step in steps]
        joined[place] = {there for there in near if _within(there, inside.shape) and inside[there]}
    return flooded(joined, triple(inside.shape))


def slow_watershed(boundary: NDArray[np.uint8], labelling: Labelling) -> Ids:
    """Compute fragments voxel by voxel, then repeatedly merge the pair with the lowest mean."""
    ids = slow_fragments(boundary, labelling)
    while True:
        contacts: dict[tuple[int, int], list[int]] = {}
        for number_, place in enumerate(np.ndindex(boundary.shape)):
            for axis in range(3):
                there = tuple(p + (a == axis) for a, p in enumerate(place))
                if not _within(there, boundary.shape):
                    continue
                one, other = sorted((int(ids[place]), int(ids[there])))
                if one == other or one == 0:
                    continue
                total, count, first = contacts.get((one, other), [0, 0, 2**62])
                between = int(boundary[place]) + int(boundary[there])
                contacts[one, other] = [total + between, count + 2, min(first, 3 * number_ + axis)]
        best = min(((total / count, first, pair) for pair, (total, count, first) in contacts.items()), default=None)
        if best is None or best[0] >= labelling.threshold * 254:
            break
        ids[ids == best[2][1]] = best[2][0]
    return in_order(ids)


def slow_fragments(boundary: NDArray[np.uint8], labelling: Labelling) -> Ids:
    """Return the watershed basins: follow the steepest descent from each voxel."""
    heights = boundary.astype(object)
    for _ in range(labelling.smoothing):
        for axis in labelling.axes:
            moved = np.moveaxis(heights, axis, 0)
            moved = np.array(
                [moved[max(i - 1, 0)] + 2 * moved[i] + moved[min(i + 1, len(moved) - 1)] for i in range(len(moved))]
            )
            heights = np.moveaxis(moved, 0, axis)
    known = boundary != NOT_COMPUTED
    lowest: dict[Triple, Triple | None] = {}
    near = {}
    for place in map(triple, np.argwhere(known).tolist()):
        steps = [triple(int(a == axis) * sign for a in range(3)) for axis in labelling.axes for sign in (1, -1)]
        near[place] = [
            there for step in steps if _within(there := triple(np.add(place, step)), boundary.shape) and known[there]
        ]
        lower = [there for there in near[place] if heights[there] < heights[place]]
        lowest[place] = min(lower, key=lambda there: heights[there], default=None)
    joined: dict[Triple, set[Triple]] = {place: set() for place in lowest}
    for place, lower_place in lowest.items():
        level = [other for other in near[place] if heights[other] == heights[place] and lowest[other] is None]
        for other in [lower_place] if lower_place is not None else level:
            joined[place].add(other)
            joined[other].add(place)
    return flooded(joined, triple(boundary.shape))


def in_order(ids: Ids) -> Ids:
    """Return the same segments, numbered in the order of their first voxels."""
    names = {0: 0}
    return np.array([names.setdefault(int(one), len(names)) for one in ids.ravel()], np.uint64).reshape(ids.shape)


def _within(place: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return all(0 <= p < length for p, length in zip(place, shape, strict=True))
