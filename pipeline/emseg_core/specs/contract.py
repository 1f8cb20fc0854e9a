"""Description of a network that was not trained with emseg: how it behaves, not how it is built."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from emseg_core.box import Triple, triple
from emseg_core.errors import ModelError
from emseg_core.specs.heads import ACTIVATIONS, Activation, Head, channels_of, check_heads, classes_head, classes_of
from emseg_core.specs.inputs import GREY, Inputs
from emseg_core.specs.model import FLOAT32_BYTES
from emseg_core.specs.network import Tiled

Basis = Literal["experiment", "graph", "graph and experiment", "told"]
"""What a contract rests on.

Experiments; arithmetic on the operations of the network, which experiments may have confirmed; or the word of the user.
"""
OUTPUT_COPIES = 2
"""Copies of the outputs of all slices of a tile that exist while they are joined."""
Norms = Literal["frozen", "tile"]
"""Statistics of normalisations over space: measured once on a sample of the volume, or on each tile."""
BASES: dict[Basis, str] = {
    "experiment": "found by experiment",
    "graph": "found by arithmetic on the operations of the network",
    "graph and experiment": "found by arithmetic on the operations of the network, and confirmed by experiment",
    "told": "told, and not checked",
}
NORMALISATION = "normalisation"
"""Word in the reasons of networks whose normalisations see the whole tile."""
FREEZE_HINT = "with --norms frozen, those of a sample of the volume are used for every tile"


@dataclass(frozen=True, slots=True)
class FrozenNorm:
    """The statistics that a normalisation over space uses for every tile, in place of those of the tile."""

    number: int
    """Which of the network's normalisations it is, in the order of its operations, from 0."""
    mean: tuple[float, ...]
    variance: tuple[float, ...]
    """One number for each channel of what is normalised."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the statistics that a contract's `Contract.to_json` wrote."""
        mean, variance = (tuple(map(float, data[name])) for name in ("mean", "variance"))
        if not len(mean) == len(variance) > 0 or not all(map(math.isfinite, (*mean, *variance))) or min(variance) < 0:
            raise ValueError("frozen statistics are a finite mean and variance for each channel")
        return cls(int(data["number"]), mean, variance)


