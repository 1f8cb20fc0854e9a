"""What the scheduler knows of one run: the state of each block, in a byte, and sums. No Dask here, no drawing.

Blocks are counted in *cells*: one for each block, or for a few neighbours where there would be too many to look at.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple, triple
from emseg.specs.volume import Part

MOST_CELLS = 10_000
MOST_LAYERS = 24
"""Layers of cells, drawn beside one another."""
MOST_POINTS = 600
"""Points of the speed over time; beyond that, each second one is dropped."""


class State(IntEnum):
    """What a block is."""

    WAITING = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class Opening:
    """What the driver tells once: where the run is, and how its volume is cut."""

    run: str
    """Names the run on this scheduler."""
    volume: str
    output: str
    classes: int
    """Classes of the labels."""
    region: Box
    """What is segmented, in the volume's coordinates."""
    grid: Triple
    """Blocks along (z, y, x)."""
    unit: Triple
    """Shape (z, y, x) of a block in voxels."""
    scale: tuple[float, float, float]
    """Size (z, y, x) of a voxel, in any one unit."""
    states: bytes
    """`State` of each block, a byte each, compressed by zlib."""
    part: Part | None = None
    """Which of the volumes in the array, if it holds several."""


@dataclass(frozen=True, slots=True)
class Message:
    """What the driver tells about once a second; all sums are those of the whole run, so that one may be lost."""

    changed: dict[int, int]
    """`State` of each block that is known to have changed, but for running ones."""
    running: tuple[int, ...]
    """Blocks that are being computed."""
    newest: int | None
    """The block that was written last."""
    voxels: int
    failures: int
    retries: int
    stages: dict[str, float]
    """Seconds by what they were spent on."""
    seconds: float
    """Since the run began."""
    pace: dict[str, Any]
    """See `emseg_workflows.pace.Pace.to_json`."""
    over: bool
    """Whether the run has ended."""


NOTHING_YET = Message({}, (), None, 0, 0, 0, {}, 0.0, {}, over=False)


@dataclass(slots=True)
class Board:
    """A run as it is seen from the scheduler."""

    opening: Opening
    step: Triple = field(init=False)
    """Blocks of a cell along (z, y, x)."""
    cells: Triple = field(init=False)
    """Cells along (z, y, x)."""
    counts: NDArray[np.int32] = field(init=False)
    """Blocks by state and cell, ``(state, cell) int32``."""
    version: int = 0
    """Counts the changes of the states."""
    heard: float = 0.0
    """When the driver was heard last, by the clock of the page."""
    last: Message = NOTHING_YET
    speeds: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the run began, and voxels in a second."""
    _states: NDArray[np.uint8] = field(init=False)
    _running: set[int] = field(default_factory=set)
    _every: int = 1
    _skipped: int = 0

    def __post_init__(self) -> None:
        grid = self.opening.grid
        self._states = np.frombuffer(zlib.decompress(self.opening.states), np.uint8).copy()
        if self._states.size != math.prod(grid):
            raise ValueError(f"{self._states.size} states for a grid of {grid} blocks")
        self.step = step_of(grid)
        self.cells = triple(-(-blocks // step) for blocks, step in zip(grid, self.step, strict=True))
        self.counts = np.concatenate([self._counted(state) for state in State]).reshape(len(State), -1)

    def __len__(self) -> int:
        return int(self._states.size)

    @property
    def totals(self) -> dict[str, int]:
        """Blocks by the name of their state."""
        return {state.name.lower(): int(self.counts[state].sum()) for state in State}

    def tell(self, message: Message, now: float) -> None:
        """Take note of what the driver says."""
        self._running.difference_update(message.changed)
        self._put(message.changed.keys(), list(message.changed.values()))
        stopped = self._running.difference(message.running)
        self._put(stopped, [State.WAITING] * len(stopped))
        self._put(message.running, [State.RUNNING] * len(message.running))
        self._running = set(message.running)
        self.last, self.heard = message, now
        self._add_speed(message.seconds, float(message.pace.get("speed") or 0.0))

    def box(self, cell: int) -> Box:
        """The voxels of a cell, in the volume's coordinates."""
        return self._box(np.unravel_index(cell, self.cells), triple(u * s for u, s in zip(self.unit, self.step, strict=True)))

    def block_box(self, block: int) -> Box:
        """The voxels of a block, in the volume's coordinates."""
        return self._box(np.unravel_index(block, self.opening.grid), self.unit)

    def to_json(self) -> dict[str, Any]:
        """What is known, but for single blocks, as JSON values."""
        last = self.last
        return {
            "output": self.opening.output,
            "blocks": len(self),
            **self.totals,
            "voxels": last.voxels,
            "retries": last.retries,
            "over": last.over,
            **last.pace,
        }

    @property
    def unit(self) -> Triple:
        """Shape (z, y, x) of a block in voxels."""
        return self.opening.unit

    def _put(self, blocks: Iterable[int], states: list[int]) -> None:
        index, new = np.fromiter(blocks, np.int64), np.array(states, np.uint8)
        old = self._states[index]
        moved = old != new
        if not moved.any():
            return
        cell = self._cell(index[moved])
        np.subtract.at(self.counts, (old[moved], cell), 1)
        np.add.at(self.counts, (new[moved], cell), 1)
        self._states[index] = new
        self.version += 1

    def _counted(self, state: State) -> NDArray[np.int32]:
        """How many blocks of each cell are in a state; a layer of cells at a time, however many blocks there are."""
        depth, *plane = self.step
        grid = self._states.reshape(self.opening.grid)
        counted = np.empty(self.cells, np.int32)
        for layer in range(self.cells[0]):
            here = (grid[layer * depth : (layer + 1) * depth] == state).sum(axis=0, dtype=np.int32)
            for axis, step in enumerate(plane):
                here = np.add.reduceat(here, np.arange(0, here.shape[axis], step), axis=axis)
            counted[layer] = here
        return counted.ravel()

    def _cell(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The cell of each block."""
        place = np.unravel_index(blocks, self.opening.grid)
        cells: NDArray[np.int64] = np.ravel_multi_index([p // s for p, s in zip(place, self.step, strict=True)], self.cells)
        return cells

    def _box(self, place: Iterable[Any], shape: Triple) -> Box:
        region = self.opening.region
        return Box.at(triple(map(int, place)), shape).shift(region.start).intersect(region)

    def _add_speed(self, seconds: float, speed: float) -> None:
        self._skipped += 1
        if self._skipped < self._every and not self.last.over:
            return
        self._skipped = 0
        self.speeds.append((seconds, speed))
        if len(self.speeds) > MOST_POINTS:
            del self.speeds[1::2]
            self._every *= 2


def step_of(grid: Triple) -> Triple:
    """Blocks of a cell along (z, y, x), so that there are no more than `MOST_CELLS`, in no more than `MOST_LAYERS` layers.

    Examples
    --------
    >>> step_of((4, 10, 20)), step_of((100, 300, 400))
    ((1, 1, 1), (5, 16, 16))
    """
    depth = -(-grid[0] // MOST_LAYERS)
    layers, plane = -(-grid[0] // depth), 1
    while layers * -(-grid[1] // plane) * -(-grid[2] // plane) > MOST_CELLS:
        plane += 1
    return depth, plane, plane
