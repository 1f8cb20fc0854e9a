"""The one step that sees the whole volume: segments that touch faces are merged, and all get their numbers.

Memory goes with the segments that are open: those that touch a face between blocks, or might merge with one that does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from emseg.instances.agglomerate import agglomerate, roots_of
from emseg.instances.contacts import Contacts, Indices
from emseg.instances.piece import Piece, Seam, Segments
from emseg.specs.labelling import Labelling


@dataclass(frozen=True, slots=True)
class Merged:
    """What has become of the open segments; the others are what they are in their blocks."""

    parts: Indices
    """Segments of blocks, ``(n,)`` ascending, numbered throughout the volume from 1."""
    wholes: Indices
    """Row of `segments` that each of them is part of, ``(n,)``."""
    segments: Segments
    """What they are together."""


def merge(offsets: Indices, piece: Callable[[int], Piece], seam: Callable[[int], Seam], labelling: Labelling) -> Merged:
    """Merges what two blocks share.

    Parameters
    ----------
    offsets
        Segment i of block b is segment ``offsets[b] + i`` of the volume, ``(blocks,) int64``.
    piece, seam
        Read what is known of a block; one is in memory at a time.
    """
    same, found = [np.zeros((0, 2), np.int64)], []
    for block, offset in enumerate(offsets):
        across, within = seam(block), piece(block).contacts
        same.append(across.same)
        found.append(across.contacts)
        found.append(replace(within, one=within.one + offset, other=within.other + offset))
    pairs, contacts = np.concatenate(same), Contacts.joined(found)
    parts = np.unique(np.concatenate([pairs.ravel(), contacts.one, contacts.other]))
    wholes = _components(len(parts), np.searchsorted(parts, pairs))
    if len(contacts):
        one, other = np.searchsorted(parts, contacts.one), np.searchsorted(parts, contacts.other)
        known = replace(contacts, one=one, other=other).renamed(wholes)
        names, _ = agglomerate(len(parts), known, labelling.threshold, np.zeros(len(parts), bool))
        wholes = names[wholes]
    kept, rows = np.unique(wholes, return_inverse=True)
    bounds = np.searchsorted(parts, [*(offsets + 1), np.iinfo(np.int64).max])
    tables = [
        piece(block).segments.rows(parts[begin:end] - offset - 1)
        for block, (offset, begin, end) in enumerate(zip(offsets, bounds[:-1], bounds[1:], strict=True))
        if end > begin
    ]
    return Merged(parts, rows, Segments.stacked(tables).merged(rows, len(kept)))


def number(
    offsets: Indices,
    row: Sequence[int],
    piece: Callable[[int], Piece],
    merged: Merged,
    given: NDArray[np.uint64],
    before: int,
    smallest: int,
) -> tuple[list[NDArray[np.uint64]], Segments]:
    """Final numbers of the segments of a row of blocks that share their z; rows come in the order of z.

    Parameters
    ----------
    row
        The blocks.
    given
        Numbers of all open segments that begin in earlier rows, by their row in ``merged.segments``, ``(n,)``; those that begin
        in this row get theirs here.
    before
        Segments that have a number already.
    smallest
        Segments of fewer voxels get the number 0.

    Returns
    -------
    maps
        For each block the number of each of its segments, ``(n + 1,) uint64``; that of 0 is 0.
    table
        The segments that begin in this row, in the order of their numbers, which go on from `before`.
    """
    pieces = [piece(block).segments for block in row]
    opened = [_open_of(merged, offsets[block], len(segments)) for block, segments in zip(row, pieces, strict=True)]
    alone, begun = [], []
    for segments, (mine, wholes) in zip(pieces, opened, strict=True):
        closed = np.ones(len(segments), bool)
        closed[mine] = False
        alone.append(np.flatnonzero(closed))
        begun.append(wholes[merged.segments.first[wholes] == segments.first[mine]])
    wholes = np.concatenate(begun)
    table = Segments.stacked(
        [*(segments.rows(rows) for segments, rows in zip(pieces, alone, strict=True)), merged.segments.rows(wholes)]
    )
    order = np.argsort(table.first, kind="stable")
    order = order[table.voxels[order] >= smallest]
    numbers = np.zeros(len(table), np.uint64)
    numbers[order] = np.arange(len(order), dtype=np.uint64) + np.uint64(before + 1)
    given[wholes] = numbers[len(table) - len(wholes) :]
    maps, end = [], 0
    for segments, rows, (mine, whole) in zip(pieces, alone, opened, strict=True):
        found = np.zeros(len(segments) + 1, np.uint64)
        found[rows + 1] = numbers[end : end + len(rows)]
        found[mine + 1] = given[whole]
        end += len(rows)
        maps.append(found)
    return maps, table.rows(order)


def _open_of(merged: Merged, offset: np.int64, count: int) -> tuple[Indices, Indices]:
    """Open segments of a block, counted from 0, and what they are part of."""
    begin, end = np.searchsorted(merged.parts, [offset + 1, offset + count + 1])
    return merged.parts[begin:end] - offset - 1, merged.wholes[begin:end]


def _components(count: int, pairs: Indices) -> Indices:
    """The smallest number that each of `count` nodes hangs together with, ``(count,) int64``, by pairs ``(n, 2)``."""
    roots = np.arange(count)
    one, other = pairs[:, 0], pairs[:, 1]
    while True:
        a, b = roots[one], roots[other]
        apart = a != b
        if not apart.any():
            return roots
        one, other = a[apart], b[apart]
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        roots = roots_of(roots)
