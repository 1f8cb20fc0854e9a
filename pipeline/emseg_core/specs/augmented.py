"""Description of a network with test-time augmentation that looks beyond the voxels whose labels it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emseg_core.box import Triple, triple
from emseg_core.specs.heads import Head
from emseg_core.specs.network import NetworkSpec, Tiled


@dataclass(frozen=True, slots=True)
class AugmentedSpec(Tiled):
    """A network whose predictions are needed some voxels beyond each side of what is stored.

    An affinity that is turned around is that of another voxel, as far away as its offset.
    """

    network: NetworkSpec
    """The network."""
    margin: Triple
    """Voxels (z, y, x) on each side whose predictions are needed, but not stored."""

    @property
    def heads(self) -> tuple[Head, ...]:
        """Heads, in the order of their channels in a prediction."""
        return self.network.heads

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class that excludes the others, in the order of the label values from 0; empty if there are none."""
        return self.network.classes

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self.network.channels

    @property
    def planar(self) -> bool:
        """Whether each slice is predicted on its own."""
        return self.network.planar and self.margin[0] == 0

    @property
    def lattice(self) -> Triple:
        """Shift (z, y, x) in voxels; the network commutes only with multiples of it."""
        return self.network.lattice

    @property
    def context(self) -> Triple:
        """Voxels (z, y, x) removed from each side of a tile: the network's context, and the margin."""
        return triple(c + m for c, m in zip(self.network.context, self.margin, strict=True))

    @property
    def parameters(self) -> int:
        """Number of learned parameters, biases included."""
        return self.network.parameters

    @property
    def kind(self) -> str:
        """Type of network."""
        return self.network.kind

    @property
    def gives(self) -> str:
        """Type of output."""
        return self.network.gives

    @property
    def only_tile(self) -> Triple | None:
        """The only tile shape (z, y, x) that the network accepts, if there is just one."""
        return self.network.only_tile

    def fits(self, axis: int, length: int) -> bool:
        """Return whether the network accepts tiles of this length on `axis`, in voxels, and they hold more than the context.

        Parameters
        ----------
        axis
            0, 1 or 2 for z, y or x.
        length
            Length of the tile in voxels.

        Returns
        -------
        bool
            True if it does.
        """
        return length > 2 * self.context[axis] and self.network.fits(axis, length)

    def next_valid(self, axis: int, length: int) -> int:
        """Return the smallest tile length on `axis`, in voxels, that is at least `length` and that the network accepts.

        Parameters
        ----------
        axis
            0, 1 or 2 for z, y or x.
        length
            Least length of the tile in voxels.

        Returns
        -------
        int
            Length in voxels.
        """
        return self.network.next_valid(axis, max(length, 2 * self.context[axis] + 1))

    def flops(self, tile: Triple) -> int:
        """Return the floating-point operations of all convolutions on one tile; a multiply-add counts as two.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Returns
        -------
        int
            Number of operations.
        """
        return self.network.flops(tile)

    def activation_bytes(self, tile: Triple) -> int:
        """Return the peak memory of tensors, in bytes, while one tile goes through the network.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Returns
        -------
        int
            Bytes.
        """
        return self.network.activation_bytes(tile)

    def planes(self) -> Iterator[tuple[str, Triple]]:
        """Yield name and sizes (z, y, x) of everything that must be equal in y and x for tiles to be rotated."""
        yield from self.network.planes()

    def remarks(self) -> Iterator[tuple[str, str]]:
        """Yield further facts for users, each with its topic."""
        yield from self.network.remarks()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"augmented": self.network.to_json(), "margin": list(self.margin)}


def without_margin(spec: NetworkSpec) -> NetworkSpec:
    """Return the network itself.

    Parameters
    ----------
    spec
        A network, perhaps with test-time augmentation.

    Returns
    -------
    NetworkSpec
        The network.
    """
    return spec.network if isinstance(spec, AugmentedSpec) else spec
