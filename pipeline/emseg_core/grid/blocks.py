"""Blocks: a region divided into write units. Blocks are created on demand, so there may be any number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from emseg_core.box import Box, Triple, triple


@dataclass(frozen=True, slots=True)
class Block:
    """One write unit, the work of one worker at a time, so that no two workers ever write the same file."""

    index: int
    """Position among all blocks, counted from 0, x fastest."""
    write: Box
    """Voxels that the block writes, in the volume's coordinates."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """All blocks of a region. The grid of write units starts at the region's corner."""

    region: Box
    """The region to divide; for a plan, the region to segment, in the volume's coordinates."""
    unit: Triple
    """Shape (z, y, x) of a write unit, in voxels; the last ones are clipped to the region."""

    @property
    def grid(self) -> Triple:
        """Number of blocks along (z, y, x)."""
        return triple(-(-length // unit) for length, unit in zip(self.region.shape, self.unit, strict=True))

    def __len__(self) -> int:
        return math.prod(self.grid)

    def __iter__(self) -> Iterator[Block]:
        return (self.block(index) for index in range(len(self)))

    def block(self, index: int) -> Block:
        """Return the block at a position.

        Parameters
        ----------
        index
            Position among all blocks, counted from 0, x fastest.

        Returns
        -------
        Block
            The block.

        Raises
        ------
        IndexError
            If there is no such block.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} is not among the {len(self)} blocks of the grid")
        place = triple(int(i) for i in np.unravel_index(index, self.grid))
        return Block(index, Box.at(place, self.unit).shift(self.region.start).intersect(self.region))
