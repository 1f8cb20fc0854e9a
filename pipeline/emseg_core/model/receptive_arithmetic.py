"""Follow how the elements of a network's values lie over its input, by arithmetic on its operations.

Each value of a network, such as the output of a convolution, has axes. An `Axis` says how far apart its elements are, in
voxels of the input, which shifts of the input move it, and how many elements at its start and end depend on where the tile
ends. Each operation turns the axes of its inputs into those of its output; at the output of the network, the number of
elements that depend on where the tile ends is what has to be cropped, and the shift is the network's lattice.

This module knows no library: `emseg_core.model.torch_graph` and `emseg_core.model.onnx_graph` say which operation is which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

Mode = Literal["nearest", "linear", "cubic"]
"""Kind of interpolation."""
HALF = Fraction(1, 2)


@dataclass(frozen=True, slots=True)
class Axis:
    """How the elements of a value lie along one axis of the input."""

    axis: int
    """Number of the axis of the input."""
    length: int
    """Number of elements."""
    step: Fraction = Fraction(1)
    """Distance of neighbouring elements, in voxels of the input."""
    period: int = 1
    """The value moves with the input if that is shifted by a multiple of this number of voxels."""
    before: int = 0
    """Number of elements at the start that depend on where the tile ends."""
    after: int = 0
    """Number of such elements at the end."""

    def windowed(self, length: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> Axis:
        """Return the axis after a convolution, a pooling, or a slice, which is a window of one element.

        Parameters
        ----------
        length
            Number of elements of the result.
        kernel, stride, dilation
            Sizes of the window, in elements.
        padding
            Number of elements added at the start; negative if some are left out.

        Returns
        -------
        Axis
            The axis of the result.
        """
        last = (self.length - 1 - self.after + padding - (kernel - 1) * dilation) // stride
        before = -(-(self.before + padding) // stride)
        return self._spaced(self.step * stride, length, before, length - 1 - last)

    def transposed(self, length: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> Axis:
        """Return the axis after a transposed convolution; see `windowed`."""
        before = (self.before - 1) * stride + 1 - padding + (kernel - 1) * dilation
        after = length - (self.length - self.after) * stride + padding
        return self._spaced(self.step / stride, length, before, after)

    def resized(self, length: int, mode: Mode) -> Axis:
        """Return the axis after an interpolation to another number of elements.

        Parameters
        ----------
        length
            Number of elements of the result.
        mode
            Kind of interpolation.

        Returns
        -------
        Axis
            The axis of the result.
        """
        ratio = Fraction(length, self.length)
        if ratio == 1:
            return self
        before, after = Fraction(self.before), Fraction(self.length - self.after)
        if mode == "nearest":
            first, end = before * ratio, after * ratio
        else:
            wider = 1 if mode == "cubic" else 0
            first = (before + wider + HALF) * ratio - HALF
            end = (after - wider - HALF) * ratio - HALF
        return self._spaced(self.step / ratio, length, math.ceil(first), length - math.ceil(end))

    def padded(self, length: int, before: int, after: int) -> Axis:
        """Return the axis with elements added at the start and the end; negative numbers remove elements."""
        return self._spaced(self.step, length, self.before + before, self.after + after)

    def merged(self, other: Axis) -> Axis:
        """Return the axis of a sum or a concatenation with another value, whose elements must be as far apart.

        Raises
        ------
        LookupError
            If they are not.
        """
        if (self.axis, self.length, self.step) != (other.axis, other.length, other.step):
            raise LookupError("values of different spacing")
        return replace(
            self,
            period=math.lcm(self.period, other.period),
            before=max(self.before, other.before),
            after=max(self.after, other.after),
        )

    def _spaced(self, step: Fraction, length: int, before: int, after: int) -> Axis:
        period = math.lcm(self.period, step.numerator)
        return Axis(self.axis, length, step, period, max(0, before), max(0, after))


@dataclass(frozen=True, slots=True)
class Value:
    """The axes of a value."""

    axes: tuple[Axis | None, ...]
    """One for each dimension; None where the value does not move with the input, as along channels."""
    lost: bool = False
    """Whether it depends on the input in a way that is not known."""
    origin: tuple[Value, tuple[int, ...]] | None = None
    """Axes and shape before it was reshaped so that they were lost, while its elements are still in the same order."""

    @property
    def spatial(self) -> tuple[int, ...]:
        """Dimensions that move with the input."""
        return tuple(index for index, axis in enumerate(self.axes) if axis is not None)

    def put(self, index: int, axis: Axis | None) -> Value:
        """Return the value with another axis."""
        return replace(self, axes=(*self.axes[:index], axis, *self.axes[index + 1 :]))


@dataclass(slots=True)
class Notes:
    """What is noted on the way through a network, each once and in the order of its operations."""

    reasons: dict[str, None] = field(default_factory=dict)
    """Operations that make labels depend on tiles."""
    fixed: dict[str, None] = field(default_factory=dict)
    """Operations that fix the length of a tile."""
    unknown: dict[str, None] = field(default_factory=dict)
    """Operations after which it is not known how a value lies over the input."""
    numbers: list[Any] = field(default_factory=list)
    """Numbers that may depend on the size of the tile, and that the elements of values are combined with."""
    periods: dict[int, int] = field(default_factory=dict)
    """Common period of all values for each axis of the input, in voxels."""

    def reason(self, what: str, operation: str) -> None:
        """Note that an operation makes labels depend on tiles."""
        self.reasons.setdefault(f"{what} ({operation})")

    def seen(self, value: Value) -> Value:
        """Note the periods of a value and return it."""
        for axis in value.axes:
            if axis is not None:
                self.periods[axis.axis] = math.lcm(self.periods.get(axis.axis, 1), axis.period)
        return value

    def lose(self, operation: str, rank: int) -> Value:
        """Return the value of an operation that is not known, and note it."""
        self.unknown.setdefault(operation)
        return Value((None,) * rank, lost=True)

    def merge(self, parts: Iterable[tuple[Value | None, Sequence[int]]], shape: Sequence[int], operation: str) -> Value:
        """Return the value of an elementwise operation on values, which are broadcast to a shape.

        Parameters
        ----------
        parts
            Values and their shapes; None for weights.
        shape
            Shape of the result.
        operation
            Its name.

        Returns
        -------
        Value
            The axes of the result.
        """
        parts, axes = list(parts), list[Axis | None]([None] * len(shape))
        constant = [False] * len(shape)
        for value, sizes in parts:
            if value is not None and value.lost:
                kept = all(other is None or other is value or not other.axes for other, _ in parts) and value.origin
                return replace(value, axes=(None,) * len(shape)) if kept else self.lose(operation, len(shape))
            axes_of = (None,) * len(sizes) if value is None else value.axes
            for index, (axis, size) in enumerate(zip(axes_of, sizes, strict=True), len(shape) - len(sizes)):
                if size == 1 and shape[index] != 1:
                    continue
                constant[index] |= value is None and size > 1
                known = axes[index]
                try:
                    axes[index] = known.merged(axis) if known and axis else known or axis
                except LookupError:
                    return self.lose(operation, len(shape))
        if any(axis is not None and still for axis, still in zip(axes, constant, strict=True)):
            self.reason("values that differ from place to place in a tile", operation)
            self.fixed.setdefault(operation)
        return Value(tuple(axes))

    def reduce(self, value: Value, dims: Iterable[int], operation: str, what: str, *, keep: bool) -> Value:
        """Return the value of a sum, a mean or a largest element over some dimensions."""
        rank = len(value.axes)
        gone = {dim % rank for dim in dims} if rank else set()
        if value.lost or any(value.axes[dim] is not None for dim in gone):
            self.reason(what, operation)
        axes = [None if dim in gone else axis for dim, axis in enumerate(value.axes) if keep or dim not in gone]
        return Value(tuple(axes), value.lost)

    def reshape(self, value: Value, shape: Sequence[int], result: Sequence[int], operation: str) -> Value:
        """Return the value in another shape, in which each axis that moves with the input must still be one.

        Parameters
        ----------
        value
            The value.
        shape, result
            Its shape before and after.
        operation
            Name of the operation.

        Returns
        -------
        Value
            The axes in the new shape.
        """
        shape, result = tuple(shape), tuple(result)
        if value.origin is not None and value.origin[1] == result:
            return value.origin[0]
        axes: list[Axis | None] = [None] * len(result)
        for dim in value.spatial:
            before = math.prod(shape[:dim])
            places = [index for index, size in enumerate(result) if size == shape[dim] and math.prod(result[:index]) == before]
            if not places:
                return replace(self.lose(operation, len(result)), origin=(value, shape))
            axes[places[-1] if shape[dim] > 1 else places[0]] = value.axes[dim]
        return Value(tuple(axes), value.lost, value.origin)


@dataclass(frozen=True, slots=True)
class Trace:
    """What arithmetic says about a network and one shape of its input."""

    shape: tuple[int, ...]
    """Shape of the output."""
    output: Value
    notes: Notes
