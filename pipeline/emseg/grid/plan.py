"""The plan: how a volume is cut into blocks and tiles. Inert data, answered before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from emseg.box import Box, Triple, triple
from emseg.grid.tiles import Tile, hull_of, tiles_of
from emseg.specs.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Block:
    """What one worker does at once: one write unit, so that no two workers ever touch the same file."""

    index: int
    """Position in the plan, counted from 0, x fastest."""
    write: Box
    """The voxels that the block owns, in the volume's coordinates."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a region of a volume is cut; blocks are made as they are asked for, however many there are.

    The write grid starts at the region's corner; lattice, mirroring and context are those of the volume.
    """

    shape: Triple
    """Shape (z, y, x) of the volume, in voxels."""
    region: Box
    """What is segmented, in the volume's coordinates."""
    model: ModelSpec
    """The network."""
    tile: Triple
    """Shape (z, y, x) of one network input, in voxels."""
    batch: int
    """Tiles in one call of the network."""
    unit: Triple
    """Shape (z, y, x) of a write unit, in voxels; cut short at the region's far end."""
    chunk: Triple
    """Shape (z, y, x) of the chunks inside a write unit, in voxels."""

    @property
    def grid(self) -> Triple:
        """Number of blocks along (z, y, x)."""
        return triple(-(-length // unit) for length, unit in zip(self.region.shape, self.unit, strict=True))

    def __len__(self) -> int:
        return math.prod(self.grid)

    def __iter__(self) -> Iterator[Block]:
        return (self.block(index) for index in range(len(self)))

    def block(self, index: int) -> Block:
        """The block at a position in the plan.

        Raises
        ------
        IndexError
            If there is no such block.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} is not in a plan of {len(self)} blocks")
        place = triple(int(i) for i in np.unravel_index(index, self.grid))
        corner = triple(i * unit for i, unit in zip(place, self.unit, strict=True))
        return Block(index, Box.of_shape(self.unit).shift(corner).shift(self.region.start).intersect(self.region))

    def tiles(self, block: Block) -> Iterator[Tile]:
        """The tiles of a block; their targets cover its write box exactly once."""
        return tiles_of(block.write, self.tile, self.model)

    def read_box(self, block: Block) -> Box:
        """Everything that the tiles of a block see; it may reach beyond the volume."""
        return hull_of(block.write, self.tile, self.model)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "shape": list(self.shape),
            "region": [list(self.region.start), list(self.region.stop)],
            "model": self.model.to_json(),
            "tile": list(self.tile),
            "batch": self.batch,
            "unit": list(self.unit),
            "chunk": list(self.chunk),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The plan that `to_json` wrote."""
        start, stop = (triple(corner) for corner in data["region"])
        return cls(
            shape=triple(data["shape"]),
            region=Box(start, stop),
            model=ModelSpec.from_json(data["model"]),
            tile=triple(data["tile"]),
            batch=int(data["batch"]),
            unit=triple(data["unit"]),
            chunk=triple(data["chunk"]),
        )
