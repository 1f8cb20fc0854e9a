"""What an output holds, counted: shares of the classes, and sizes of the segments."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emseg.errors import EmsegError
from emseg.grid.blocks import Blocks
from emseg.grid.stitch import NOT_COMPUTED
from emseg.store.instances import stored_instances, table_of
from emseg.store.ledger import Output

MOST_CHUNKS = 256
"""Chunks that are counted at most to tell the shares of the classes."""
FINE = 4
"""Bins of segment sizes, for each power of ten."""


@dataclass(frozen=True, slots=True)
class ClassShares:
    """How much of what is computed belongs to each class."""

    shares: tuple[float, ...]
    """Of 1, in the order of the classes; all 0 if nothing was counted."""
    voxels: int
    """Voxels that were counted."""
    everything: bool
    """Whether these are all that are computed."""
    unreadable: int
    """Blocks that could not be read."""


@dataclass(frozen=True, slots=True)
class SegmentSizes:
    """The sizes of the segments of one image of instance labels."""

    name: str
    method: str
    """How they were made; empty if that is not known."""
    segments: int
    """Rows of the table."""
    voxels: int
    """Of all segments together."""
    largest: int
    """Voxels of the largest segment."""
    at_edge: int
    """Segments that touch the edge of what was labelled."""
    first: int
    """Number of the first bin; see `bin_start`."""
    counts: tuple[int, ...]
    """Segments in each bin of size, from the first one on."""
    unreadable: int
    """Rows that could not be read."""


def count_classes(stored: Output) -> ClassShares:
    """The shares of the classes, counted in all chunks that are computed, or in some that are drawn by lot.

    Not on a coarser level, which keeps the most frequent of some voxels: what is thin is rarer there.
    """
    done, rng = np.flatnonzero(stored.levels[0].written()), np.random.default_rng(0)
    chosen = np.sort(rng.permutation(done)[:MOST_CHUNKS])
    blocks, most = Blocks(stored.region, stored.unit), MOST_CHUNKS // max(1, len(chosen))
    everything, seen, unreadable = len(chosen) == len(done), 0, 0
    sums = np.zeros(len(stored.classes))
    for index in chosen.tolist():
        chunks = Blocks(blocks.block(index).write, stored.chunk)
        drawn = rng.permutation(len(chunks))[:most].tolist()
        everything &= len(drawn) == len(chunks)
        try:
            counts = np.sum([_counts(stored, chunks, chunk) for chunk in drawn], axis=0)
        except EmsegError:
            unreadable += 1
            continue
        counted = int(counts.sum())
        seen += counted
        sums += counts * (chunks.region.voxels / max(1, counted))
    return ClassShares(tuple((sums / (sums.sum() or 1)).tolist()), seen, everything and not unreadable, unreadable)


def read_sizes(stored: Output, name: str) -> SegmentSizes | None:
    """What the table of segments tells, read line by line; None if it is not there or not such a table."""
    try:
        described = stored_instances(stored.files, name) or {}
        with stored.files.reading(table_of(name)) as stream, io.TextIOWrapper(stream, "utf-8", "replace", newline="") as text:
            return _sizes(name, described, csv.reader(text))
    except (OSError, ValueError, csv.Error):
        return None


def bin_start(number: int) -> float:
    """Voxels from which on a segment is in the bin of this number."""
    return math.pow(10, number / FINE)


def _counts(stored: Output, chunks: Blocks, chunk: int) -> NDArray[np.int64]:
    """Voxels of each class in a chunk."""
    labels = stored.read_labels(chunks.block(chunk).write)
    return np.bincount(labels[labels != NOT_COMPUTED], minlength=len(stored.classes))[: len(stored.classes)]


def _sizes(name: str, described: dict[str, object], rows: Iterator[list[str]]) -> SegmentSizes:
    columns = next(rows, [])
    size, edge = columns.index("voxels"), columns.index("touches_edge")
    bins: Counter[int] = Counter()
    segments = total = largest = at_edge = unreadable = 0
    for row in rows:
        try:
            voxels, touches = int(row[size]), int(row[edge])
            number = math.floor(math.log10(voxels) * FINE + 1e-9)
        except (ValueError, IndexError):
            unreadable += 1
            continue
        bins[number] += 1
        segments, total, largest, at_edge = segments + 1, total + voxels, max(largest, voxels), at_edge + touches
    first = min(bins, default=0)
    counts = tuple(bins[number] for number in range(first, max(bins, default=-1) + 1))
    labelling = described.get("labelling")
    method = str(labelling.get("method", "")) if isinstance(labelling, dict) else ""
    return SegmentSizes(name, method, segments, total, largest, at_edge, first, counts, unreadable)
