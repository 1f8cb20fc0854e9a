"""Read ONNX files as data: what their outputs are, and weights that lie in a second file.

`torch.onnx.export` writes the weights to ``FILE.onnx.data`` by default. OpenVINO would open whatever file a model names,
relative to the current folder. So the weights are read here, from beside the model and nowhere else, and OpenVINO is given
a model that names no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from emseg_core.errors import ModelError
from emseg_core.model.output import Ending, NetworkOutput

ReadBeside = Callable[[str, int], bytes]
"""Function that reads a file beside the model, by its relative name, of at most so many bytes."""

MAX_BYTES = 2**31 - 1
"""Largest model with its weights; the limit of Protocol Buffers."""
PASSED_ON = ("Identity", "Cast", "Dropout")
"""Operations at the end of a graph that keep what the values mean."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
ENDINGS: dict[str, Ending] = {"Sigmoid": "sigmoid", "Softmax": "softmax", "LogSoftmax": "log-softmax"}
CHANNEL_AXIS = 1
FIRST_OPSET_OF_ONE_AXIS = 13
"""Before this version, a softmax goes over all axes from its axis on."""
_BYTES_OF_TYPE: dict[int, int] = {
    **dict.fromkeys((TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8), 1),
    **dict.fromkeys((TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT16, TensorProto.UINT16), 2),
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT32), 4),
    **dict.fromkeys((TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT64), 8),
}
"""Bytes of one element by its type, for types that may lie in a second file."""


def with_weights(data: bytes, path: str, read: ReadBeside) -> tuple[bytes, list[bytes]]:
    """Put all weights into the model.

    Parameters
    ----------
    data
        The ONNX file.
    path
        Its path, for messages.
    read
        Reads the files that it names.

    Returns
    -------
    data : bytes
        A model that names no other file; the same bytes if it named none.
    files : list of bytes
        Contents of the files that it named, in the order of their names.

    Raises
    ------
    ModelError
        If it is damaged, names a file that is not beside it, or one that does not hold what it says.
    """
    model = _parsed(data, path)
    outside = [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
    if not outside:
        return data, []
    places = [_place(tensor, path) for tensor in outside]
    total = len(data) + sum(length for _, _, length in places)
    if total > MAX_BYTES:
        raise ModelError(
            f"{path} has {total} bytes with its weights, but an ONNX network may have {MAX_BYTES}: export it with torch.export"
        )
    files = {name: read(name, MAX_BYTES) for name in sorted({name for name, _, _ in places})}
    for tensor, (name, offset, length) in zip(outside, places, strict=True):
        if offset + length > len(files[name]):
            raise ModelError(
                f"{path} says that its weights {tensor.name!r} end at byte {offset + length} of {name!r}, which has "
                f"{len(files[name])} bytes: download or export both files again"
            )
        tensor.raw_data = files[name][offset : offset + length]
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    return model.SerializeToString(), list(files.values())


def read_outputs(data: bytes, path: str) -> tuple[NetworkOutput, ...]:
    """List the outputs of a network.

    Parameters
    ----------
    data
        The ONNX file.
    path
        Its path, for messages.

    Returns
    -------
    tuple of NetworkOutput
        Name, channels and last operation of each.

    Raises
    ------
    ModelError
        If it is damaged.
    """
    model = _parsed(data, path)
    opset = max((known.version for known in model.opset_import if known.domain in ("", "ai.onnx")), default=0)
    found = []
    for output in model.graph.output:
        dimensions = output.type.tensor_type.shape.dim
        channels = dimensions[CHANNEL_AXIS].dim_value if len(dimensions) > CHANNEL_AXIS else 0
        ending = _ending(model.graph, output.name, len(dimensions), opset)
        found.append(NetworkOutput(output.name, channels or None, ending, len(dimensions) or None))
    return tuple(found)


def _parsed(data: bytes, path: str) -> ModelProto:
    """Parse a model; Protocol Buffers limit how deep it may be nested."""
    try:
        model: ModelProto = ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(f"{path} is not a readable ONNX file ({error}): download or export it again") from error
    return model


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Yield each tensor anywhere in a message: weights, attributes, subgraphs, functions, sparse tensors, training."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _tensors(part)


def _place(tensor: TensorProto, path: str) -> tuple[str, int, int]:
    """Return the name of the file that has the values of a tensor, the offset, and the length, in bytes."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.pop("location", "")
    relative = PurePosixPath(name)
    if not name or relative.is_absolute() or ".." in relative.parts or "\\" in name or "://" in name or "\0" in name:
        raise ModelError(
            f"{path} has its weights {tensor.name!r} in {name!r}, but only files in its own folder are read: put that file "
            "beside it, and export it again so that it names it without a folder"
        )
    sizes = {key: entries.pop(key) for key in ("offset", "length") if key in entries}
    if entries.keys() - {"checksum"} or not all(size.isascii() and size.isdecimal() for size in sizes.values()):
        raise ModelError(
            f"{path} describes its weights {tensor.name!r} in {name!r} by {sorted(entries)} and {sizes}, which cannot be "
            "read: export it again"
        )
    if tensor.data_type not in _BYTES_OF_TYPE or any(length < 0 for length in tensor.dims):
        raise ModelError(
            f"{path} has its weights {tensor.name!r} in {name!r} as type {tensor.data_type} in shape {list(tensor.dims)}, "
            "which is not supported: export them as float32"
        )
    length = math.prod(tensor.dims) * _BYTES_OF_TYPE[tensor.data_type]
    if (given := int(sizes.get("length", length))) != length:
        raise ModelError(
            f"{path} has weights {tensor.name!r} of {length} bytes, but {given} in {name!r}: export both files again"
        )
    return name, int(sizes.get("offset", 0)), length


def _ending(graph: GraphProto, name: str, rank: int, opset: int) -> Ending | None:
    """Return the activation that a value comes from, if it is one over the channels."""
    makers: dict[str, NodeProto] = {made: node for node in graph.node for made in node.output}
    axis = CHANNEL_AXIS
    for _ in range(len(graph.node)):
        node = makers.get(name)
        if node is None or node.domain not in ("", "ai.onnx") or not node.input or node.output[0] != name:
            return None
        attributes: dict[str, Any] = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Transpose" and "perm" in attributes:
            if axis >= len(attributes["perm"].ints):
                return None
            axis = attributes["perm"].ints[axis]
        elif node.op_type in ENDINGS:
            if node.op_type == "Sigmoid":
                return "sigmoid"
            over = attributes["axis"].i if "axis" in attributes else -1
            alone = opset >= FIRST_OPSET_OF_ONE_AXIS or axis == rank - 1
            return ENDINGS[node.op_type] if alone and over in (axis, axis - rank) else None
        elif node.op_type not in PASSED_ON or ("to" in attributes and attributes["to"].i not in FLOATS):
            return None
        name = node.input[0]
    return None
