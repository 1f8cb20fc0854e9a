"""Description of an ensemble: several networks with the same heads, run on the same tiles, whose predictions are averaged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from emseg_core.box import Triple, triple
from emseg_core.errors import ModelError
from emseg_core.specs.contract import Contract
from emseg_core.specs.heads import ACTIVATIONS, Head, channels_of
from emseg_core.specs.model import FLOAT32_BYTES
from emseg_core.specs.network import NetworkSpec, Tiled

MAX_MEMBERS = 64
"""Most networks of an ensemble."""
MAX_LATTICE = 4096
"""Largest lattice of an ensemble, in voxels."""


@dataclass(frozen=True, slots=True)
class EnsembleSpec(Tiled):
    """Networks whose predictions are averaged; everything that planning needs follows from theirs.

    A member gets a part of each tile, whose output starts where that of the ensemble does. Its lattice divides that of the
    ensemble, so its output is the same as if it ran alone.

    Raises
    ------
    ModelError
        If the networks disagree about their heads, or no tile suits all of them.
    """

    members: tuple[NetworkSpec, ...]
    """The networks, in the order in which their predictions are summed."""
    lattice: Triple = field(init=False)
    """Least common multiple (z, y, x) of the members' lattices, in voxels."""
    context: Triple = field(init=False)
    """Voxels (z, y, x) removed from each side of a tile.

    That is the largest context of a member, and more only where the lengths of outputs that the members give have no length in
    common: then some members label voxels behind the end that are not used.
    """
    _first: Triple = field(init=False, repr=False)
    """Length (z, y, x) of the shortest output, in voxels; others are longer by multiples of the lattice."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.members) <= MAX_MEMBERS:
            raise ModelError(f"an ensemble has 2 to {MAX_MEMBERS} models, not {len(self.members)}")
        check_agreement(self.members)
        lattice = triple(math.lcm(*sizes) for sizes in zip(*(member.lattice for member in self.members), strict=True))
        if max(lattice) > MAX_LATTICE:
            raise ModelError(
                f"the lattices {' and '.join(str(member.lattice) for member in self.members)} of the models have the least "
                f"common multiple {lattice}, more than {MAX_LATTICE} voxels: leave out one of the models"
            )
        found = [_axis(self.members, axis, lattice[axis]) for axis in range(3)]
        for name, value in (
            ("lattice", lattice),
            ("context", triple(context for context, _ in found)),
            ("_first", triple(first for _, first in found)),
        ):
            object.__setattr__(self, name, value)

    @property
    def heads(self) -> tuple[Head, ...]:
        """Heads of the first member, with which the others agree."""
        return self.members[0].heads

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class that excludes the others, in the order of the label values from 0; empty if there are none."""
        return self.members[0].classes

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self.members[0].channels

    @property
    def planar(self) -> bool:
        """Whether all members are 2-D networks."""
        return all(member.planar for member in self.members)

    @property
    def parameters(self) -> int:
        """Number of learned parameters of all members."""
        return sum(member.parameters for member in self.members)

    @property
    def kind(self) -> str:
        """Types of the networks."""
        return f"ensemble of {len(self.members)}: {'; '.join(member.kind for member in self.members)}"

    @property
    def gives(self) -> str:
        """Type of output."""
        return f"mean of {'; '.join(dict.fromkeys(member.gives for member in self.members))}"

    @property
    def only_tile(self) -> Triple | None:
        """The only tile shape (z, y, x), if a member accepts a single one."""
        if all(member.only_tile is None for member in self.members):
            return None
        return triple(length + 2 * c for length, c in zip(self._first, self.context, strict=True))

    def fits(self, axis: int, length: int) -> bool:
        """Return whether all members accept parts of tiles of this length on `axis`, in voxels.

        Parameters
        ----------
        axis
            0, 1 or 2 for z, y or x.
        length
            Length of the tile in voxels.

        Returns
        -------
        bool
            True if they do.
        """
        return length == self.next_valid(axis, length)

    def next_valid(self, axis: int, length: int) -> int:
        """Return the smallest tile length on `axis`, in voxels, that is at least `length` and suits all members.

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
        if (only := self.only_tile) is not None:
            return only[axis]
        least = self._first[axis] + 2 * self.context[axis]
        length = max(length, least)
        return length + (least - length) % self.lattice[axis]

    def parts(self, tile: Triple) -> tuple[tuple[Triple, Triple], ...]:
        """Return which part of a tile each member gets.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Returns
        -------
        tuple
            For each member, where its part starts in the tile, and the shape of the part, both (z, y, x) in voxels.

        Raises
        ------
        ModelError
            If the tile does not fit the ensemble.
        """
        output = self.output_shape(tile)
        return tuple(
            (
                triple(mine - theirs for mine, theirs in zip(self.context, member.context, strict=True)),
                triple(member.next_valid(axis, output[axis] + 2 * member.context[axis]) for axis in range(3)),
            )
            for member in self.members
        )

    def flops(self, tile: Triple) -> int:
        """Return the floating-point operations of all members on one tile.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Returns
        -------
        int
            Number of operations.
        """
        return sum(member.flops(part) for member, (_, part) in zip(self.members, self.parts(tile), strict=True))

    def activation_bytes(self, tile: Triple) -> int:
        """Return the peak memory of tensors, in bytes, while one tile goes through the members one after another.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Returns
        -------
        int
            Bytes: the most that a member needs, the tile as each member wants it normalised, and the sum of predictions.
        """
        largest = max(member.activation_bytes(part) for member, (_, part) in zip(self.members, self.parts(tile), strict=True))
        summed = 2 * channels_of(self.heads) * math.prod(self.output_shape(tile))
        return largest + FLOAT32_BYTES * (len(self.members) * math.prod(tile) + summed)

    def planes(self) -> Iterator[tuple[str, Triple]]:
        """Yield name and sizes (z, y, x) of everything that must be equal in y and x for tiles to be rotated."""
        for number, member in enumerate(self.members, 1):
            yield from ((f"{what} of model {number}", sizes) for what, sizes in member.planes())
        yield "context", self.context
        yield "shortest output", self._first

    def remarks(self) -> Iterator[tuple[str, str]]:
        """Yield further facts for users, each with its topic."""
        for number, member in enumerate(self.members, 1):
            yield from ((f"{what} of model {number}", fact) for what, fact in member.remarks())

    def to_json(self) -> dict[str, Any]:
        """Return the descriptions of the members as JSON values."""
        return {"ensemble": [member.to_json() for member in self.members]}


def check_agreement(members: Sequence[NetworkSpec]) -> None:
    """Check that networks have the same heads, so that their predictions can be averaged.

    Activations and the order of channels in a network's own output may differ.

    Parameters
    ----------
    members
        The networks.

    Raises
    ------
    ModelError
        If the heads differ.
    """
    first = members[0]
    for number, other in enumerate(members[1:], 2):
        if other.channels != first.channels:
            raise ModelError(
                f"model 1 takes {first.channels} channels, model {number} {other.channels}: give models with the same input"
            )
        if taken := next((spec.inputs for spec in (first, other) if isinstance(spec, Contract) and spec.inputs.channels), None):
            raise ModelError(f"an ensemble reads one channel, but a model takes {taken}: run it alone")
        mine, theirs = ({head.name: _meaning(head) for head in spec.heads} for spec in (first, other))
        for name in dict.fromkeys((*mine, *theirs)):
            if mine.get(name) != theirs.get(name):
                said = [
                    f"model {which} has {'no head ' + repr(name) if found is None else found}"
                    for which, found in ((1, mine.get(name)), (number, theirs.get(name)))
                ]
                raise ModelError(
                    f"{', but '.join(said)}: give models that agree, or correct the description beside one of their files"
                )


def _meaning(head: Head) -> Head:
    """Return a head without what only concerns a network's own output."""
    return replace(head, activation=ACTIVATIONS[head.kind][0], source=None)


def _axis(members: Sequence[NetworkSpec], axis: int, lattice: int) -> tuple[int, int]:
    """Return the context on an axis, and the length of the shortest output.

    A member whose outputs do not have the length of the ensemble's labels some voxels more, for which the tile must be long
    enough.
    """
    outputs = {member.output_shape(only)[axis] for member in members if (only := member.only_tile) is not None}
    if len(outputs) > 1:
        few, many = sorted(outputs)[:2]
        raise ModelError(
            f"two models accept a single tile each, and label {few} and {many} voxels of it along {'zyx'[axis]}: export them "
            "for tiles that give outputs of the same shape, or for tiles of any shape"
        )
    least = max(member.next_valid(axis, 1) - 2 * member.context[axis] for member in members)
    found = []
    for length in outputs or range(least, least + lattice):
        needed = (member.next_valid(axis, length + 2 * member.context[axis]) - member.context[axis] for member in members)
        context = max(*(member.context[axis] for member in members), *(end - length for end in needed))
        found.append((context, length))
    return min(found)
