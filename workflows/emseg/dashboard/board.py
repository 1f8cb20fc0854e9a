"""State of one run as the scheduler knows it: one byte per block, and totals. Contains no Dask and no drawing code.

Blocks are counted in *cells*. A cell is one block, or several neighbouring blocks where there are too many to draw one by one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping
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


@dataclass(slots=True)
class RunUpdate:
    """Update that the driver sends about once a second.

    All totals are those of the whole run, so that the loss of one update does no harm.
    """

    changed: dict[int, int] = field(default_factory=dict)
    """New `State` of each block that has changed, except for blocks that have started."""
    running: Collection[int] = ()
    """Blocks in progress."""
    newest: int | None = None
    """Block that was written last."""
    voxels: int = 0
    failures: int = 0
    retries: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds spent in each stage."""
    seconds: float = 0.0
    """Seconds since the start of the run."""
    pace: dict[str, Any] = field(default_factory=dict)
    """Speed and remaining time, see `emseg.runs.pace.Pace.to_json`."""
    over: bool = False
    """Whether the run has ended."""


NO_UPDATE = RunUpdate()


class Board:
    """A run as the scheduler sees it."""

    def __init__(self, description: RunDescription) -> None:
        grid = description.grid
        self.description = description
        self.step = blocks_per_cell(grid)
        """Blocks per cell along (z, y, x)."""
        self.cells = triple(-(-blocks // step) for blocks, step in zip(grid, self.step, strict=True))
        """Cells along (z, y, x)."""
        self._states = np.frombuffer(zlib.decompress(description.states), np.uint8).copy()
        if self._states.size != math.prod(grid):
            raise ValueError(f"{self._states.size} states for a grid of {grid} blocks")
        self.counts = np.stack([self._counted(state) for state in State])
        """Number of blocks per state and cell, ``(state, cell) int32``."""
        self.updated_at = 0.0
        """Time of the driver's last update, by the clock of the page."""
        self.last = NO_UPDATE
        self.speeds: list[tuple[float, float]] = []
        """Seconds since the start of the run, and voxels per second."""
        self._updates, self._every = 0, 1

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
        stopped, running = dict.fromkeys(self.last.running, State.WAITING), dict.fromkeys(update.running, State.RUNNING)
        self._put({**stopped, **update.changed, **running})
        self.last, self.updated_at = update, now
        if self._updates % self._every == 0 or update.over:
            self.speeds.append((update.seconds, float(update.pace.get("speed") or 0.0)))
        self._updates += 1
        if len(self.speeds) > MAX_SPEED_POINTS:
            del self.speeds[1::2]
            self._every *= 2

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
        shape = triple(length * step for length, step in zip(self.description.unit, self.step, strict=True))
        return self._box(cell, self.cells, shape)

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
        return self._box(block, self.description.grid, self.description.unit)

    def to_json(self) -> dict[str, Any]:
        """Return everything except the states of single blocks.

        Returns
        -------
        dict
            JSON values.
        """
        last = self.last
        found = {"output": self.description.output, "blocks": len(self), **self.totals}
        return {**found, "voxels": last.voxels, "retries": last.retries, "over": last.over, **last.pace}

    def _put(self, states: Mapping[int, int]) -> None:
        """Change the states of blocks."""
        blocks, new = np.fromiter(states.keys(), np.int64), np.fromiter(states.values(), np.uint8)
        old = self._states[blocks]
        place = np.unravel_index(blocks, self.description.grid)
        cell = np.ravel_multi_index([p // s for p, s in zip(place, self.step, strict=True)], self.cells)
        np.subtract.at(self.counts, (old, cell), 1)
        np.add.at(self.counts, (new, cell), 1)
        self._states[blocks] = new

    def _counted(self, state: State) -> NDArray[np.int32]:
        """Count the blocks of each cell that are in a state."""
        counted: NDArray[Any] = self._states.reshape(self.description.grid) == state
        for axis, step in enumerate(self.step):
            starts = np.arange(0, counted.shape[axis], step)
            counted = np.add.reduceat(counted, starts, axis=axis, dtype=np.int32)
        return counted.ravel()

    def _box(self, number: int, grid: Triple, shape: Triple) -> Box:
        """Return the voxels of a block or cell of a grid."""
        region = self.description.region
        return Box.at(triple(map(int, np.unravel_index(number, grid))), shape).shift(region.start).intersect(region)


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
