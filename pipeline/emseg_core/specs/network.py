"""The properties of a network that planning needs: the tiles it accepts, its output, and its cost."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Protocol

from emseg_core.box import Triple, triple
from emseg_core.errors import ModelError
from emseg_core.specs.heads import Head


class NetworkSpec(Hashable, Protocol):
    """Facts about a network that planning needs.

    On each axis, the lengths of valid tiles are congruent modulo the lattice. The output is shorter than the tile by the
    context on each side, and the network commutes with shifts by the lattice.
    """

    @property
    def heads(self) -> tuple[Head, ...]:
        """Heads, in the order of their channels in a prediction."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class that excludes the others, in the order of the label values from 0; empty if there are none."""

    @property
    def channels(self) -> int:
        """Channels of the volume that are read."""

    @property
    def planar(self) -> bool:
        """Whether it is a 2-D network, which is blind along z and run slice by slice."""

    @property
    def lattice(self) -> Triple:
        """Shift (z, y, x) in voxels; the network commutes only with multiples of it."""

    @property
    def context(self) -> Triple:
        """Voxels (z, y, x) removed from each side of a tile."""

    @property
    def parameters(self) -> int:
        """Number of learned parameters, biases included."""

    @property
    def kind(self) -> str:
        """Type of network, in a few words."""

    @property
    def gives(self) -> str:
        """Type of output, in a word or two."""

    @property
    def only_tile(self) -> Triple | None:
        """The only tile shape (z, y, x) that the network accepts, if there is just one."""

    def fits(self, axis: int, length: int) -> bool:
        """Return whether the network accepts tiles of this length on `axis`, in voxels.

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

    def output_shape(self, tile: Triple) -> Triple:
        """Return the shape (z, y, x) of the output for a tile of this shape, in voxels.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Returns
        -------
        Triple
            Shape in voxels.

        Raises
        ------
        ModelError
            If a tile of this shape does not fit the network.
        """

    def tile_for(self, target: Triple) -> Triple:
        """Return the shape (z, y, x) of the smallest tile whose output holds a box of shape `target`, in voxels.

        Parameters
        ----------
        target
            Shape (z, y, x) of the box, in voxels.

        Returns
        -------
        Triple
            Shape in voxels.
        """

    def step(self, tile: Triple) -> Triple:
        """Return the shift (z, y, x) between neighbouring tiles, in voxels: the largest on the lattice that leaves no gap.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Returns
        -------
        Triple
            Shift in voxels.
        """

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

    def activation_bytes(self, tile: Triple) -> int:
        """Return the peak memory of tensors, in bytes, while one float32 tile goes through the network in inference.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Returns
        -------
        int
            Bytes.
        """

    def planes(self) -> Iterator[tuple[str, Triple]]:
        """Yield name and sizes (z, y, x) of everything that must be equal in y and x for tiles to be rotated."""

    def remarks(self) -> Iterator[tuple[str, str]]:
        """Yield further facts for users, each with its topic."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""


class Tiled:
    """Tile arithmetic that follows from the facts about a network."""

    __slots__ = ()

    def output_shape(self: NetworkSpec, tile: Triple) -> Triple:
        """Return the shape (z, y, x) of the output for a tile of this shape, in voxels.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Returns
        -------
        Triple
            Shape in voxels.

        Raises
        ------
        ModelError
            If a tile of this shape does not fit the network.
        """
        for axis, length in enumerate(tile):
            if not self.fits(axis, length):
                raise ModelError(
                    f"a tile of shape {tile} does not fit the network on axis {'zyx'[axis]}: "
                    f"{length} is not valid, the next valid size is {self.next_valid(axis, length)}"
                )
        return triple(length - 2 * c for length, c in zip(tile, self.context, strict=True))

    def tile_for(self: NetworkSpec, target: Triple) -> Triple:
        """Return the shape (z, y, x) of the smallest tile whose output holds a box of shape `target`, in voxels.

        Parameters
        ----------
        target
            Shape (z, y, x) of the box, in voxels.

        Returns
        -------
        Triple
            Shape in voxels.
        """
        return triple(
            self.next_valid(axis, length + 2 * c) for axis, (length, c) in enumerate(zip(target, self.context, strict=True))
        )

    def step(self: NetworkSpec, tile: Triple) -> Triple:
        """Return the shift (z, y, x) between neighbouring tiles, in voxels: the largest on the lattice that leaves no gap.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Returns
        -------
        Triple
            Shift in voxels.

        Raises
        ------
        ModelError
            If the tile does not fit the network, or its output is smaller than the lattice.
        """
        output = self.output_shape(tile)
        step = triple(length // s * s for length, s in zip(output, self.lattice, strict=True))
        if 0 in step:
            raise ModelError(f"a tile of shape {tile} gives {output}, less than the lattice {self.lattice}: use a larger tile")
        return step
