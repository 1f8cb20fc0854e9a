"""Position and colour of the cells of a board, and the slice shown next to them. Contains no Bokeh code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from emseg.dashboard.board import Board, RunDescription, State
from emseg.pages.colours import AMBER, BLUE, RED, hex_colour
from emseg_core.box import Box, Triple

MAP_WIDTH_PIXELS, MAP_HEIGHT_PIXELS = 760, 600
"""Largest size of the map in pixels."""
CAPTION_PIXELS = 20
"""Pixels above a layer for its caption."""
GAP_PIXELS = 14
"""Pixels between layers."""
MAX_SLICE_PIXELS = 320
"""Longest edge of a slice's picture; of a larger slice, every second, third, ... voxel is drawn."""
MIN_SLICE_VOXELS = 256
"""Smallest edge of the part of a slice that is shown, in voxels, unless the slice itself is smaller."""
COLOURS = {State.WAITING: "#dfe3e8", State.RUNNING: AMBER, State.DONE: BLUE, State.FAILED: RED}
MARK_WEIGHT = 0.75
"""Weight of the colour of running or failed blocks in a cell where only some blocks run or failed."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Layout of the layers of a board side by side, in pixels; y points down."""

    width: float
    height: float
    cell: tuple[float, float]
    """Height and width of a cell."""
    corners: tuple[tuple[float, float], ...]
    """Top and left edge of each layer's first cell."""

    def middles(self, cells: Triple) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the centre of each cell.

        Parameters
        ----------
        cells
            Cells along (z, y, x).

        Returns
        -------
        tuple of ndarray
            y and x in pixels, each ``(cell,) float64``.
        """
        layer, row, column = (place.ravel() for place in np.indices(cells))
        top, left = np.array(self.corners).T
        return top[layer] + (row + 0.5) * self.cell[0], left[layer] + (column + 0.5) * self.cell[1]


def arrange(board: Board) -> Sheet:
    """Arrange the layers of a board so that cells are as large as the map allows.

    Cells have the aspect ratio that their voxels have in y and x.

    Parameters
    ----------
    board
        The board.

    Returns
    -------
    Sheet
        The layout.
    """
    layers, rows, columns = board.cells
    unit, scale = board.description.unit, board.description.scale
    _, tall, wide = (length * step * size for length, step, size in zip(unit, board.step, scale, strict=True))

    def zoom(abreast: int) -> float:
        """Return the pixels per unit of length with that many layers side by side."""
        stacked = -(-layers // abreast)
        free_width = MAP_WIDTH_PIXELS - GAP_PIXELS * (abreast - 1)
        free_height = MAP_HEIGHT_PIXELS - (CAPTION_PIXELS + GAP_PIXELS) * stacked + GAP_PIXELS
        return min(free_width / (abreast * columns * wide), free_height / (stacked * rows * tall))

    beside = max(range(1, layers + 1), key=zoom)
    cell = (max(zoom(beside) * tall, 0.1), max(zoom(beside) * wide, 0.1))
    height, width = CAPTION_PIXELS + rows * cell[0] + GAP_PIXELS, columns * cell[1] + GAP_PIXELS
    corners = tuple((CAPTION_PIXELS + height * (n // beside), width * (n % beside)) for n in range(layers))
    return Sheet(width * beside - GAP_PIXELS, height * -(-layers // beside) - GAP_PIXELS, cell, corners)


def cell_colours(board: Board) -> list[str]:
    """Return the colour of each cell, which shows how much of it is done and whether blocks run or have failed there.

    Parameters
    ----------
    board
        The board.

    Returns
    -------
    list of str
        ``#rrggbb`` for each cell.
    """
    shares = (board.counts / board.counts.sum(axis=0))[..., None]
    paint = {state: np.array(ImageColor.getrgb(COLOURS[state])) for state in State}
    mixed = paint[State.WAITING] * (1 - shares[State.DONE]) + paint[State.DONE] * shares[State.DONE]
    for state in (State.RUNNING, State.FAILED):
        weight = np.select([shares[state] == 1, shares[state] > 0], [1.0, MARK_WEIGHT])
        mixed = mixed * (1 - weight) + paint[state] * weight
    return list(map(hex_colour, mixed.round().astype(np.uint8)))


def cell_words(board: Board, cell: int) -> str:
    """Describe the blocks of a cell.

    Parameters
    ----------
    board
        The board.
    cell
        Index of the cell.

    Returns
    -------
    str
        The state of its only block, or the number of blocks in each state.
    """
    counts = {state: int(count) for state, count in zip(State, board.counts[:, cell], strict=True) if count}
    if sum(counts.values()) == 1:
        return next(iter(counts)).name.lower()
    return f"{sum(counts.values())} blocks: " + ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items())


def draw_slice(description: RunDescription, block: Box) -> tuple[NDArray[np.uint32], NDArray[np.uint32], Box]:
    """Draw the middle z slice of a block and its surroundings.

    Parameters
    ----------
    description
        Description of the run.
    block
        The voxels of the block, in the volume's coordinates.

    Returns
    -------
    raw, labels : ndarray
        The raw slice, and the same slice overlaid with labels; ``(y, x) uint32`` RGBA.
    box : Box
        The voxels that are shown, in the volume's coordinates.

    Raises
    ------
    InputError
        If the volume or the output cannot be read by this process.
    """
    from emseg.pages.pictures import contrast, drawn
    from emseg_core.store.outputs.lifecycle import open_output
    from emseg_core.store.volumes.volume import open_volume

    z = (block.start[0] + block.stop[0]) // 2
    (top, bottom), (left, right) = (_around(block, description.region, axis) for axis in (1, 2))
    box = Box((z, top, left), (z + 1, bottom, right))
    every = -(-max(box.shape) // MAX_SLICE_PIXELS)
    output = open_output(description.output)
    grey = contrast(open_volume(description.volume, part=description.part).first.read(box)[0, ::every, ::every])
    image = next((image for image in output.images[::-1] if image.content == "labels"), output.images[-1])
    labels = drawn(image, output.read(image.name, box)[..., 0, ::every, ::every], grey)
    return _rgba(grey), _rgba(labels), box


def _around(block: Box, region: Box, axis: int) -> tuple[int, int]:
    """Return start and stop along an axis: the block, widened to `MIN_SLICE_VOXELS` voxels where the region allows."""
    first, last = region.start[axis], region.stop[axis]
    length = min(max(block.shape[axis], MIN_SLICE_VOXELS), last - first)
    start = min(max(first, (block.start[axis] + block.stop[axis] - length) // 2), last - length)
    return start, start + length


def _rgba(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Pack pixels into the format of Bokeh."""
    return np.asarray(Image.fromarray(pixels).convert("RGBA")).view(np.uint32)[..., 0]
