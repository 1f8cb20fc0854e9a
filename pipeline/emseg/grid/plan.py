"""The plan: how a volume is cut into blocks and tiles. Inert data, answered before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from emseg.box import Box, Triple, triple
from emseg.grid.blocks import Block, Blocks
from emseg.grid.tiles import Tile, hull_of, tiles_of
from emseg.specs.contract import Contract
from emseg.specs.model import ModelSpec
from emseg.specs.network import NetworkSpec


@dataclass(frozen=True, slots=True)
class Plan(Blocks):
    """How a region of a volume is cut into blocks, and these into tiles.

    The write grid starts at the region's corner; lattice, mirroring and context are those of the volume.
    """

    shape: Triple
    """Shape (z, y, x) of the volume, in voxels."""
    model: NetworkSpec
    """The network."""
    tile: Triple
    """Shape (z, y, x) of one network input, in voxels."""
    batch: int
    """Tiles in one call of the network."""
    chunk: Triple
    """Shape (z, y, x) of the chunks inside a write unit, in voxels."""

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
            model=network_from_json(data["model"]),
            tile=triple(data["tile"]),
            batch=int(data["batch"]),
            unit=triple(data["unit"]),
            chunk=triple(data["chunk"]),
        )


def network_from_json(data: Mapping[str, Any]) -> NetworkSpec:
    """The description of a network that its `to_json` wrote.

    Raises
    ------
    ModelError
        If it is none.
    """
    return Contract.from_json(data) if "contract" in data else ModelSpec.from_json(data)
