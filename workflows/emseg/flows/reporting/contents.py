"""Statistics of an output: shares of the classes, and sizes of the segments."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emseg_core.errors import EmsegError
from emseg_core.grid.blocks import Blocks
from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.store.outputs.instances import stored_instances, table_path
from emseg_core.store.outputs.output import Output

MAX_CHUNKS = 256
"""Chunks that are read at most to estimate the shares of the classes."""
BINS_PER_DECADE = 4
"""Bins of segment sizes per power of ten."""


@dataclass(frozen=True, slots=True)
class ClassShares:
    """Share of each class in the computed voxels."""

    shares: tuple[float, ...]
    """Fractions of 1, in the order of the classes; all 0 if nothing was counted."""
    voxels: int
    """Voxels that were counted."""
    everything: bool
    """Whether all computed voxels were counted."""
    unreadable: int
    """Number of blocks that could not be read."""


@dataclass(frozen=True, slots=True)
class SegmentSizes:
    """Sizes of the segments of one image of instance labels."""

    method: str
    """Labelling method; empty if it is not known."""
    segments: int
    """Number of segments."""
    voxels: int
    """Voxels of all segments together."""
    largest: int
    """Voxels of the largest segment."""
    at_edge: int
    """Number of segments that touch the edge of the labelled region."""
    first: int
    """Number of the first bin, see `bin_start`."""
    counts: tuple[int, ...]
    """Number of segments per bin of sizes, from bin `first` on."""
    unreadable: int
    """Number of rows of the table that could not be read."""


def count_classes(stored: Output) -> ClassShares:
    """Count the classes in all computed chunks, or in a random sample of them.

    Coarser levels would be faster to read, but each of their voxels has the most frequent class of several voxels, so that thin
    structures are under-represented.

    Parameters
    ----------
    stored
        The open output.

    Returns
    -------
    ClassShares
        The shares. Blocks that cannot be read are counted instead of raising.
    """
    if not stored.classes:
        return ClassShares((), 0, everything=False, unreadable=0)
    done, rng = np.flatnonzero(stored.levels[0].written()), np.random.default_rng(0)
    chosen = np.sort(rng.permutation(done)[:MAX_CHUNKS])
    blocks, most = Blocks(stored.region, stored.unit), MAX_CHUNKS // max(1, len(chosen))
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
    """Read the sizes of segments from their table, line by line.

    Parameters
    ----------
    stored
        The open output.
    name
        Name of the instance labels.

    Returns
    -------
    SegmentSizes or None
        None if the table is missing or is not a table of segments.
    """
    try:
        described = stored_instances(stored.files, name) or {}
        with stored.files.reading(table_path(name)) as stream, io.TextIOWrapper(stream, "utf-8", "replace", newline="") as text:
            return _sizes(described, csv.reader(text))
    except (OSError, ValueError, csv.Error):
        return None


def bin_start(number: int) -> float:
    """Return the smallest size of segments in a bin.

    Parameters
    ----------
    number
        Number of the bin, from 0.

    Returns
    -------
    float
        Number of voxels.
    """
    return math.pow(10, number / BINS_PER_DECADE)


def _counts(stored: Output, chunks: Blocks, chunk: int) -> NDArray[np.int64]:
    """Count the voxels of each class in a chunk."""
    labels = stored.read_labels(chunks.block(chunk).write)
    return np.bincount(labels[labels != NOT_COMPUTED], minlength=len(stored.classes))[: len(stored.classes)]


def _sizes(described: dict[str, object], rows: Iterator[list[str]]) -> SegmentSizes:
    columns = next(rows, [])
    size, edge = columns.index("voxels"), columns.index("touches_edge")
    bins: Counter[int] = Counter()
    segments = total = largest = at_edge = unreadable = 0
    for row in rows:
        try:
            voxels, touches = int(row[size]), int(row[edge])
            bins[math.floor(math.log10(voxels) * BINS_PER_DECADE + 1e-9)] += 1
        except (ValueError, IndexError):
            unreadable += 1
            continue
        segments, total, largest, at_edge = segments + 1, total + voxels, max(largest, voxels), at_edge + touches
    first = min(bins, default=0)
    counts = tuple(bins[number] for number in range(first, max(bins, default=-1) + 1))
    labelling = described.get("labelling")
    method = str(labelling.get("method", "")) if isinstance(labelling, dict) else ""
    return SegmentSizes(method, segments, total, largest, at_edge, first, counts, unreadable)
