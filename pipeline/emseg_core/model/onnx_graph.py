"""Say of each operation of an ONNX graph, as OpenVINO reads it, how its result lies over the input of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import openvino
from openvino.passes import ConstantFolding, Manager

from emseg_core.model.receptive_arithmetic import Axis, Mode, Notes, Trace, Value

ELEMENTWISE = frozenset(
    " ".join(
        (
            "Relu PRelu Sigmoid Clamp Elu Selu Swish HSwish HSigmoid HardSigmoid Mish Gelu Tanh Exp Log Sqrt Power SoftPlus",
            "SoftSign Abs Negative Sign Floor Ceiling Round Erf Sin Cos Add Subtract Multiply Divide Maximum Minimum",
            "SquaredDifference Select Equal NotEqual Less LessEqual Greater GreaterEqual LogicalAnd LogicalOr LogicalNot",
            "Convert ConvertLike BatchNormInference Broadcast Result",
        )
    ).split()
)
"""Operations that work on each element by itself, or on elements at the same place."""
CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
NORMALISATIONS = {"MVN": "instance normalisation", "GroupNormalization": "group normalisation"}
INTERPOLATIONS: Mapping[str, Mode] = {"nearest": "nearest", "linear": "linear", "linear_onnx": "linear", "cubic": "cubic"}
UNCHANGED = ("Identity", "Squeeze", "Unsqueeze")


def trace_graph(model: openvino.Model, shape: Sequence[int]) -> Trace:
    """Follow how the elements of all values of a graph lie over its input.

    Parameters
    ----------
    model
        The graph, reshaped for this input.
    shape
        Shape of the input, batch and channels included.

    Returns
    -------
    Trace
        What arithmetic says about the graph.
    """
    follower = _followed(model, shape)
    output = model.output(0).get_node().input_value(0)
    made = tuple(output.get_shape())
    return Trace(made, follower.values.get(_key(output), Value((None,) * len(made))), follower.notes)


def normalised_over_space(model: openvino.Model, shape: Sequence[int]) -> dict[str, set[int] | None]:
    """Find the normalisations of a graph whose statistics are those of a tile.

    Parameters
    ----------
    model
        The graph, reshaped for this input.
    shape
        Shape of the input, batch and channels included.

    Returns
    -------
    dict of str to set of int or None
        Names of the nodes, with the axes of their input that move with the tile; None if these are merged.
    """
    return _followed(model, shape).normalised


def _followed(model: openvino.Model, shape: Sequence[int]) -> _Follower:
    """Follow all nodes of a graph."""
    folded = model.clone()
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(folded)
    follower = _Follower(shape, {node.get_friendly_name(): node for node in folded.get_ordered_ops()})
    for node in model.get_ordered_ops():
        follower.follow(node)
    return follower


def _key(output: Any) -> tuple[str, int]:
    return output.get_node().get_friendly_name(), output.get_index()


class _Follower:
    """The values of a graph, as far as it was followed."""

    def __init__(self, shape: Sequence[int], folded: Mapping[str, Any]) -> None:
        axes = (None, None, *(Axis(axis, length) for axis, length in enumerate(shape[2:])))
        self._source, self.folded = Value(axes), folded
        self.notes = Notes()
        self.values: dict[tuple[str, int], Value] = {}
        """Axes of all values that depend on the elements of the input, by node and number of output."""
        self.normalised: dict[str, set[int] | None] = {}
        """Axes that move with the input of each normalisation over space; None if these are merged."""
        self.sized: set[tuple[str, int]] = set()
        """Values that depend on the size of the input."""

    def follow(self, node: Any) -> None:
        """Note the axes of the results of a node."""
        outputs = list(node.outputs())
        if node.get_type_name() == "Parameter":
            self.values[_key(outputs[0])] = self.notes.seen(self._source)
            return
        inputs = [_key(value) for value in node.input_values()]
        if node.get_type_name() == "ShapeOf" or not any(key in self.values for key in inputs):
            if node.get_type_name() == "ShapeOf" or any(key in self.sized for key in inputs):
                self.sized.update(_key(output) for output in outputs)
            return
        operation = str(node.get_type_name())
        rank = len(outputs[0].get_shape()) if outputs else 0
        try:
            value = self.notes.seen(_Node(self, node, operation).value()) if outputs else Value(())
        except Exception:  # a use of the operation that is not foreseen
            value = self.notes.lose(operation, rank)
        for output in outputs:
            fits = len(output.get_shape()) == len(value.axes)
            self.values[_key(output)] = value if fits else self.notes.lose(operation, len(output.get_shape()))


class _Node:
    """One operation of a graph, whose result is to be found."""

    def __init__(self, follower: _Follower, node: Any, operation: str) -> None:
        self._follower, self.node, self.operation, self.notes = follower, node, operation, follower.notes
        self.made = tuple(node.output(0).get_shape())
        self.source = self._of(0)
        """Axes of the first input."""
        self.shape = tuple(node.input_value(0).get_shape())
        """Its shape."""

    @property
    def known(self) -> Value:
        """Axes of the first input, which must be known."""
        if self.source is None:
            raise LookupError(self.operation)
        return self.source

    def _of(self, index: int) -> Value | None:
        return self._follower.values.get(_key(self.node.input_value(index)))

    def _numbers(self, index: int) -> list[int]:
        """Return the numbers that are an input of the operation."""
        return [int(number) for number in np.ravel(self._constant(index).get_data())]

    def _constant(self, index: int) -> Any:
        """Return the constant that is an input of a node, computed from the size of the input if need be."""
        source = self.node.input_value(index).get_node()
        if source.get_type_name() != "Constant":
            source = self._follower.folded[self.node.get_friendly_name()].input_value(index).get_node()
        if source.get_type_name() != "Constant":
            raise LookupError(index)
        return source

    def _fixes(self, index: int) -> bool:
        """Return whether the numbers do not follow the size of the input."""
        return _key(self.node.input_value(index)) not in self._follower.sized

    def value(self) -> Value:
        """Return the axes of the results."""
        if self.operation in ELEMENTWISE:
            return self._elementwise()
        if self.operation == "Concat":
            return self._concat()
        if self.operation in ("MatMul", "ScaledDotProductAttention"):
            return self._matmul()
        source = self.source
        if source is None:
            return self._lost()
        if self.operation in NORMALISATIONS:
            axes = range(2, len(self.shape)) if self.operation != "MVN" else [dim % len(self.shape) for dim in self._numbers(1)]
            if source.lost or any(source.axes[dim] is not None for dim in axes):
                self._follower.normalised[self.node.get_friendly_name()] = None if source.lost else set(source.spatial)
                self.notes.reason(NORMALISATIONS[self.operation], self.operation)
            return source
        if self.operation.startswith("Reduce"):
            keep = bool(self.node.get_attributes().get("keep_dims"))
            what = (
                "global pooling" if keep and self.operation in ("ReduceMean", "ReduceMax") else "a statistic of the whole tile"
            )
            return self.notes.reduce(source, self._numbers(1), self.operation, what, keep=keep)
        if self.operation in ("Reshape", *UNCHANGED):
            return self._reshape()
        if source.lost:
            return self._lost()
        if self.operation in CONVOLUTIONS:
            return self._convolution()
        if self.operation in ("MaxPool", "AvgPool"):
            return self._pool()
        if self.operation == "Interpolate":
            return self._interpolate()
        other: Callable[..., Value] | None = getattr(self, f"_{self.operation.lower()}", None)
        return self._lost() if other is None else other()

    def _lost(self) -> Value:
        return self.notes.lose(self.operation, len(self.made))

    def _each(self, change: Callable[[int, Axis], Axis | None]) -> Value:
        """Return the value of the first input with each axis changed."""
        value = self.known
        for dim in value.spatial:
            axis = value.axes[dim]
            assert axis is not None
            value = value.put(dim, change(dim, axis))
        return value

    # -- each kind of operation --------------------------------------------------------------------------------------------

    def _elementwise(self) -> Value:
        parts = []
        for index, given in enumerate(self.node.input_values()):
            if index and self.operation in ("Broadcast", "ConvertLike"):
                continue
            if self.operation == "BatchNormInference" and _key(given) not in self._follower.values:
                continue  # for each channel
            if _key(given) in self._follower.sized:
                self.notes.numbers.append(self._constant(index).get_data().tobytes())
            parts.append((self._follower.values.get(_key(given)), tuple(given.get_shape())))
        return self.notes.merge(parts, self.made, self.operation)

    def _concat(self) -> Value:
        at, parts = int(self.node.get_attributes()["axis"]) % len(self.made), []
        for given in self.node.input_values():
            value = self._follower.values.get(_key(given))
            if value is not None and value.axes[at] is not None:
                return self._lost()
            parts.append((value, tuple(self.made[dim] if dim == at else size for dim, size in enumerate(given.get_shape()))))
        return self.notes.merge(parts, self.made, self.operation)

    def _matmul(self) -> Value:
        values = [self._of(index) for index in range(len(self.node.input_values()))]
        mixed = self.node.get_attributes().get("transpose_a") or values[0] is None or values[0].lost or not values[0].axes
        if sum(value is not None for value in values) > 1:
            self.notes.reason("attention", self.operation)
        elif values[0] is not None and not mixed and values[0].axes[-1] is None:
            return values[0]
        return self._lost()

    def _reshape(self) -> Value:
        result = self.notes.reshape(self.known, self.shape, self.made, self.operation)
        if self.operation == "Reshape" and self._fixes(1):
            pattern = self._numbers(1)
            if any(pattern[dim] > 0 for dim in result.spatial) or (result.lost and min(pattern) > 0):
                self.notes.fixed.setdefault(self.operation)
        return result

    def _padding(self, attributes: Mapping[str, Any], at: int, axis: Axis, length: int, window: int) -> int:
        """Return the padding at the start, with the kinds that follow from sizes."""
        kind, stride = str(attributes.get("auto_pad", "explicit")), int(attributes["strides"][at])
        if kind == "valid":
            return 0
        if kind.startswith("same"):
            total = max(0, (length - 1) * stride + window - axis.length)
            return total // 2 if kind == "same_upper" else total - total // 2
        return int(attributes["pads_begin"][at])

    def _convolution(self) -> Value:
        attributes, weight = self.node.get_attributes(), tuple(self.node.input_value(1).get_shape())
        count = len(self.shape) - 2

        def change(dim: int, axis: Axis) -> Axis:
            at = dim - 2
            kernel, stride, space = weight[len(weight) - count + at], attributes["strides"][at], attributes["dilations"][at]
            if "Backprop" in self.operation:
                if str(attributes.get("auto_pad", "explicit")) not in ("explicit", "valid"):
                    raise LookupError("padding")
                return axis.transposed(self.made[dim], kernel, stride, attributes["pads_begin"][at], space)
            padding = self._padding(attributes, at, axis, self.made[dim], (kernel - 1) * space + 1)
            return axis.windowed(self.made[dim], kernel, stride, padding, space)

        return self._each(change)

    def _pool(self) -> Value:
        attributes = self.node.get_attributes()

        def change(dim: int, axis: Axis) -> Axis | None:
            at = dim - 2
            kernel, space = attributes["kernel"][at], (attributes.get("dilations") or [1] * len(self.shape))[at]
            if self.made[dim] == 1 and kernel >= axis.length > 1:
                self.notes.reason("global pooling", self.operation)
                self.notes.fixed.setdefault(self.operation)
                return None
            padding = self._padding(attributes, at, axis, self.made[dim], (kernel - 1) * space + 1)
            return axis.windowed(self.made[dim], kernel, attributes["strides"][at], padding, space)

        return self._each(change)

    def _interpolate(self) -> Value:
        attributes = self.node.get_attributes()
        place = str(attributes.get("coordinate_transformation_mode", "half_pixel"))
        if str(attributes["shape_calculation_mode"]) == "sizes" and self._fixes(1):
            self.notes.fixed.setdefault(self.operation)
        mode = INTERPOLATIONS[str(attributes["mode"])]

        def change(dim: int, axis: Axis) -> Axis | None:
            if self.made[dim] == axis.length:
                return axis
            if axis.length == 1:
                return None  # of a pooled image
            if place == "align_corners":
                self.notes.reason("upsampling with align_corners=True, which stretches with the tile", self.operation)
            elif mode == "nearest" and self.made[dim] % axis.length:
                raise LookupError("resize")
            return axis.resized(self.made[dim], "cubic" if mode == "linear" and "half_pixel" not in place else mode)

        return self._each(change)

    def _pad(self) -> Value:
        before, after = self._numbers(1), self._numbers(2)
        return self._each(lambda dim, axis: axis.padded(self.made[dim], before[dim], after[dim]))

    def _slice(self) -> Value:
        source = self.known
        starts, stops, steps = (self._numbers(index) for index in (1, 2, 3))
        dims = self._numbers(4) if len(self.node.input_values()) > 4 else list(range(len(starts)))
        for dim, start, stop, step in zip((dim % len(self.shape) for dim in dims), starts, stops, steps, strict=True):
            source = self._cut(source, dim, (start, stop, step))
        return source

    def _cut(self, source: Value, dim: int, ends: tuple[int, int, int]) -> Value:
        (start, stop, step), axis = ends, source.axes[dim]
        if axis is None:
            return source
        if step < 1:
            raise LookupError("step")
        if (0 <= stop < axis.length and self._fixes(2)) or (start < 0 and self._fixes(1)):
            self.notes.fixed.setdefault(self.operation)
        start = max(0, start + axis.length) if start < 0 else start
        return source.put(dim, axis.windowed(self.made[dim], 1, step, -start))

    def _stridedslice(self) -> Value:
        source = self.known
        attributes = self.node.get_attributes()
        if any(any(attributes.get(name) or ()) for name in ("new_axis_mask", "shrink_axis_mask", "ellipsis_mask")):
            raise LookupError("mask")
        starts, stops = self._numbers(1), self._numbers(2)
        steps = self._numbers(3) if len(self.node.input_values()) > 3 else [1] * len(starts)
        for dim, (start, stop, step) in enumerate(zip(starts, stops, steps, strict=True)):
            masked = [bool((attributes.get(name) or [0] * len(starts))[dim]) for name in ("begin_mask", "end_mask")]
            ends = (0 if masked[0] else start, 2**31 if masked[1] else stop, step)
            source = self._cut(source, dim, ends)
        return source

    def _transpose(self) -> Value:
        return Value(tuple(self.known.axes[dim] for dim in self._numbers(1)))

    def _split(self) -> Value:
        if self.known.axes[self._numbers(1)[0]] is not None:
            return self._lost()
        return self.known

    _variadicsplit = _split

    def _tile(self) -> Value:
        repeats = self._numbers(1)
        new = len(repeats) - len(self.known.axes)
        value = Value((*(None,) * new, *self.known.axes))
        return self._lost() if any(repeats[dim] != 1 for dim in value.spatial) else value

    def _gather(self) -> Value:
        dim = self._numbers(2)[0] % len(self.shape)
        if self.known.axes[dim] is not None or _key(self.node.input_value(1)) in self._follower.values:
            return self._lost()
        gathered = (None,) * len(self.node.input_value(1).get_shape())
        return Value((*self.known.axes[:dim], *gathered, *self.known.axes[dim + 1 :]))

    def _softmax(self) -> Value:
        if self.known.axes[int(self.node.get_attributes()["axis"])] is not None:
            self.notes.reason("softmax over space", self.operation)
        return self.known

    _logsoftmax = _softmax

    def _depthtospace(self) -> Value:
        return self._each(lambda dim, axis: axis.resized(self.made[dim], "nearest"))

    def _spacetodepth(self) -> Value:
        factor = int(self.node.get_attributes()["block_size"])
        return self._each(lambda dim, axis: axis.windowed(self.made[dim], factor, factor, 0))
