"""What is known of a network that was not trained here: how it behaves, not how it is made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from emseg.box import Triple, triple
from emseg.errors import ModelError
from emseg.specs.network import Tiled

Activation = Literal["logits", "softmax", "sigmoid", "sigmoid logits"]
"""What a network gives: logits of classes that exclude one another, or their probabilities; or one channel, the probability
that a voxel belongs to the second of two classes, or its logit."""


@dataclass(frozen=True, slots=True)
class Contract(Tiled):
    """How a network behaves, read from its file or found by experiment, see `emseg.probe`.

    Raises
    ------
    ModelError
        If the fields disagree.
    """

    classes: tuple[str, ...]
    """Name of each class, in the order of the label values from 0."""
    planar: bool
    """Whether it is a 2-D network, run slice by slice."""
    context: Triple
    """Voxels (z, y, x) that are taken off each side of a tile: by the network, and by cropping."""
    lattice: Triple
    """Shift (z, y, x) in voxels of which the network commutes with multiples only."""
    least: Triple
    """Shape (z, y, x) in voxels of the smallest tile; others are longer by multiples of the lattice."""
    crop: Triple
    """Voxels (z, y, x) of the context that the network gives, but with what it pads with in view: they are cropped."""
    activation: Activation
    """What the network gives."""
    local: bool
    """Whether no voxel of its output saw more than the context: only then labels do not depend on tiles."""
    parameters: int
    """Number of learnt numbers, biases included."""
    flops_per_voxel: int
    """Floating-point operations for each voxel of a tile."""
    bytes_per_voxel: int
    """Bytes of tensors alive at once for each voxel of a tile, in float32."""
    only_tile: Triple | None = None
    """The only shape (z, y, x) of tiles that it takes, if there is just one."""
    channel: int | None = None
    """The one of its channels that is looked at, if there are others."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= 254:
            raise ModelError(f"a network has 2 to 254 classes (label 255 means 'not computed'), not {len(self.classes)}")
        if self.activation not in get_args(Activation):
            raise ModelError(f"what a network gives is one of {', '.join(get_args(Activation))}, not {self.activation!r}")
        if self.activation.startswith("sigmoid") and len(self.classes) != 2:
            raise ModelError(f"one channel tells two classes apart, not {len(self.classes)}: name two")
        sizes = (*self.lattice, *self.least, self.flops_per_voxel + 1, self.bytes_per_voxel + 1)
        if min(sizes) < 1 or min(*self.context, *self.crop) < 0:
            raise ModelError(f"the sizes of the contract {self} are out of range")

    @property
    def channels(self) -> int:
        """Channels of the input; a network with others has no contract."""
        return 1

    def fits(self, axis: int, length: int) -> bool:
        """Whether tiles of this length on `axis`, in voxels, go through the network."""
        return length == self.next_valid(axis, length)

    def next_valid(self, axis: int, length: int) -> int:
        """Smallest tile length on `axis`, in voxels, that is at least `length` and goes through the network."""
        if self.only_tile is not None:
            return self.only_tile[axis]
        length = max(length, self.least[axis])
        return length + (self.least[axis] - length) % self.lattice[axis]

    def flops(self, tile: Triple) -> int:
        """Floating-point operations on one tile."""
        self.output_shape(tile)
        return self.flops_per_voxel * math.prod(tile)

    def activation_bytes(self, tile: Triple) -> int:
        """Bytes of tensors alive at once while one float32 tile goes through the network."""
        self.output_shape(tile)
        return self.bytes_per_voxel * math.prod(tile)

    def planes(self) -> Iterator[tuple[str, Triple]]:
        """What must be the same in y and x if tiles are to be turned: its name, and its sizes (z, y, x)."""
        yield "context", self.context
        yield "lattice", self.lattice
        yield "smallest tile", self.least

    @property
    def kind(self) -> str:
        """What sort of network it is."""
        return f"{'2-D' if self.planar else '3-D'} network that was not trained with emseg"

    @property
    def gives(self) -> str:
        """What its output is."""
        return self.activation if self.channel is None else f"{self.activation} in channel {self.channel}"

    def remarks(self) -> Iterator[tuple[str, str]]:
        """What users of it should know besides, by what it is about."""
        least = " x ".join(map(str, self.least))
        if self.only_tile is not None:
            yield "tiles", f"of {least} voxels alone"
        else:
            yield "tiles", f"of {least} voxels, and longer by multiples of the lattice"
        if any(self.crop):
            yield "padding", f"{' x '.join(map(str, self.crop))} voxels beside it are cropped from each side of its output"
        if self.local:
            yield (
                "exact",
                "found by experiment: no voxel that is kept saw where its tile ends, so labels do not depend on tiles",
            )
        else:
            yield "exact", "NOT: its voxels see the whole tile (as with instance normalisation), so labels depend on tiles"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {"contract": asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The contract that `to_json` wrote.

        Raises
        ------
        ModelError
            If a field is missing, unknown or has the wrong type.
        """
        try:
            fields = dict(data["contract"])
            fields |= {name: triple(fields[name]) for name in ("context", "lattice", "least", "crop")}
            fields["classes"] = tuple(fields["classes"])
            if fields.get("only_tile") is not None:
                fields["only_tile"] = triple(fields["only_tile"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the model's contract is not valid: {error}") from error
