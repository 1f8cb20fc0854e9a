"""Overlap tiles: the network's inputs, and the part of each output that is kept.

    source (one tile)   |<-- context -->|<------ output ------>|<-- context -->|
    lattice             .   .   .   .   .   .   .   .   .   .   .   .   .   .   .
    target                              |<---- kept ---->|

A U-Net commutes only with shifts by its pooling lattice. Therefore the output of each tile starts on the lattice, counted
from the *volume's* origin. Each voxel then sees the same inputs and the same pooling windows whatever the tiling. A
tile is never shifted back to fit: it extends beyond the end, mirroring supplies what is missing, and the rest is cropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from emseg_core.box import Box, Triple, three, triple
from emseg_core.specs.network import NetworkSpec


@dataclass(frozen=True, slots=True)
class Tile:
    """One network input and the part of its output that is kept, both in the volume's coordinates."""

    source: Box
    """Input of the network; it may reach beyond the volume."""
    target: Box
    """The part of the output that is kept."""
    output: Box
    """The whole output: `source` without the context."""


def tiles_of(box: Box, tile: Triple, model: NetworkSpec, lead: Triple = (0, 0, 0)) -> Iterator[Tile]:
    """Divide a box into overlap tiles whose targets cover it exactly once.

    Parameters
    ----------
    box
        The box to cover, in the volume's coordinates.
    tile
        Shape (z, y, x) of each tile, in voxels.
    model
        The network.
    lead
        Voxels (z, y, x) by which the output of the first tile starts earlier than necessary: at least 0 and less than a step,
        rounded down to the lattice. The result is the same for any lead; `emseg verify` uses this as a proof.

    Yields
    ------
    Tile
        A tile; x changes fastest.

    Raises
    ------
    ModelError
        If the tile does not fit the network.

    Examples
    --------
    >>> from emseg_core.specs.model import ModelSpec
    >>> model = ModelSpec.unet(width=1, depth=1)
    >>> [str(tile.target) for tile in tiles_of(Box((0, 0, 0), (1, 2, 7)), (1, 20, 20), model)]
    ['0:1,0:2,0:4', '0:1,0:2,4:7']
    """
    step, context = model.step(tile), model.context
    origins = _origins(box, tile, model, lead)
    for z, y, x in itertools.product(*origins):
        kept = Box((z, y, x), (z + step[0], y + step[1], x + step[2]))
        source = Box.of_shape(tile).shift((z - context[0], y - context[1], x - context[2]))
        yield Tile(source, kept.intersect(box), source.grow(triple(-c for c in context)))


def hull_of(box: Box, tile: Triple, model: NetworkSpec, lead: Triple = (0, 0, 0)) -> Box:
    """Return the read box of a box: everything that its tiles see.

    Parameters
    ----------
    box
        The box that the tiles cover, in the volume's coordinates.
    tile
        Shape (z, y, x) of each tile, in voxels.
    model
        The network.
    lead
        As in `tiles_of`.

    Returns
    -------
    Box
        The read box, in the volume's coordinates. It may reach beyond the volume.

    Raises
    ------
    ModelError
        If the tile does not fit the network.
    """
    origins, context = _origins(box, tile, model, lead), model.context
    start = triple(axis[0] - c for axis, c in zip(origins, context, strict=True))
    stop = triple(axis[-1] - c + length for axis, c, length in zip(origins, context, tile, strict=True))
    return Box(start, stop)


def _origins(box: Box, tile: Triple, model: NetworkSpec, lead: Triple) -> tuple[range, range, range]:
    """Return where the outputs of the tiles start on each axis (z, y, x)."""
    return three(
        range(start // lattice * lattice - ahead // lattice * lattice, stop, step)
        for start, stop, lattice, step, ahead in zip(box.start, box.stop, model.lattice, model.step(tile), lead, strict=True)
    )