@dataclass(frozen=True, slots=True)
class Contract(Tiled):
    """The behaviour of a network, read from its file or found by experiment; see `emseg_core.model.receptive_field`.

    Raises
    ------
    ModelError
        If the fields are inconsistent.
    """

    classes: tuple[str, ...]
    """Name of each class that excludes the others, in the order of the label values from 0; empty if there are none."""
    planar: bool
    """Whether it is a 2-D network, which is run slice by slice."""
    context: Triple
    """Voxels (z, y, x) removed from each side of a tile, by the network and by cropping."""
    lattice: Triple
    """Shift (z, y, x) in voxels; the network commutes only with multiples of it."""
    least: Triple
    """Shape (z, y, x) in voxels of the smallest tile; others are longer by multiples of the lattice."""
    crop: Triple
    """Voxels (z, y, x) of the context that are cropped from the network's output, because padding affects them."""
    activation: Activation
    """Output of the network, of which ``sigmoid`` is the probability of the second of two classes; ``none`` without classes."""
    local: bool
    """Whether the receptive field of every kept voxel is within the context; only then labels do not depend on tiles."""
    parameters: int
    """Number of learned parameters, biases included."""
    flops_per_voxel: int
    """Floating-point operations per voxel of a tile."""
    bytes_per_voxel: int
    """Peak memory of tensors per voxel of a tile, in bytes, in float32."""
    only_tile: Triple | None = None
    """The only tile shape (z, y, x) that the network accepts, if there is just one."""
    channel: int | None = None
    """The output channel to use, if there are others."""
    named_heads: tuple[Head, ...] = ()
    """All heads of a network that has more than classes, in the order of their channels in a prediction."""
    basis: Basis = "experiment"
    """What context and lattice rest on."""
    reason: str = ""
    """Why labels depend on tiles, if they do."""
    inputs: Inputs = GREY
    """What its input channels are. A tile that is several slices long is computed slice by slice, also if these see others."""
    norms: tuple[FrozenNorm, ...] = ()
    """Frozen normalisations; those that are not frozen use the statistics of each tile."""

    def __post_init__(self) -> None:
        if self.classes or not self.named_heads:
            self._check_classes()
        check_heads(self.heads)
        of_classes = next((head.activation for head in self.heads if head.kind == "classes"), "none")
        if (self.classes, self.activation) != (classes_of(self.heads), of_classes):
            raise ModelError(
                f"the network has classes {self.classes} from {self.activation}, but its heads {classes_of(self.heads)} from "
                f"{of_classes}: give the same ones"
            )
        sizes = (*self.lattice, *self.least, self.flops_per_voxel + 1, self.bytes_per_voxel + 1)
        if min(sizes) < 1 or min(*self.context, *self.crop) < 0:
            raise ModelError(f"the sizes of the contract {self} are out of range")
        if self.inputs.kind == "slices" and (self.planar or self.context[0] != self.inputs.reach or self.crop[0]):
            raise ModelError(f"{self.inputs.count} slices do not fit a context of {self.context} in the contract: correct it")

    def _check_classes(self) -> None:
        """Check that classes and activation go together."""
        if not 2 <= len(self.classes) <= 254:
            raise ModelError(f"a network has 2 to 254 classes (label 255 means 'not computed'), not {len(self.classes)}")
        known = ACTIVATIONS["classes"]
        if self.activation not in known:
            raise ModelError(f"the activation is {self.activation!r}, but must be one of {', '.join(known)}")
        if self.activation.startswith("sigmoid") and len(self.classes) != 2:
            raise ModelError(f"one output channel separates two classes, not {len(self.classes)}: name two")

    @property
    def heads(self) -> tuple[Head, ...]:
        """All heads, in the order of their channels in a prediction."""
        return self.named_heads or (classes_head(self.classes, self.activation, self.channel),)

    @property
    def channels(self) -> int:
        """Channels of the volume that are read; those of the input are made of them, see `inputs`."""
        return max(1, len(self.inputs.channels))

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
        return length == self.next_valid(axis, length)

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
        if self.only_tile is not None:
            return self.only_tile[axis]
        length = max(length, self.least[axis])
        return length + (self.least[axis] - length) % self.lattice[axis]

    def flops(self, tile: Triple) -> int:
        """Return the floating-point operations on one tile.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Returns
        -------
        int
            Number of operations.

        Raises
        ------
        ModelError
            If the tile does not fit the network.
        """
        output = self.output_shape(tile)
        return self.flops_per_voxel * (output[0] * math.prod(tile[1:]) if self.inputs.kind == "slices" else math.prod(tile))

    def activation_bytes(self, tile: Triple) -> int:
        """Return the peak memory of tensors, in bytes, while one float32 tile goes through the network.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Returns
        -------
        int
            Bytes.

        Raises
        ------
        ModelError
            If the tile does not fit the network.
        """
        output = self.output_shape(tile)
        if self.inputs.kind != "slices":
            return self.bytes_per_voxel * math.prod(tile)
        # slices are computed one at a time, and their outputs joined
        kept = FLOAT32_BYTES * (tile[0] + OUTPUT_COPIES * channels_of(self.heads) * output[0])
        return (self.bytes_per_voxel + kept) * math.prod(tile[1:])

    def planes(self) -> Iterator[tuple[str, Triple]]:
        """Yield name and sizes (z, y, x) of everything that must be equal in y and x for tiles to be rotated."""
        yield "context", self.context
        yield "lattice", self.lattice
        yield "smallest tile", self.least

    @property
    def kind(self) -> str:
        """Type of network."""
        axes = "2.5-D" if self.inputs.kind == "slices" else "2-D" if self.planar else "3-D"
        return f"{axes} network, not trained with emseg"

    @property
    def gives(self) -> str:
        """Type of output."""
        if self.named_heads:
            return "; ".join(map(str, self.heads))
        return self.activation if self.channel is None else f"{self.activation} in channel {self.channel}"

    def remarks(self) -> Iterator[tuple[str, str]]:
        """Yield further facts for users, each with its topic."""
        if self.inputs.kind != "grey":
            yield "input", str(self.inputs)
        least = " x ".join(map(str, self.least))
        yield "tiles", f"{least} voxels" + (", or longer by multiples of the lattice" if self.only_tile is None else " only")
        if any(self.crop):
            yield "padding", f"affects {' x '.join(map(str, self.crop))} voxels on each side of the output, which are cropped"
        if self.norms:
            yield "norms", f"frozen: {len(self.norms)} normalisations over space use the statistics in the recipe"
        elif NORMALISATION in self.reason:
            yield "norms", f"statistics of each tile; {FREEZE_HINT}"
        exact = f"NO, because of {self.reason or 'voxels that see more of a tile than the context'}: labels depend on tiles"
        if self.local:
            exact = f"{BASES[self.basis]}: no kept voxel is affected by the end of its tile, so labels do not depend on tiles"
        yield "exact", exact

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; heads only if there are more than classes."""
        said = asdict(self)
        del said["named_heads"], said["inputs"]
        if self.inputs.kind != "grey":
            said["inputs"] = self.inputs.to_json()
        for name in ("basis", "reason", "norms"):  # which older outputs do not have
            if said[name] == self.__dataclass_fields__[name].default:
                del said[name]
        return {"contract": said | ({"heads": [head.to_json() for head in self.named_heads]} if self.named_heads else {})}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the contract that `to_json` wrote.

        Raises
        ------
        ModelError
            If a field is missing, unknown or has the wrong type.
        """
        try:
            fields = dict(data["contract"])
            fields |= {name: triple(fields[name]) for name in ("context", "lattice", "least", "crop")}
            fields["classes"] = tuple(fields["classes"])
            fields["named_heads"] = tuple(map(Head.from_json, fields.pop("heads", ())))
            fields["inputs"] = Inputs.from_json(fields.get("inputs", {}))
            fields["norms"] = tuple(map(FrozenNorm.from_json, fields.get("norms", ())))
            if fields.get("only_tile") is not None:
                fields["only_tile"] = triple(fields["only_tile"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the model's contract is not valid: {error}") from error
