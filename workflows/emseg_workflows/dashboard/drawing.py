"""Where the cells of a board are drawn, in which colour, and the slice beside them. No Bokeh here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg_workflows.dashboard.board import Board, Opening, State

MAP_WIDTH, MAP_HEIGHT = 760, 600
"""Most pixels of the map."""
CAPTION = 20
"""Pixels above a layer."""
GAP = 14
"""Pixels between layers."""
MOST_PIXELS = 320
"""Edge of the pictures of a slice; of a larger one, every second, third ... voxel is drawn."""
AROUND = 256
"""Voxels that are shown at least of a slice, if it has so many."""
COLOURS = {State.WAITING: "#dfe3e8", State.RUNNING: "#f5a623", State.DONE: "#2b7bba", State.FAILED: "#c62828"}
MARK = 0.75
"""How much of its colour a cell of many blocks takes from some that run or failed."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """The layers of a board side by side, in pixels, with the y axis downwards."""

    width: float
    height: float
    cell: tuple[float, float]
    """Height and width of a cell."""
    corners: tuple[tuple[float, float], ...]
    """Top and left of each layer's first cell."""

    def middles(self, cells: Triple) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The y and x of the middle of each cell."""
        layer, row, column = (place.ravel() for place in np.indices(cells))
        top, left = np.array(self.corners).T
        return top[layer] + (row + 0.5) * self.cell[0], left[layer] + (column + 0.5) * self.cell[1]


def arrange(board: Board) -> Sheet:
    """The sheet with the largest cells that fits the map, true to the shape of the volume in y and x."""
    layers, rows, columns = board.cells
    tall, wide = (u * s * size for u, s, size in zip(board.unit[1:], board.step[1:], board.opening.scale[1:], strict=True))
    best, beside = 0.0, 1
    for abreast in range(1, layers + 1):
        stacked = -(-layers // abreast)
        free_width = MAP_WIDTH - GAP * (abreast - 1)
        free_height = MAP_HEIGHT - (CAPTION + GAP) * stacked + GAP
        scale = min(free_width / (abreast * columns * wide), free_height / (stacked * rows * tall))
        if scale > best:
            best, beside = scale, abreast
    cell = (max(best * tall, 0.1), max(best * wide, 0.1))
    height, width = CAPTION + rows * cell[0] + GAP, columns * cell[1] + GAP
    corners = tuple((CAPTION + height * (n // beside), width * (n % beside)) for n in range(layers))
    return Sheet(width * beside - GAP, height * -(-layers // beside) - GAP, cell, corners)


def cell_colours(board: Board) -> list[str]:
    """The colour of each cell: how much of it is done, and whether anything runs there or has failed."""
    counts = board.counts.astype(np.float64)
    blocks = counts.sum(axis=0)
    paint = {state: np.array([int(COLOURS[state][i : i + 2], 16) for i in (1, 3, 5)], np.float64) for state in State}
    share = (counts[State.DONE] / blocks)[:, None]
    mixed = paint[State.WAITING] * (1 - share) + paint[State.DONE] * share
    for state in (State.RUNNING, State.FAILED):
        some = counts[state] > 0
        mark = np.where(counts[state] == blocks, 1.0, MARK)[:, None]
        mixed = np.where(some[:, None], mixed * (1 - mark) + paint[state] * mark, mixed)
    return ["#{:02x}{:02x}{:02x}".format(*map(int, pixel)) for pixel in mixed.round()]


def cell_words(board: Board, cell: int) -> str:
    """What is in a cell, in words."""
    counts = {state: int(count) for state, count in zip(State, board.counts[:, cell], strict=True) if count}
    if sum(counts.values()) == 1:
        return next(iter(counts)).name.lower()
    return f"{sum(counts.values())} blocks: " + ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items())


def draw_slice(opening: Opening, block: Box) -> tuple[NDArray[np.uint32], NDArray[np.uint32], Box]:
    """The middle z slice of a block and around it, raw and with labels over it, each ``(y, x) uint32`` RGBA; and its box.

    Raises
    ------
    InputError
        If volume or output cannot be read from here.
    """
    from emseg.store.ledger import NOT_COMPUTED  # noqa: PLC0415  zarr takes a while to import
    from emseg.store.output import open_output  # noqa: PLC0415
    from emseg.store.volume import open_volume  # noqa: PLC0415
    from emseg_workflows.pictures import contrast, overlay  # noqa: PLC0415

    z = (block.start[0] + block.stop[0]) // 2
    (top, bottom), (left, right) = (_around(block, opening.region, axis) for axis in (1, 2))
    box = Box((z, top, left), (z + 1, bottom, right))
    every = -(-max(box.shape) // MOST_PIXELS)
    labels = open_output(opening.output).read_labels(box)[0, ::every, ::every]
    grey = contrast(open_volume(opening.volume, part=opening.part).read(box)[0, ::every, ::every])
    return _rgba(grey), _rgba(overlay(grey, np.where(labels == NOT_COMPUTED, 0, labels), opening.classes)), box


def _around(block: Box, region: Box, axis: int) -> tuple[int, int]:
    """Start and stop along an axis: the block, and beside it as much as is shown at least, within the region."""
    first, last = region.start[axis], region.stop[axis]
    length = min(max(block.shape[axis], AROUND), last - first)
    start = min(max(first, (block.start[axis] + block.stop[axis] - length) // 2), last - length)
    return start, start + length


def _rgba(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Pixels as Bokeh draws them."""
    opaque = np.full((*pixels.shape[:2], 4), 255, np.uint8)
    opaque[..., :3] = pixels
    packed: NDArray[np.uint32] = opaque.view("<u4")[..., 0].astype(np.uint32)
    return packed
