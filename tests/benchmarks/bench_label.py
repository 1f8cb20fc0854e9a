"""Measure the time and memory of the reduction in `emseg label`, the one process that sees the whole volume, by block count.

    python tests/benchmarks/bench_label.py

Each block has 10 x 10 x 10 cells, of which the 488 at its faces are open. Each cell touches its neighbours, and a third of the
contacts lies inside a neuron. No voxels are made: the results of blocks are drawn at random when they are needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from emseg_core.instances.block_segments import BlockSegments, Segments
from emseg_core.instances.contacts import Contacts, Indices
from emseg_core.instances.face_matches import FaceMatches
from emseg_core.instances.reduction import merge_segments, number_segments
from emseg_core.specs.labelling import Labelling

CELLS = 10
"""Number of cells along each axis of a block."""
SIDES = (6, 10, 16, 22)
"""Numbers of blocks along each axis."""
LOW, HIGH = 100, 400
"""Sum of the membrane probabilities of two adjacent voxels, within a neuron and between two neurons."""
FACES = 100
"""Number of voxel faces in a contact."""


def cells() -> Indices:
    """Return the ids of the cells of a block, ``(z, y, x)``, counted from 1."""
    return np.arange(1, CELLS**3 + 1).reshape(CELLS, CELLS, CELLS)


def contacts(one: Indices, other: Indices, seed: int) -> Contacts:
    """Make contacts with random probabilities between pairs of cells."""
    draw = np.random.default_rng(seed)
    total = FACES * np.where(draw.random(len(one)) < 1 / 3, LOW, HIGH) + draw.integers(0, FACES, len(one))
    return Contacts.summed(one, other, total, np.full(len(one), 2 * FACES), draw.integers(0, 2**60, len(one)))


def block_segments(block: int) -> BlockSegments:
    """Make the result of a block: contacts between the cells at its faces; all other cells are final."""
    ids = cells()
    inner = np.zeros(ids.shape, bool)
    inner[1:-1, 1:-1, 1:-1] = True
    pairs = [(np.moveaxis(ids, axis, 0)[:-1].ravel(), np.moveaxis(ids, axis, 0)[1:].ravel()) for axis in range(3)]
    one, other = (np.concatenate(column) for column in zip(*pairs, strict=True))
    is_open = ~inner.ravel()
    kept = is_open[one - 1] & is_open[other - 1]
    first = block * CELLS**3 + np.arange(CELLS**3)
    corner = np.zeros((CELLS**3, 3), np.int64)
    segments = Segments(first, np.full(CELLS**3, 1000), corner, corner + 10, corner + 5000)
    return BlockSegments(segments, contacts(one[kept], other[kept], block), (), ())


def face_matches(side: int, block: int) -> FaceMatches:
    """Make the contacts of a block's last cells with the first ones of the next blocks."""
    place, ids = np.unravel_index(block, (side,) * 3), cells()
    ones, others = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for axis in range(3):
        if place[axis] + 1 < side:
            beyond = np.ravel_multi_index(tuple(p + (a == axis) for a, p in enumerate(place)), (side,) * 3)
            ones.append(np.take(ids, -1, axis).ravel() + block * CELLS**3)
            others.append(np.take(ids, 0, axis).ravel() + int(beyond) * CELLS**3)
    return FaceMatches(np.zeros((0, 2), np.int64), contacts(np.concatenate(ones), np.concatenate(others), -block % 2**32))


def measure(side: int) -> str:
    """Measure a volume with this many blocks along each axis, and return a line of text."""
    blocks, labelling, process = side**3, Labelling("watershed", 0), psutil.Process(os.getpid())
    offsets, before = np.arange(blocks, dtype=np.int64) * CELLS**3, process.memory_info().rss
    began = time.perf_counter()
    merged = merge_segments(offsets.reshape((side,) * 3), block_segments, partial(face_matches, side), labelling)
    middle = time.perf_counter()
    given, count = np.zeros(len(merged.segments), np.uint64), 0
    for first in range(0, blocks, side * side):
        row = range(first, first + side * side)
        _, table = number_segments(offsets, row, block_segments, merged, given, count, 0)
        count += len(table)
    end = time.perf_counter()
    peak = 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    opened = len(merged.parts)
    return (
        f"{blocks:6} blocks, {blocks * CELLS**3:9} segments, {opened:8} open: merged in {middle - began:6.1f} s, numbered in "
        f"{end - middle:5.1f} s; {(peak - before) / 2**20:6.0f} MiB, {(peak - before) / opened:5.0f} bytes per open segment"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(int(sys.argv[1])), flush=True)
    else:
        for side in SIDES:  # each in a separate process, to measure its peak memory
            subprocess.run([sys.executable, __file__, str(side)], check=True)
