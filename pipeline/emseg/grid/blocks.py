"""A region cut into write units: which blocks there are, and where. Made as they are asked for, however many there are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from emseg.box import Box, Triple, triple


@dataclass(frozen=True, slots=True)
class Block:
    """What one worker does at once: one write unit, so that no two workers ever touch the same file."""

    index: int
    """Position among all blocks, counted from 0, x fastest."""
    write: Box
    """The voxels that the block owns, in the coordinates of the region."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """All blocks of a region; the grid of write units starts at the region's corner."""

    region: Box
    """What is cut; of a plan, what is segmented, in the volume's coordinates."""
    unit: Triple
    """Shape (z, y, x) of a write unit, in voxels; cut short at the region's far end."""

    @property
    def grid(self) -> Triple:
        """Number of blocks along (z, y, x)."""
        return triple(-(-length // unit) for length, unit in zip(self.region.shape, self.unit, strict=True))

    def __len__(self) -> int:
        return math.prod(self.grid)

    def __iter__(self) -> Iterator[Block]:
        return (self.block(index) for index in range(len(self)))

    def block(self, index: int) -> Block:
        """The block at a position.

        Raises
        ------
        IndexError
            If there is no such block.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} is not in a plan of {len(self)} blocks")
        place = triple(int(i) for i in np.unravel_index(index, self.grid))
        return Block(index, Box.at(place, self.unit).shift(self.region.start).intersect(self.region))
