"""Say of each operation of an exported program how its result lies over the input of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from emseg_core.model.receptive_arithmetic import Axis, Mode, Notes, Value

ELEMENTWISE = frozenset(
    " ".join(
        (
            "relu leaky_relu elu celu gelu silu hardtanh hardswish hardsigmoid mish prelu selu softplus relu6 sigmoid",
            "log_sigmoid threshold tanh exp log sqrt rsqrt square reciprocal abs sign neg pow erf sin cos floor ceil round",
            "clamp clamp_min clamp_max add sub mul div rsub minimum maximum where eq ne lt le gt ge logical_and logical_or",
            "logical_not masked_fill batch_norm _native_batch_norm_legit_no_training dropout feature_dropout",
            "alpha_dropout feature_alpha_dropout detach to type_as _to_copy contiguous clone alias lift_fresh lift_fresh_copy",
            "zeros_like ones_like full_like empty_like fill copy expand expand_as",
        )
    ).split()
)
"""Operations that work on each element by itself, or on elements at the same place, also in place (``relu_``)."""
REDUCTIONS = ("mean", "sum", "var", "amax", "amin", "max", "min", "linalg_vector_norm", "norm", "cumsum")
POOLS = ("max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d")
UPSAMPLINGS: Mapping[str, Mode] = {"nearest": "nearest", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
ATTENTION = ("matmul", "bmm", "einsum", "scaled_dot_product_attention")
NORMALISATIONS = {
    "instance_norm": "instance normalisation",
    "group_norm": "group normalisation",
    "native_group_norm": "group normalisation",
    "layer_norm": "layer normalisation",
    "native_layer_norm": "layer normalisation",
}
RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten")


class Tracer:
    """Follow a program through its operations; see `emseg_core.model.receptive_arithmetic`.

    Parameters
    ----------
    source
        Name of the input.
    shape
        Its shape.
    """

    def __init__(self, source: str, shape: Sequence[int]) -> None:
        axes = (None, None, *(Axis(axis, length) for axis, length in enumerate(shape[2:])))
        self.notes = Notes()
        self.values: dict[str, Value] = {source: self.notes.seen(Value(axes))}
        """Axes of all values that depend on the elements of the input, by their names."""
        self.normalised: dict[str, int] = {}
        """Number of axes of what normalisations over space normalise, by the names of their first results."""
        self._sized: dict[str, tuple[Any, ...]] = {}
        """Numbers that tensors were made of, if these may depend on the size of the input."""

    def follow(
        self, call: Any, arguments: Mapping[str, Any], given: Mapping[str, Any], results: Sequence[str], made: Any
    ) -> None:
        """Note the axes of what an operation made.

        Parameters
        ----------
        call
            The operation.
        arguments
            Its arguments by their names: tensors, numbers, and lists of them.
        given
            The same, with the name of an earlier result in place of its value, where the program has one.
        results
            Names of its results.
        made
            The results.
        """
        parts = [made] if isinstance(made, Tensor) else list(made) if isinstance(made, tuple | list) else []
        tensors = [part for part in parts if isinstance(part, Tensor)]
        values = {name: self._value(argument) for name, argument in given.items()}
        if not tensors or not any(value is not None for value in values.values()):
            numbers = [argument for name, argument in arguments.items() if hasattr(given[name], "name")]
            made_of = tuple(number for number in numbers if not isinstance(number, Tensor))
            made_of += tuple(self._sized.get(getattr(part, "name", ""), ()) for part in given.values())
            self._sized |= dict.fromkeys(results, made_of) if any(made_of) else {}
            return  # of numbers and weights
        operation = call._schema.name.replace("::", ".")
        self.notes.numbers += [self._sized[part.name] for part in given.values() if getattr(part, "name", "") in self._sized]
        node = _Node(self.notes, operation, arguments, given, values, self._parts(given), tensors[0])
        try:
            value = self.notes.seen(node.value())
        except Exception:  # a use of the operation that is not foreseen
            value = self.notes.lose(operation, tensors[0].dim())
        if node.over_space:
            self.normalised[results[0]] = tensors[0].dim()
        for name, part in zip(results, parts, strict=False):
            if isinstance(part, Tensor):
                self.values[name] = value if part.dim() == len(value.axes) else self.notes.lose(operation, part.dim())

    def _value(self, given: Any) -> Value | None:
        """Return the axes of an argument that depends on the input; of a list, those of the first that does."""
        parts = given if isinstance(given, list) else [given]
        found = (self.values.get(getattr(part, "name", "")) for part in parts)
        return next((value for value in found if value is not None), None)

    def _parts(self, given: Mapping[str, Any]) -> Callable[[str], list[Value | None]]:
        """Return a function from the name of an argument to the axes of each tensor in it."""

        def parts(name: str) -> list[Value | None]:
            argument = given[name]
            return [
                self.values.get(getattr(part, "name", "")) for part in (argument if isinstance(argument, list) else [argument])
            ]

        return parts


class _Node:
    """One operation, whose result is to be found."""

    def __init__(
        self,
        notes: Notes,
        operation: str,
        arguments: Mapping[str, Any],
        given: Mapping[str, Any],
        values: Mapping[str, Value | None],
        parts: Callable[[str], list[Value | None]],
        made: Tensor,
    ) -> None:
        self.notes, self.operation, self.arguments, self.given = notes, operation, arguments, given
        self.values, self.parts, self.made = values, parts, made
        name = operation.removeprefix("aten.")
        self.name = name.removesuffix("_") if not name.endswith("__") else name
        self.over_space = False
        """Whether it is a normalisation over space."""
        first = next(name for name, value in values.items() if value is not None)
        self.source = values[first]
        part = arguments[first]
        self.tensor: Tensor = part[0] if isinstance(part, list) else part

    def value(self) -> Value:
        """Return the axes of the result."""
        source, name = self.source, self.name
        assert source is not None
        if name in ELEMENTWISE:
            return self._elementwise()
        if name in REDUCTIONS:
            return self._reduction(source)
        if name in NORMALISATIONS:
            return self._normalisation(source)
        if name in ATTENTION and sum(value is not None for value in self._all_values()) > 1:
            self.notes.reason("attention", self.operation)
            return self._lost()
        if source.lost and name not in RESHAPES:
            return self._lost()
        if name in ("cat", "stack"):
            return self._cat() if name == "cat" else self._stack()
        if name in ("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d", "convolution"):
            return self._convolution(source)
        if name in POOLS:
            return self._pool(source)
        if name.startswith("adaptive_"):
            return self._adaptive(source)
        if name.startswith("upsample_"):
            return self._upsample(source)
        other = getattr(self, f"_{name}", None)
        found: Value = other(source) if other is not None else self._lost()
        return found

    def _all_values(self) -> list[Value | None]:
        return [value for name in self.given for value in self.parts(name)]

    def _lost(self) -> Value:
        return self.notes.lose(self.operation, self.made.dim())

    def _axes(self, value: Value, change: Callable[[int, Axis], Axis | None]) -> Value:
        """Return the value with each spatial axis changed."""
        for dim in value.spatial:
            axis = value.axes[dim]
            assert axis is not None
            value = value.put(dim, change(dim, axis))
        return value

    # -- each kind of operation ---------------------------------------------------------------------------------------

    def _elementwise(self) -> Value:
        parts = []
        for name, argument in self.arguments.items():
            given, whole = self.given[name], argument if isinstance(argument, list) else [argument]
            if not isinstance(argument, Tensor):
                if self.name not in ("expand", "full_like") and hasattr(given, "name"):
                    self.notes.numbers.append(argument)
                continue
            for tensor, value in zip(whole, self.parts(name), strict=True):
                if "batch_norm" in self.name and value is None:
                    continue  # for each channel
                parts.append((value, tuple(tensor.shape)))
        return self.notes.merge(parts, tuple(self.made.shape), self.operation)

    def _reduction(self, source: Value) -> Value:
        dims = self.arguments.get("dim")
        dims = list(range(len(source.axes))) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        if self.name == "cumsum":
            if any(source.axes[dim] is not None for dim in dims):
                self.notes.reason("a running sum over space", self.operation)
            return source
        keep = bool(self.arguments.get("keepdim"))
        return self.notes.reduce(source, dims, self.operation, "a statistic of the whole tile", keep=keep)

    def _normalisation(self, source: Value) -> Value:
        if self.name == "instance_norm" and not self.arguments["use_input_stats"]:
            return source
        if self.name.endswith("layer_norm"):
            last = len(source.axes) - len(self.arguments["normalized_shape"])
            if not source.lost and all(axis is None for axis in source.axes[last:]):
                return source
        if source.spatial:
            self.over_space = True
            self.notes.reason(NORMALISATIONS[self.name], self.operation)
        return source

    def _softmax(self, source: Value) -> Value:
        if source.axes[self.arguments["dim"]] is not None:
            self.notes.reason("softmax over space", self.operation)
        return source

    _log_softmax = __softmax = __log_softmax = _softmax

    def _convolution(self, source: Value) -> Value:
        weight = self.arguments["weight"]
        count = weight.dim() - 2
        transposed = "transpose" in self.name or bool(self.arguments.get("transposed"))
        if len(source.axes) != count + 2:
            return self._lost()
        stride, dilation = (_each(self.arguments[key], count) for key in ("stride", "dilation"))
        padding = self.arguments["padding"]
        if isinstance(padding, str):
            same = [(kernel - 1) * space for kernel, space in zip(weight.shape[2:], dilation, strict=True)]
            padding = [total // 2 if padding == "same" else 0 for total in same]
        padding = _each(padding, count)

        def change(dim: int, axis: Axis) -> Axis:
            at, length = dim - 2, self.made.shape[dim]
            sizes = weight.shape[dim], stride[at], padding[at], dilation[at]
            return axis.transposed(length, *sizes) if transposed else axis.windowed(length, *sizes)

        return self._axes(source, change)

    def _pool(self, source: Value) -> Value:
        count = 3 if "3d" in self.name else 2
        kernel = _each(self.arguments["kernel_size"], count)
        stride = _each(self.arguments.get("stride") or kernel, count)
        padding, dilation = (
            _each(self.arguments.get(key, default), count) for key, default in (("padding", 0), ("dilation", 1))
        )
        start = len(source.axes) - count

        def change(dim: int, axis: Axis) -> Axis | None:
            at = dim - start
            if at < 0:
                return axis
            if self.made.shape[dim] == 1 and kernel[at] >= axis.length > 1:
                self.notes.reason("global pooling", self.operation)
                if not hasattr(_at(self.given["kernel_size"], at), "name"):
                    self.notes.fixed.setdefault(self.operation)
                return None
            return axis.windowed(self.made.shape[dim], kernel[at], stride[at], padding[at], dilation[at])

        return self._axes(source, change)

    def _adaptive(self, source: Value) -> Value:
        count = 3 if "3d" in self.name else 2

        def change(dim: int, axis: Axis) -> Axis | None:
            length = self.made.shape[dim]
            if dim < len(source.axes) - count or length == axis.length:
                return axis
            self.notes.reason("global pooling" if length == 1 else "pooling to a fixed size", self.operation)
            return None

        return self._axes(source, change)

    def _upsample(self, source: Value) -> Value:
        kind = self.name.removeprefix("upsample_")[:-2]
        if kind not in UPSAMPLINGS:
            return self._lost()
        start = 2
        size = self.given.get("output_size")
        scales = self.arguments.get("scale_factors") or [
            self.arguments.get(key) for key in ("scales_d", "scales_h", "scales_w") if key in self.arguments
        ]

        def change(dim: int, axis: Axis) -> Axis | None:
            length = self.made.shape[dim]
            if size is not None and not hasattr(_at(size, dim - start), "name"):
                self.notes.fixed.setdefault(self.operation)
            scale = scales[dim - start] if size is None and dim - start < len(scales) else None
            if axis.length == 1 and length > 1:
                return None  # of a pooled image
            if scale is not None and scale * axis.length != length:
                raise _UnknownError
            if self.arguments.get("align_corners") and length != axis.length:
                self.notes.reason("upsampling with align_corners=True, which stretches with the tile", self.operation)
            return axis.resized(length, UPSAMPLINGS[kind])

        try:
            return self._axes(source, change)
        except _UnknownError:
            return self._lost()

    def _cat(self) -> Value:
        tensors, values = self.arguments["tensors"], self.parts("tensors")
        dim = self.arguments["dim"] % self.made.dim()
        parts = []
        for tensor, value in zip(tensors, values, strict=True):
            if value is not None and value.axes[dim] is not None:
                return self._lost()
            sizes = tuple(self.made.shape[at] if at == dim else length for at, length in enumerate(tensor.shape))
            parts.append((value, sizes))
        return self.notes.merge(parts, tuple(self.made.shape), self.operation)

    def _stack(self) -> Value:
        dim = self.arguments["dim"] % self.made.dim()
        parts = []
        for value in self.parts("tensors"):
            moved = None if value is None else Value((*value.axes[:dim], None, *value.axes[dim:]), value.lost)
            parts.append((moved, tuple(self.made.shape)))
        return self.notes.merge(parts, tuple(self.made.shape), self.operation)

    def _slice(self, source: Value) -> Value:
        dim, start, step = (self.arguments.get(key) for key in ("dim", "start", "step"))
        dim, start, step = (dim or 0) % len(source.axes), start or 0, 1 if step is None else step
        axis = source.axes[dim]
        if axis is None:
            return source
        end, length = self.given.get("end"), self.made.shape[dim]
        start = max(0, start + axis.length) if start < 0 else start
        if isinstance(end, int) and 0 <= end < axis.length:
            self.notes.fixed.setdefault(self.operation)
        if isinstance(self.given.get("start"), int) and self.given["start"] < 0:
            self.notes.fixed.setdefault(self.operation)
        return source.put(dim, axis.windowed(length, 1, step, -start))

    def _narrow(self, source: Value) -> Value:
        dim, start = self.arguments["dim"] % len(source.axes), self.arguments["start"]
        axis = source.axes[dim]
        if axis is None:
            return source
        if not hasattr(self.given["length"], "name"):
            self.notes.fixed.setdefault(self.operation)
        start = start + axis.length if start < 0 else start
        return source.put(dim, axis.windowed(self.made.shape[dim], 1, 1, -start))

    def _pad(self, source: Value) -> Value:
        numbers, shape = list(self.arguments["pad" if "pad" in self.arguments else "padding"]), source.axes

        def change(dim: int, axis: Axis) -> Axis:
            at = 2 * (len(shape) - 1 - dim)
            before, after = numbers[at : at + 2] if at < len(numbers) else (0, 0)
            return axis.padded(self.made.shape[dim], before, after)

        return self._axes(source, change)

    _constant_pad_nd = _reflection_pad2d = _reflection_pad3d = _replication_pad2d = _replication_pad3d = _pad

    def _permute(self, source: Value) -> Value:
        return Value(tuple(source.axes[dim] for dim in self.arguments["dims"]))

    def _transpose(self, source: Value) -> Value:
        axes = list(source.axes)
        one, other = self.arguments["dim0"], self.arguments["dim1"]
        axes[one], axes[other] = axes[other], axes[one]
        return Value(tuple(axes))

    _swapaxes = _swapdims = _transpose

    def _movedim(self, source: Value) -> Value:
        rank = len(source.axes)
        starts, ends = (
            [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)]
            for dims in (self.arguments["source"], self.arguments["destination"])
        )
        rest = iter(dim for dim in range(rank) if dim not in starts)
        return Value(tuple(source.axes[starts[ends.index(dim)] if dim in ends else next(rest)] for dim in range(rank)))

    def _t(self, source: Value) -> Value:
        return Value(source.axes[::-1])

    def _unsqueeze(self, source: Value) -> Value:
        dim = self.arguments["dim"] % self.made.dim()
        return Value((*source.axes[:dim], None, *source.axes[dim:]))

    def _squeeze(self, source: Value) -> Value:
        dims = self.arguments.get("dim")
        dims = range(len(source.axes)) if dims is None else [dims] if isinstance(dims, int) else dims
        gone = {dim % len(source.axes) for dim in dims}
        kept = [axis for dim, axis in enumerate(source.axes) if dim not in gone or self.tensor.shape[dim] != 1]
        return Value(tuple(kept))

    def _select(self, source: Value) -> Value:
        dim = self.arguments["dim"] % len(source.axes)
        if source.axes[dim] is not None:
            return self._lost()
        return Value((*source.axes[:dim], *source.axes[dim + 1 :]))

    def _view(self, source: Value) -> Value:
        shape = self.given.get("size", self.given.get("shape"))
        result = self.notes.reshape(source, tuple(self.tensor.shape), tuple(self.made.shape), self.operation)
        for dim in result.spatial:
            if isinstance(shape, list) and isinstance(shape[dim], int) and shape[dim] != -1:
                self.notes.fixed.setdefault(self.operation)
        if result.lost and isinstance(shape, list) and all(isinstance(size, int) and size != -1 for size in shape):
            self.notes.fixed.setdefault(self.operation)  # for any other length, there are more or fewer elements
        return result

    _reshape = __unsafe_view = _flatten = _unflatten = _view

    def _split(self, source: Value) -> Value:
        dim = self.arguments.get("dim") or 0
        return self._lost() if source.axes[dim] is not None else source

    _split_with_sizes = _chunk = _tensor_split = _split

    def _unbind(self, source: Value) -> Value:
        return self._select(source)

    def _index_select(self, source: Value) -> Value:
        return self._split(source)

    def _flip(self, source: Value) -> Value:
        if any(source.axes[dim] is not None for dim in self.arguments["dims"]):
            return self._lost()
        return source

    def _roll(self, source: Value) -> Value:
        dims = self.arguments.get("dims") or range(len(source.axes))
        if any(source.axes[dim] is not None for dim in dims):
            self.notes.reason("a cyclic shift of the tile", self.operation)
            return self._lost()
        return source

    def _repeat(self, source: Value) -> Value:
        repeats = self.arguments["repeats"]
        new = len(repeats) - len(source.axes)
        value = Value((*(None,) * new, *source.axes))
        return self._lost() if any(repeats[dim] != 1 for dim in value.spatial) else value

    def _pixel_shuffle(self, source: Value) -> Value:
        def change(dim: int, axis: Axis) -> Axis:
            return axis.resized(self.made.shape[dim], "nearest")

        return self._axes(source, change)

    def _pixel_unshuffle(self, source: Value) -> Value:
        factor = self.arguments["downscale_factor"]

        def change(dim: int, axis: Axis) -> Axis:
            return axis.windowed(self.made.shape[dim], factor, factor, 0)

        return self._axes(source, change)

    def _linear(self, source: Value) -> Value:
        """Multiply by a matrix along the last dimension; what moves with the input there is mixed."""
        if source.axes[-1] is not None:
            return self._lost()
        return source

    def _addmm(self, source: Value) -> Value:
        return self._lost() if any(axis is not None for axis in source.axes[-1:]) else Value((None,) * self.made.dim())

    def _mm(self, source: Value) -> Value:
        return self._addmm(source)

    def _matmul(self, source: Value) -> Value:
        if self.values.get("self") is None or source.axes[-1] is not None or self.made.dim() != len(source.axes):
            return self._lost()
        return source


class _UnknownError(Exception):
    """An operation of which the axes are not known."""


def _each(numbers: Any, count: int) -> list[int]:
    """Return one number for each axis."""
    many = list(numbers) if isinstance(numbers, list | tuple) else [numbers]
    return many * count if len(many) == 1 else many


def _at(given: Any, index: int) -> Any:
    """Return the number for an axis, or the only one."""
    if not isinstance(given, list):
        return given
    return given[index] if len(given) > 1 else given[0]


def named_arguments(call: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an operation by their names, defaults included.

    Parameters
    ----------
    call
        The operation.
    arguments, keywords
        What it is called with.

    Returns
    -------
    dict of str to Any
        The arguments.
    """
    named: dict[str, Any] = {}
    for index, entry in enumerate(call._schema.arguments):
        if index < len(arguments):
            named[entry.name] = arguments[index]
        elif entry.name in keywords:
            named[entry.name] = keywords[entry.name]
        elif entry.has_default_value():
            named[entry.name] = entry.default_value
    return named


def is_operation(call: Any) -> bool:
    """Return whether this is an operation on tensors, not one on sizes."""
    return isinstance(call, torch._ops.OpOverload)
