"""State of one run as the scheduler knows it: one byte per block, and totals. Contains no Dask and no drawing code.

Blocks are counted in *cells*. A cell is one block, or several neighbouring blocks where there are too many to draw one by one.
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

from emseg_core.box import Box, Triple, triple
from emseg_core.specs.volume import Selection

MAX_CELLS = 10_000
MAX_LAYERS = 24
"""Layers of cells, which are drawn side by side."""
MAX_SPEED_POINTS = 600
"""Points of the speed curve; when there are more, every second one is dropped."""


class State(IntEnum):
    """State of a block."""

    WAITING = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class RunDescription:
    """Static description of a run, sent once by the driver: its paths and how its volume is divided into blocks."""

    run: str
    """Identifier of the run on this scheduler."""
    volume: str
    output: str
    classes: int
    """Number of classes."""
    region: Box
    """Segmented region, in the volume's coordinates."""
    grid: Triple
    """Blocks along (z, y, x)."""
    unit: Triple
    """Shape (z, y, x) of a block in voxels."""
    scale: tuple[float, float, float]
    """Size (z, y, x) of a voxel; the unit does not matter, but all axes share it."""
    states: bytes
    """`State` of each block, one byte each, compressed with zlib."""
    part: Selection | None = None
    """Channel and timepoint, if the array holds several volumes."""


@dataclass(frozen=True, slots=True)
class RunUpdate:
    """Update that the driver sends about once a second.

    All totals are those of the whole run, so that the loss of one update does no harm.
    """

    changed: dict[int, int]
    """New `State` of each block that has changed, except for blocks that have started."""
    running: tuple[int, ...]
    """Blocks in progress."""
    newest: int | None
    """Block that was written last."""
    voxels: int
    failures: int
    retries: int
    stages: dict[str, float]
    """Seconds spent in each stage."""
    seconds: float
    """Seconds since the start of the run."""
    pace: dict[str, Any]
    """Speed and remaining time, see `emseg.runs.pace.Pace.to_json`."""
    over: bool
    """Whether the run has ended."""


NO_UPDATE = RunUpdate({}, (), None, 0, 0, 0, {}, 0.0, {}, over=False)


@dataclass(slots=True)
class Board:
    """A run as the scheduler sees it."""

    description: RunDescription
    step: Triple = field(init=False)
    """Blocks per cell along (z, y, x)."""
    cells: Triple = field(init=False)
    """Cells along (z, y, x)."""
    counts: NDArray[np.int32] = field(init=False)
    """Number of blocks per state and cell, ``(state, cell) int32``."""
    version: int = 0
    """Number of times that any state has changed."""
    updated_at: float = 0.0
    """Time of the driver's last update, by the clock of the page."""
    last: RunUpdate = NO_UPDATE
    speeds: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start of the run, and voxels per second."""
    _states: NDArray[np.uint8] = field(init=False)
    _running: set[int] = field(default_factory=set)
    _every: int = 1
    _skipped: int = 0

    def __post_init__(self) -> None:
        grid = self.description.grid
        self._states = np.frombuffer(zlib.decompress(self.description.states), np.uint8).copy()
        if self._states.size != math.prod(grid):
            raise ValueError(f"{self._states.size} states for a grid of {grid} blocks")
        self.step = blocks_per_cell(grid)
        self.cells = triple(-(-blocks // step) for blocks, step in zip(grid, self.step, strict=True))
        self.counts = np.concatenate([self._counted(state) for state in State]).reshape(len(State), -1)

    def __len__(self) -> int:
        return int(self._states.size)

    @property
    def totals(self) -> dict[str, int]:
        """Number of blocks by the name of their state."""
        return {state.name.lower(): int(self.counts[state].sum()) for state in State}

    def update(self, update: RunUpdate, now: float) -> None:
        """Apply an update from the driver, received at the time `now`.

        Parameters
        ----------
        update
            The update.
        now
            The time, in seconds.
        """
        self._running.difference_update(update.changed)
        self._put(update.changed.keys(), list(update.changed.values()))
        stopped = self._running.difference(update.running)
        self._put(stopped, [State.WAITING] * len(stopped))
        self._put(update.running, [State.RUNNING] * len(update.running))
        self._running = set(update.running)
        self.last, self.updated_at = update, now
        self._add_speed(update.seconds, float(update.pace.get("speed") or 0.0))

    def cell_box(self, cell: int) -> Box:
        """Return the voxels of a cell.

        Parameters
        ----------
        cell
            Index of the cell.

        Returns
        -------
        Box
            In the volume's coordinates.
        """
        return self._box(np.unravel_index(cell, self.cells), triple(u * s for u, s in zip(self.unit, self.step, strict=True)))

    def block_box(self, block: int) -> Box:
        """Return the voxels of a block.

        Parameters
        ----------
        block
            Index of the block.

        Returns
        -------
        Box
            In the volume's coordinates.
        """
        return self._box(np.unravel_index(block, self.description.grid), self.unit)

    def to_json(self) -> dict[str, Any]:
        """Return everything except the states of single blocks.

        Returns
        -------
        dict
            JSON values.
        """
        last = self.last
        return {
            "output": self.description.output,
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
        return self.description.unit

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
        """Count the blocks of each cell that are in a state, one layer of cells at a time to limit memory."""
        depth, *plane = self.step
        grid = self._states.reshape(self.description.grid)
        counted = np.empty(self.cells, np.int32)
        for layer in range(self.cells[0]):
            here = (grid[layer * depth : (layer + 1) * depth] == state).sum(axis=0, dtype=np.int32)
            for axis, step in enumerate(plane):
                here = np.add.reduceat(here, np.arange(0, here.shape[axis], step), axis=axis)
            counted[layer] = here
        return counted.ravel()

    def _cell(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the cell of each block."""
        place = np.unravel_index(blocks, self.description.grid)
        cells: NDArray[np.int64] = np.ravel_multi_index([p // s for p, s in zip(place, self.step, strict=True)], self.cells)
        return cells

    def _box(self, place: Iterable[Any], shape: Triple) -> Box:
        region = self.description.region
        return Box.at(triple(map(int, place)), shape).shift(region.start).intersect(region)

    def _add_speed(self, seconds: float, speed: float) -> None:
        self._skipped += 1
        if self._skipped < self._every and not self.last.over:
            return
        self._skipped = 0
        self.speeds.append((seconds, speed))
        if len(self.speeds) > MAX_SPEED_POINTS:
            del self.speeds[1::2]
            self._every *= 2


def blocks_per_cell(grid: Triple) -> Triple:
    """Return the number of blocks per cell that keeps a map within `MAX_CELLS` cells and `MAX_LAYERS` layers.

    Parameters
    ----------
    grid
        Number of blocks along (z, y, x).

    Returns
    -------
    Triple
        Blocks per cell along (z, y, x).

    Examples
    --------
    >>> blocks_per_cell((4, 10, 20)), blocks_per_cell((100, 300, 400))
    ((1, 1, 1), (5, 16, 16))
    """
    depth = -(-grid[0] // MAX_LAYERS)
    layers, plane = -(-grid[0] // depth), 1
    while layers * -(-grid[1] // plane) * -(-grid[2] // plane) > MAX_CELLS:
        plane += 1
    return depth, plane, plane
