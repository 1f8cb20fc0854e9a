"""What planning asks of a network, whatever it is made of: which tiles it takes, what it gives for them, what that costs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Protocol

from emseg.box import Triple, triple
from emseg.errors import ModelError


class NetworkSpec(Hashable, Protocol):
    """The facts about a network that planning needs.

    On each axis the lengths of tiles that fit are alike modulo the lattice; the output is shorter by the context on each side,
    and the network commutes with shifts by the lattice.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class, in the order of the label values from 0."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the input; a volume has one."""
        ...

    @property
    def planar(self) -> bool:
        """Whether the network never looks along z: a 2-D network, run slice by slice."""
        ...

    @property
    def lattice(self) -> Triple:
        """Shift (z, y, x) in voxels of which the network commutes with multiples only."""
        ...

    @property
    def context(self) -> Triple:
        """Voxels (z, y, x) that are taken off each side of a tile."""
        ...

    @property
    def parameters(self) -> int:
        """Number of learnt numbers, biases included."""
        ...

    @property
    def kind(self) -> str:
        """What sort of network it is, in a few words."""
        ...

    @property
    def gives(self) -> str:
        """What its output is, in a word or two."""
        ...

    @property
    def only_tile(self) -> Triple | None:
        """The only shape (z, y, x) of tiles that the network takes, if there is just one."""
        ...

    def fits(self, axis: int, length: int) -> bool:
        """Whether tiles of this length on `axis`, in voxels, go through the network."""
        ...

    def next_valid(self, axis: int, length: int) -> int:
        """Smallest tile length on `axis`, in voxels, that is at least `length` and goes through the network."""
        ...

    def output_shape(self, tile: Triple) -> Triple:
        """Shape (z, y, x) in voxels that the network makes of a tile of this shape; `ModelError` if that does not fit."""
        ...

    def tile_for(self, target: Triple) -> Triple:
        """Shape (z, y, x) in voxels of the smallest tile whose output holds a box of shape `target`."""
        ...

    def step(self, tile: Triple) -> Triple:
        """Shift (z, y, x) in voxels between neighbouring tiles: the most that the output covers, on the lattice."""
        ...

    def flops(self, tile: Triple) -> int:
        """Floating-point operations of all convolutions on one tile; a multiplication and an addition count as two."""
        ...

    def activation_bytes(self, tile: Triple) -> int:
        """Bytes of tensors alive at once while one float32 tile goes through the network, at the worst moment of inference."""
        ...

    def planes(self) -> Iterator[tuple[str, Triple]]:
        """What must be the same in y and x if tiles are to be turned: its name, and its sizes (z, y, x)."""
        ...

    def remarks(self) -> Iterator[tuple[str, str]]:
        """What users of it should know besides, by what it is about."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        ...


class Tiled:
    """What follows from the facts about a network for its tiles."""

    __slots__ = ()

    def output_shape(self: NetworkSpec, tile: Triple) -> Triple:
        """Shape (z, y, x) in voxels that the network makes of a tile of this shape.

        Raises
        ------
        ModelError
            If a tile of this shape cannot go through the network.
        """
        for axis, length in enumerate(tile):
            if not self.fits(axis, length):
                raise ModelError(
                    f"a tile of shape {tile} does not fit the network on axis {'zyx'[axis]}: "
                    f"{length} is not valid, the next valid size is {self.next_valid(axis, length)}"
                )
        return triple(length - 2 * c for length, c in zip(tile, self.context, strict=True))

    def tile_for(self: NetworkSpec, target: Triple) -> Triple:
        """Shape (z, y, x) in voxels of the smallest tile whose output holds a box of shape `target`."""
        return triple(
            self.next_valid(axis, length + 2 * c) for axis, (length, c) in enumerate(zip(target, self.context, strict=True))
        )

    def step(self: NetworkSpec, tile: Triple) -> Triple:
        """Shift (z, y, x) in voxels between neighbouring tiles: the most that the output covers, on the lattice.

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
