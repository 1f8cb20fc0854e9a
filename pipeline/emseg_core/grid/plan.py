"""The plan: how a volume is divided into blocks and tiles. Immutable data, complete before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from emseg_core.box import Box, Triple, triple
from emseg_core.grid.blocks import Block, Blocks
from emseg_core.grid.tiles import Tile, hull_of, tiles_of
from emseg_core.specs.augmented import AugmentedSpec
from emseg_core.specs.contract import Contract
from emseg_core.specs.ensemble import EnsembleSpec
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.network import NetworkSpec


@dataclass(frozen=True, slots=True)
class Plan(Blocks):
    """Division of a region of a volume into blocks, and of blocks into tiles.

    The write grid starts at the region's corner. Lattice, mirroring and context refer to the volume.
    """

    shape: Triple
    """Shape (z, y, x) of the volume, in voxels."""
    model: NetworkSpec
    """The network."""
    tile: Triple
    """Shape (z, y, x) of a network input, in voxels."""
    batch: int
    """Tiles per call of the network."""
    chunk: Triple
    """Shape (z, y, x) of the chunks inside a write unit, in voxels."""

    def tiles(self, block: Block) -> Iterator[Tile]:
        """Return the tiles of a block. Their targets cover its write box exactly once.

        Parameters
        ----------
        block
            A block of the plan.

        Returns
        -------
        iterator of Tile
            The tiles, in the order in which they are predicted.
        """
        return tiles_of(block.write, self.tile, self.model)

    def read_box(self, block: Block) -> Box:
        """Return the box of everything that the tiles of a block see. It may reach beyond the volume.

        Parameters
        ----------
        block
            A block of the plan.

        Returns
        -------
        Box
            In voxels of the volume.
        """
        return hull_of(block.write, self.tile, self.model)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
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
        """Return the plan that `to_json` wrote."""
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
    """Return the network description that its `to_json` wrote.

    Parameters
    ----------
    data
        JSON values of an `AugmentedSpec`, an `EnsembleSpec`, a `Contract` or a `ModelSpec`.

    Returns
    -------
    NetworkSpec
        The description.

    Raises
    ------
    ModelError
        If the values do not describe a network.
    """
    if "augmented" in data:
        return AugmentedSpec(network_from_json(data["augmented"]), triple(data["margin"]))
    if "ensemble" in data:
        return EnsembleSpec(tuple(map(network_from_json, data["ensemble"])))
    return Contract.from_json(data) if "contract" in data else ModelSpec.from_json(data)
