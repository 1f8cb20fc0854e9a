"""Description and cost of a U-Net, by arithmetic alone: no weights, no torch.

The network is that of Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015 (arXiv:1505.04597), with its sizes as parameters::

    level 0   tile -> conv conv ------------- crop, join -> conv conv -> 1x1x1 -> logits
    level 1           pool -> conv conv ----- crop, join -> conv conv -> up
    level 2                   pool -> conv conv -> up

Every axis is treated by the same arithmetic. A valid convolution with kernel k removes k - 1 voxels, pooling by p divides
the length by p, and an up-convolution multiplies it by p. Each level has two convolutions on the way down and two on the way
up, so the number of voxels that level l and all levels below it remove from an axis, counted at level l, is
``loss(l) = 4 (k_l - 1) + p_l loss(l + 1)``, and ``2 (k - 1)`` at the bottom. Half of ``loss(0)`` is the context per side.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from operator import index
from typing import Any, Literal, Self, get_args

from emseg_core.box import Triple, triple
from emseg_core.errors import ModelError
from emseg_core.specs.heads import Head, channels_of, check_heads, classes_head
from emseg_core.specs.network import Tiled

OutputKind = Literal["softmax"]
"""How logits become probabilities: ``softmax`` for mutually exclusive classes."""

FLOAT32_BYTES = 4
INT64_BYTES = 8

MAX_DEPTH = 32
"""Largest number of poolings of a network."""

MAX_SIZE = 2**16
"""Largest width, number of channels, kernel and pooling factor; a larger value means that the description is damaged."""

MAX_NAME_LENGTH = 255
"""Largest length of a class name, in characters."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the network, as the cost arithmetic needs it."""

    kind: Literal["convolve", "pool", "up", "join"]
    """Type of layer."""
    inputs: int
    """Number of input channels."""
    outputs: int
    """Number of output channels."""
    taps: int
    """Number of voxels of the kernel; 0 for layers without weights."""
    shape: Triple
    """Shape (z, y, x) of the output, in voxels."""

    @property
    def flops(self) -> int:
        """Floating-point operations. In an up-convolution, each output voxel sums a single tap."""
        taps = min(self.taps, 1) if self.kind == "up" else self.taps
        return 2 * self.inputs * self.outputs * taps * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ModelSpec(Tiled):
    """Description of a U-Net; everything that planning needs follows from it.

    Raises
    ------
    ModelError
        If a field is out of range or the fields are inconsistent.

    Examples
    --------
    The network of the paper:

    >>> paper = ModelSpec.unet(width=64, depth=4, classes=("inside", "membrane"))
    >>> paper.context, paper.lattice
    ((0, 92, 92), (1, 16, 16))
    >>> paper.output_shape((1, 572, 572))
    (1, 388, 388)
    >>> paper.parameters
    31030658
    """

    width: int
    """Channels of the first level; each level has twice as many as the one above."""
    depth: int
    """Number of poolings."""
    classes: tuple[str, ...]
    """Name of each class, in the order of the label values from 0."""
    kernels: tuple[Triple, ...]
    """Kernel (z, y, x) in voxels of each level from the top: ``depth + 1`` of them, odd numbers."""
    pooling: tuple[Triple, ...]
    """Pooling factor (z, y, x) below each level: ``depth`` of them."""
    channels: int = 1
    """Channels of the input; a volume has one."""
    dropout: float = 0.5
    """Share of activations dropped in training at the end of the contracting path."""
    output: OutputKind = "softmax"
    """How logits become probabilities."""
    others: tuple[Head, ...] = ()
    """Heads of independent classes and affinities. Their channels follow those of the classes, of which there may be none."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 0 or self.channels < 1:
            raise ModelError(
                f"a network needs width >= 1, depth >= 0 and channels >= 1, not width {reprlib.repr(self.width)}, "
                f"depth {reprlib.repr(self.depth)}, channels {reprlib.repr(self.channels)}"
            )
        largest = max(self.width, self.channels, *(size for sizes in (*self.kernels, *self.pooling) for size in sizes))
        if self.depth > MAX_DEPTH or largest > MAX_SIZE:
            raise ModelError(
                f"the network has depth {reprlib.repr(self.depth)} and sizes up to {reprlib.repr(largest)}, but no network is "
                f"deeper than {MAX_DEPTH} or has a width, channels, kernel or pooling above {MAX_SIZE}: correct its description"
            )
        if not (0 if self.others else 1) <= len(self.classes) <= 254:
            raise ModelError(f"a network has 1 to 254 classes (label 255 means 'not computed'), not {len(self.classes)}")
        if odd := [
            name for head in self.heads for name in head.channels if len(name) > MAX_NAME_LENGTH or not name.isprintable()
        ]:
            raise ModelError(
                f"a class or channel is named {reprlib.repr(odd[0])}, which is too long or not printable: rename it"
            )
        if len(self.kernels) != self.depth + 1 or len(self.pooling) != self.depth:
            raise ModelError(
                f"depth {self.depth} needs {self.depth + 1} kernels and {self.depth} poolings, "
                f"not {len(self.kernels)} and {len(self.pooling)}"
            )
        if any(k < 1 or k % 2 == 0 for kernel in self.kernels for k in kernel):
            raise ModelError(f"kernels must be odd and positive on each axis, not {reprlib.repr(self.kernels)}")
        if any(p < 1 for factor in self.pooling for p in factor):
            raise ModelError(f"pooling factors must be positive on each axis, not {reprlib.repr(self.pooling)}")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"dropout must be in [0, 1), not {self.dropout}")
        if self.output not in get_args(OutputKind):
            raise ModelError(f"the output kind must be one of {get_args(OutputKind)}, not {reprlib.repr(self.output)}")

        if odd_heads := [head for head in self.others if head.activation != "sigmoid logits" or head.source is not None]:
            raise ModelError(
                f"the head {odd_heads[0].name!r} of a U-Net takes channels of its own and their sigmoid, not "
                f"{odd_heads[0].activation} of chosen channels: correct its description"
            )
        if far := [offset for head in self.others for offset in head.offsets if max(map(abs, offset)) > MAX_SIZE]:
            raise ModelError(f"an affinity has the offset {reprlib.repr(far[0])}, which is damaged: correct it")
        check_heads(self.heads)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The head of its classes, if there are any, and the others."""
        return ((classes_head(self.classes),) if self.classes else ()) + self.others

    @property
    def logits(self) -> int:
        """Number of channels of the last layer."""
        return channels_of(self.heads)

    @classmethod
    def unet(
        cls,
        *,
        width: int = 64,
        depth: int = 4,
        classes: tuple[str, ...] = ("inside", "membrane"),
        kernel: Triple = (1, 3, 3),
        pooling: Triple = (1, 2, 2),
        dropout: float = 0.5,
        others: tuple[Head, ...] = (),
    ) -> ModelSpec:
        """Return a U-Net with the same kernel and pooling on each level; the defaults are those of the paper.

        Parameters
        ----------
        width
            Channels of the first level.
        depth
            Number of poolings.
        classes
            Name of each class, in the order of the label values from 0.
        kernel
            Kernel (z, y, x), in voxels.
        pooling
            Pooling factor (z, y, x).
        dropout
            Share of activations dropped in training.
        others
            Heads of independent classes and affinities.

        Returns
        -------
        ModelSpec
            The description.

        Raises
        ------
        ModelError
            If a value is out of range.
        """
        return cls(width, depth, classes, (kernel,) * (depth + 1), (pooling,) * depth, dropout=dropout, others=others)

    # -- geometry -----------------------------------------------------------------------------------------------

    @property
    def planar(self) -> bool:
        """Whether it is a 2-D network, which is blind along z and run slice by slice."""
        return all(kernel[0] == 1 for kernel in self.kernels) and all(factor[0] == 1 for factor in self.pooling)

    @property
    def kind(self) -> str:
        """Type of network."""
        return f"{'2-D' if self.planar else '3-D'} U-Net of width {self.width} and depth {self.depth}"

    @property
    def gives(self) -> str:
        """Type of output."""
        return "; ".join(map(str, self.heads)) if self.others else self.output

    @property
    def only_tile(self) -> Triple | None:
        """Always None: a U-Net accepts tiles of many shapes."""
        return None

    @property
    def lattice(self) -> Triple:
        """Product of the pooling factors (z, y, x); the network commutes only with shifts by multiples of it."""
        return triple(math.prod(factor[axis] for factor in self.pooling) for axis in range(3))

    @property
    def context(self) -> Triple:
        """Voxels (z, y, x) that valid convolutions remove from each side of a tile."""
        return triple(self._loss(axis) // 2 for axis in range(3))

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
        length = max(length, 2 * self.context[axis] + 1)
        taken = 0  # valid lengths are congruent to this modulo the lattice
        for kernel, factor in zip(self.kernels[:-1][::-1], self.pooling[::-1], strict=True):
            taken = factor[axis] * taken + 2 * (kernel[axis] - 1)
        return length + (taken - length) % self.lattice[axis]

    def _loss(self, axis: int, level: int = 0) -> int:
        taken = self.kernels[level][axis] - 1
        if level == self.depth:
            return 2 * taken
        return 4 * taken + self.pooling[level][axis] * self._loss(axis, level + 1)

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
        for level in range(self.depth):
            length -= 2 * (self.kernels[level][axis] - 1)
            if length <= 0 or length % self.pooling[level][axis]:
                return False
            length //= self.pooling[level][axis]
        length -= 2 * (self.kernels[self.depth][axis] - 1)
        for level in reversed(range(self.depth)):
            if length <= 0:
                return False
            length = length * self.pooling[level][axis] - 2 * (self.kernels[level][axis] - 1)
        return length > 0

    def planes(self) -> Iterator[tuple[str, Triple]]:
        """Yield name and sizes (z, y, x) of everything that must be equal in y and x for tiles to be rotated."""
        for kind, sizes in (("kernel", self.kernels), ("pooling", self.pooling)):
            yield from ((f"{kind} at level {level}", size) for level, size in enumerate(sizes))

    def remarks(self) -> Iterator[tuple[str, str]]:
        """Yield nothing: the fields describe a U-Net completely."""
        yield from ()

    # -- cost ---------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> int:
        """Number of learned parameters, biases included."""
        layers = self.layers(self.tile_for((1, 1, 1)))
        return sum(layer.inputs * layer.outputs * layer.taps + layer.outputs for layer in layers if layer.taps)

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

        Raises
        ------
        ModelError
            If the tile does not fit the network.
        """
        self.output_shape(tile)
        return sum(layer.flops for layer in self.layers(tile))

    def activation_bytes(self, tile: Triple) -> int:
        """Return the peak memory of tensors, in bytes, while one float32 tile goes through the network in inference.

        Weights and the scratch memory inside a convolution are not counted.

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
        self.output_shape(tile)
        held = self.channels * math.prod(tile)  # the tile, and later the skips
        skips: list[int] = []
        current = peak = 0
        for layer in self.layers(tile):
            made = layer.outputs * math.prod(layer.shape)
            if layer.kind == "pool":
                skips.append(current)
                held, current = held + current, 0
                peak = max(peak, held + made + made * INT64_BYTES // FLOAT32_BYTES)  # torch keeps an index per maximum
            elif layer.kind == "join":
                peak = max(peak, held + current + made)
                held -= skips.pop()
            else:
                peak = max(peak, held + current + made)
            current = made
        return FLOAT32_BYTES * peak

    def layers(self, tile: Triple) -> Iterator[Layer]:
        """Yield the layers in the order of the forward pass on a tile of this shape.

        Parameters
        ----------
        tile
            Shape (z, y, x) of the tile, in voxels.

        Yields
        ------
        Layer
            A layer with the shape of its output.
        """
        shape, channels = tile, self.channels
        for level, kernel in enumerate(self.kernels):
            width = self.width * 2**level
            if level:
                shape = triple(length // p for length, p in zip(shape, self.pooling[level - 1], strict=True))
                yield Layer("pool", channels, channels, 0, shape)
            for inputs in (channels, width):
                shape = triple(length - k + 1 for length, k in zip(shape, kernel, strict=True))
                yield Layer("convolve", inputs, width, math.prod(kernel), shape)
            channels = width
        for level in reversed(range(self.depth)):
            width, kernel, factor = self.width * 2**level, self.kernels[level], self.pooling[level]
            shape = triple(length * p for length, p in zip(shape, factor, strict=True))
            yield Layer("up", channels, width, math.prod(factor), shape)
            yield Layer("join", 2 * width, 2 * width, 0, shape)
            for inputs in (2 * width, width):
                shape = triple(length - k + 1 for length, k in zip(shape, kernel, strict=True))
                yield Layer("convolve", inputs, width, math.prod(kernel), shape)
            channels = width
        yield Layer("convolve", channels, self.logits, 1, shape)

    # -- JSON ---------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "others"}
        return found | ({"heads": [head.to_json() for head in self.others]} if self.others else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the spec that `to_json` wrote.

        Raises
        ------
        ModelError
            If a field is missing, unknown or has the wrong type.
        """
        known = {field.name for field in fields(cls)} - {"others"} | {"heads"}
        if unknown := set(data) - known:
            found = reprlib.repr(sorted(unknown))
            raise ModelError(f"unknown fields {found} in the model's description; known are {sorted(known)}")
        try:
            return cls(
                width=index(data["width"]),
                depth=index(data["depth"]),
                classes=_names(data["classes"]),
                kernels=tuple(triple(map(index, kernel)) for kernel in data["kernels"]),
                pooling=tuple(triple(map(index, factor)) for factor in data["pooling"]),
                channels=index(data.get("channels", 1)),
                dropout=_number(data.get("dropout", 0.5)),
                output=data.get("output", "softmax"),
                others=tuple(map(Head.from_json, data.get("heads", ()))),
            )
        except KeyError as error:
            raise ModelError(f"the model's description lacks {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"the model's description is not valid: {error}") from error


def _names(values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(name, str) for name in values):
        raise TypeError(f"classes must be a list of names, not {reprlib.repr(values)}")
    return tuple(values)


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"dropout must be a number, not {reprlib.repr(value)}")
    return float(value)
