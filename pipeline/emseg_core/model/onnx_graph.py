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
CONVOLUTIONS = frozenset("Convolution GroupConvolution ConvolutionBackpropData GroupConvolutionBackpropData".split())
NORMALISATIONS = {"MVN": "instance normalisation", "GroupNormalization": "group normalisation"}
INTERPOLATIONS: Mapping[str, Mode] = {"nearest": "nearest", "linear": "linear", "linear_onnx": "linear", "cubic": "cubic"}
UNCHANGED = frozenset("Identity Squeeze Unsqueeze".split())


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
    folded = model.clone()
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(folded)
    follower = _Follower(shape, {node.get_friendly_name(): node for node in folded.get_ordered_ops()})
    for node in model.get_ordered_ops():
        follower.follow(node)
    output = model.output(0).get_node().input_value(0)
    made = tuple(output.get_shape())
    return Trace(made, follower.values.get(_key(output), Value((None,) * len(made))), follower.notes)


def _key(output: Any) -> tuple[str, int]:
    return output.get_node().get_friendly_name(), output.get_index()


class _Follower:
    """The values of a graph, as far as it was followed."""

    def __init__(self, shape: Sequence[int], folded: Mapping[str, Any]) -> None:
        axes = (None, None, *(Axis(axis, length) for axis, length in enumerate(shape[2:])))
        self._source, self._folded = Value(axes), folded
        self.notes = Notes()
        self.values: dict[tuple[str, int], Value] = {}
        """Axes of all values that depend on the elements of the input, by node and number of output."""
        self._sized: set[tuple[str, int]] = set()
        """Values that depend on the size of the input."""

    def follow(self, node: Any) -> None:
        """Note the axes of the results of a node."""
        outputs = list(node.outputs())
        if node.get_type_name() == "Parameter":
            self.values[_key(outputs[0])] = self.notes.seen(self._source)
            return
        inputs = [_key(value) for value in node.input_values()]
        if node.get_type_name() == "ShapeOf" or not any(key in self.values for key in inputs):
            if node.get_type_name() == "ShapeOf" or any(key in self._sized for key in inputs):
                self._sized.update(_key(output) for output in outputs)
            return
        operation = str(node.get_type_name())
        rank = len(outputs[0].get_shape()) if outputs else 0
        try:
            value = self.notes.seen(self._value(node, operation)) if outputs else Value(())
        except Exception:  # a use of the operation that is not foreseen
            value = self.notes.lose(operation, rank)
        for output in outputs:
            fits = len(output.get_shape()) == len(value.axes)
            self.values[_key(output)] = value if fits else self.notes.lose(operation, len(output.get_shape()))

    def _of(self, node: Any, index: int) -> Value | None:
        return self.values.get(_key(node.input_value(index)))

    def _numbers(self, node: Any, index: int) -> list[int]:
        """Return the numbers that are an input of a node."""
        return [int(number) for number in np.ravel(self._constant(node, index).get_data())]

    def _constant(self, node: Any, index: int) -> Any:
        """Return the constant that is an input of a node, computed from the size of the input if need be."""
        source = node.input_value(index).get_node()
        if source.get_type_name() != "Constant":
            source = self._folded[node.get_friendly_name()].input_value(index).get_node()
        if source.get_type_name() != "Constant":
            raise LookupError(index)
        return source

    def _fixes(self, node: Any, index: int) -> bool:
        """Return whether the numbers do not follow the size of the input."""
        return _key(node.input_value(index)) not in self._sized

    def _value(self, node: Any, operation: str) -> Value:
        made = tuple(node.output(0).get_shape())
        source = self._of(node, 0)
        if operation in ELEMENTWISE:
            return self._elementwise(node, operation, made)
        if operation == "Concat":
            return self._concat(node, operation, made)
        if operation in ("MatMul", "ScaledDotProductAttention"):
            return self._matmul(node, operation, made)
        if source is None:
            return self.notes.lose(operation, len(made))
        shape = tuple(node.input_value(0).get_shape())
        if operation in NORMALISATIONS:
            axes = range(2, len(shape)) if operation != "MVN" else [dim % len(shape) for dim in self._numbers(node, 1)]
            if source.lost or any(source.axes[dim] is not None for dim in axes):
                self.notes.reason(NORMALISATIONS[operation], operation)
            return source
        if operation.startswith("Reduce"):
            keep = bool(node.get_attributes().get("keep_dims"))
            what = "global pooling" if keep and operation in ("ReduceMean", "ReduceMax") else "a statistic of the whole tile"
            return self.notes.reduce(source, self._numbers(node, 1), operation, what, keep=keep)
        if operation in ("Reshape", *UNCHANGED):
            return self._reshape(node, operation, source, shape, made)
        if source.lost:
            return self.notes.lose(operation, len(made))
        if operation in CONVOLUTIONS:
            return self._convolution(node, operation, source, shape, made)
        if operation in ("MaxPool", "AvgPool"):
            return self._pool(node, operation, source, shape, made)
        if operation == "Interpolate":
            return self._interpolate(node, operation, source, shape, made)
        other: Callable[..., Value] | None = getattr(self, f"_{operation.lower()}", None)
        return self.notes.lose(operation, len(made)) if other is None else other(node, operation, source, shape, made)

    def _each(self, value: Value, change: Callable[[int, Axis], Axis | None]) -> Value:
        for dim in value.spatial:
            axis = value.axes[dim]
            assert axis is not None
            value = value.put(dim, change(dim, axis))
        return value

    # -- each kind of operation ---------------------------------------------------------------------------------------

    def _elementwise(self, node: Any, operation: str, made: tuple[int, ...]) -> Value:
        parts = []
        for index, given in enumerate(node.input_values()):
            if operation == "Broadcast" and index or operation == "ConvertLike" and index:
                continue
            if operation == "BatchNormInference" and _key(given) not in self.values:
                continue  # for each channel
            if _key(given) in self._sized:
                self.notes.numbers.append(self._constant(node, index).get_data().tobytes())
            parts.append((self.values.get(_key(given)), tuple(given.get_shape())))
        return self.notes.merge(parts, made, operation)

    def _concat(self, node: Any, operation: str, made: tuple[int, ...]) -> Value:
        at, parts = int(node.get_attributes()["axis"]) % len(made), []
        for given in node.input_values():
            value = self.values.get(_key(given))
            if value is not None and value.axes[at] is not None:
                return self.notes.lose(operation, len(made))
            parts.append((value, tuple(made[dim] if dim == at else size for dim, size in enumerate(given.get_shape()))))
        return self.notes.merge(parts, made, operation)

    def _matmul(self, node: Any, operation: str, made: tuple[int, ...]) -> Value:
        values = [self._of(node, index) for index in range(len(node.input_values()))]
        if sum(value is not None for value in values) > 1:
            self.notes.reason("attention", operation)
        elif values[0] is not None and not values[0].lost and not node.get_attributes().get("transpose_a"):
            if values[0].axes and values[0].axes[-1] is None:
                return values[0]
        return self.notes.lose(operation, len(made))

    def _reshape(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        result = self.notes.reshape(source, shape, made, operation)
        if operation == "Reshape" and self._fixes(node, 1):
            pattern = self._numbers(node, 1)
            if any(pattern[dim] > 0 for dim in result.spatial) or (result.lost and sum(size > 1 for size in pattern) > 2):
                self.notes.fixed.setdefault(operation)
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

    def _convolution(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        attributes, weight = node.get_attributes(), tuple(node.input_value(1).get_shape())
        count = len(shape) - 2

        def change(dim: int, axis: Axis) -> Axis:
            at = dim - 2
            kernel, stride, space = weight[len(weight) - count + at], attributes["strides"][at], attributes["dilations"][at]
            if "Backprop" in operation:
                if str(attributes.get("auto_pad", "explicit")) not in ("explicit", "valid"):
                    raise LookupError("padding")
                return axis.transposed(made[dim], kernel, stride, attributes["pads_begin"][at], space)
            padding = self._padding(attributes, at, axis, made[dim], (kernel - 1) * space + 1)
            return axis.windowed(made[dim], kernel, stride, padding, space)

        return self._each(source, change)

    def _pool(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        attributes = node.get_attributes()

        def change(dim: int, axis: Axis) -> Axis | None:
            at = dim - 2
            kernel, space = attributes["kernel"][at], (attributes.get("dilations") or [1] * len(shape))[at]
            if made[dim] == 1 and kernel >= axis.length > 1:
                self.notes.reason("global pooling", operation)
                self.notes.fixed.setdefault(operation)
                return None
            padding = self._padding(attributes, at, axis, made[dim], (kernel - 1) * space + 1)
            return axis.windowed(made[dim], kernel, attributes["strides"][at], padding, space)

        return self._each(source, change)

    def _interpolate(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        attributes = node.get_attributes()
        place = str(attributes.get("coordinate_transformation_mode", "half_pixel"))
        if str(attributes["shape_calculation_mode"]) == "sizes" and self._fixes(node, 1):
            self.notes.fixed.setdefault(operation)
        mode = INTERPOLATIONS[str(attributes["mode"])]

        def change(dim: int, axis: Axis) -> Axis | None:
            if made[dim] == axis.length:
                return axis
            if axis.length == 1:
                return None  # of a pooled image
            if place == "align_corners":
                self.notes.reason("upsampling with align_corners=True, which stretches with the tile", operation)
            elif mode == "nearest" and made[dim] % axis.length:
                raise LookupError("resize")
            return axis.resized(made[dim], "cubic" if mode == "linear" and "half_pixel" not in place else mode)

        return self._each(source, change)

    def _pad(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        before, after = self._numbers(node, 1), self._numbers(node, 2)
        return self._each(source, lambda dim, axis: axis.padded(made[dim], before[dim], after[dim]))

    def _slice(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        starts, stops, steps = (self._numbers(node, index) for index in (1, 2, 3))
        dims = self._numbers(node, 4) if len(node.input_values()) > 4 else list(range(len(starts)))
        for dim, start, stop, step in zip((dim % len(shape) for dim in dims), starts, stops, steps, strict=True):
            source = self._cut(node, operation, source, dim, (start, stop, step), made)
        return source

    def _cut(
        self, node: Any, operation: str, source: Value, dim: int, ends: tuple[int, int, int], made: tuple[int, ...]
    ) -> Value:
        (start, stop, step), axis = ends, source.axes[dim]
        if axis is None:
            return source
        if step < 1:
            raise LookupError("step")
        if (0 <= stop < axis.length and self._fixes(node, 2)) or (start < 0 and self._fixes(node, 1)):
            self.notes.fixed.setdefault(operation)
        start = max(0, start + axis.length) if start < 0 else start
        return source.put(dim, axis.windowed(made[dim], 1, step, -start))

    def _stridedslice(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        attributes = node.get_attributes()
        if any(any(attributes.get(name) or ()) for name in ("new_axis_mask", "shrink_axis_mask", "ellipsis_mask")):
            raise LookupError("mask")
        starts, stops = self._numbers(node, 1), self._numbers(node, 2)
        steps = self._numbers(node, 3) if len(node.input_values()) > 3 else [1] * len(starts)
        for dim, (start, stop, step) in enumerate(zip(starts, stops, steps, strict=True)):
            masked = [bool((attributes.get(name) or [0] * len(starts))[dim]) for name in ("begin_mask", "end_mask")]
            ends = (0 if masked[0] else start, 2**31 if masked[1] else stop, step)
            source = self._cut(node, operation, source, dim, ends, made)
        return source

    def _transpose(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        return Value(tuple(source.axes[dim] for dim in self._numbers(node, 1)))

    def _split(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        if source.axes[self._numbers(node, 1)[0]] is not None:
            return self.notes.lose(operation, len(made))
        return source

    _variadicsplit = _split

    def _gather(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        dim = self._numbers(node, 2)[0] % len(shape)
        if source.axes[dim] is not None or _key(node.input_value(1)) in self.values:
            return self.notes.lose(operation, len(made))
        gathered = (None,) * len(node.input_value(1).get_shape())
        return Value((*source.axes[:dim], *gathered, *source.axes[dim + 1 :]))

    def _softmax(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        if source.axes[int(node.get_attributes()["axis"])] is not None:
            self.notes.reason("softmax over space", operation)
        return source

    _logsoftmax = _softmax

    def _depthtospace(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        return self._each(source, lambda dim, axis: axis.resized(made[dim], "nearest"))

    def _spacetodepth(self, node: Any, operation: str, source: Value, shape: tuple[int, ...], made: tuple[int, ...]) -> Value:
        factor = int(node.get_attributes()["block_size"])
        return self._each(source, lambda dim, axis: axis.windowed(made[dim], factor, factor, 0))
