"""Read the header of model files without torch, because planning needs the description of the network, not its weights.

A model file is a safetensors file (https://huggingface.co/docs/safetensors): data, never code. It starts with the
header's length (8 bytes, little endian) and the header, a JSON object with the position of each tensor, here the
parameters of a network, all float32. The entry ``__metadata__`` has one key of emseg's::

    {"__metadata__": {"emseg": '{"format": 1, "spec": {"width": 16, ...}, "card": {"name": "membrane-fib25", ...}}'},
     "head.weight": {"dtype": "F32", "shape": [2, 16, 1, 1, 1], "data_offsets": [0, 128]}, ...}

Reading checks all that the header says: each tensor lies within the file, and the tensors are exactly those of the network.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from emseg_core.box import Triple
from emseg_core.errors import ModelError
from emseg_core.printable import printable
from emseg_core.specs.model import FLOAT32_BYTES, ModelSpec

METADATA_KEY = "emseg"
MODEL_FORMAT = 1
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 1 << 20
PICKLE_PREFIXES = (b"PK", b"\x80")
"""First bytes of a zip file, in which torch stores its pickle, and of a bare pickle."""

CONVERT_HINT = "load it yourself in Python and write it with emseg_core.model.file.save_model"


def read_header(path: Path) -> tuple[ModelSpec, dict[str, str]]:
    """Read the description of the network and the card of a model file.

    Parameters
    ----------
    path
        Path of the model file.

    Returns
    -------
    spec : ModelSpec
        The network.
    card : dict of str to str
        Origin of the model: name, data, licence, scores ...

    Raises
    ------
    ModelError
        If the file is missing or truncated, is not a model file, or is inconsistent.
    """
    with open_model(path) as file:
        return parse_header(file, path.stat().st_size, path)


def model_digest(path: Path) -> str:
    """Compute the SHA-256 of a whole model file.

    Parameters
    ----------
    path
        Path of the model file.

    Returns
    -------
    str
        The digest in hexadecimal.

    Raises
    ------
    ModelError
        If the file cannot be read.
    """
    with open_model(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_model(path: Path) -> BufferedReader:
    """Open a model file.

    Parameters
    ----------
    path
        Path of the model file.

    Returns
    -------
    BufferedReader
        The file, open for reading bytes.

    Raises
    ------
    ModelError
        If it cannot be opened.
    """
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise ModelError(f"there is no model file {path}: check the path") from error
    except OSError as error:
        raise ModelError(f"the model file {path} cannot be read: {error.strerror}") from error


def parse_header(file: BufferedIOBase, size: int, path: Path) -> tuple[ModelSpec, dict[str, str]]:
    """Read the header of an open model file; see `read_header`.

    Parameters
    ----------
    file
        The file, at its start.
    size
        Its size in bytes.
    path
        Its path, for messages.

    Returns
    -------
    spec : ModelSpec
        The network.
    card : dict of str to str
        Origin of the model.

    Raises
    ------
    ModelError
        If the file is truncated, is not a model file, or is inconsistent.
    """
    start = file.read(LENGTH_BYTES)
    if len(start) < LENGTH_BYTES:
        raise ModelError(f"the model file {path} is truncated: it has {size} bytes, less than any header; download it again")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:  # a short header's length may start with the same bytes as a pickle
        if start.startswith(PICKLE_PREFIXES):
            raise ModelError(
                f"{path} is a pickle or TorchScript (.pt, .pth), which can run code and is never loaded: load it yourself in "
                "Python, and write it with torch.export.save (.pt2) or torch.onnx.export (.onnx), or, if it is a network of "
                "emseg, with emseg_core.model.file.save_model"
            )
        _refuse(path, f"its header would have {length} bytes, more than {MAX_HEADER_BYTES}")
    if LENGTH_BYTES + length > size:
        raise ModelError(
            f"the model file {path} is truncated: its header ends at byte {LENGTH_BYTES + length}, "
            f"the file at byte {size}; download it again"
        )
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        _refuse(path, "its header is not JSON")
    if not isinstance(header, dict):
        _refuse(path, "its header is not a JSON object")
    spec, card = _parse_metadata(header.pop("__metadata__", None), path)
    _check_tensors(header, spec, size - LENGTH_BYTES - length, path)
    return spec, card


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Compute the shapes of the parameters of `emseg_core.model.unet.UNet` without building the network.

    Parameters
    ----------
    spec
        Description of the network.

    Returns
    -------
    dict of str to tuple of int
        Shape of each parameter, by its name.

    Examples
    --------
    >>> parameter_shapes(ModelSpec.unet(width=4, depth=0))["down.0.0.weight"]
    (4, 1, 3, 3)
    """
    first = 1 if spec.planar else 0
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, inputs: int, outputs: int, kernel: Triple) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, *list(kernel)[first:])
        shapes[f"{name}.bias"] = (outputs,)

    widths = [spec.width * 2**level for level in range(spec.depth + 1)]
    for level, (width, kernel) in enumerate(zip(widths, spec.kernels, strict=True)):
        convolution(f"down.{level}.0", widths[level - 1] if level else spec.channels, width, kernel)
        convolution(f"down.{level}.1", width, width, kernel)
    for step, level in enumerate(reversed(range(spec.depth))):
        width, kernel = widths[level], spec.kernels[level]
        shapes[f"up.{step}.weight"] = (2 * width, width, *list(spec.pooling[level])[first:])
        shapes[f"up.{step}.bias"] = (width,)
        convolution(f"join.{step}.0", 2 * width, width, kernel)
        convolution(f"join.{step}.1", width, width, kernel)
    convolution("head", widths[0], spec.logits, (1, 1, 1))
    return shapes


def header_metadata(spec: ModelSpec, card: Mapping[str, str]) -> dict[str, str]:
    """Return the ``__metadata__`` of a model file.

    Parameters
    ----------
    spec
        The network.
    card
        Origin of the model, as text by name.

    Returns
    -------
    dict of str to str
        The description as JSON, under emseg's key.
    """
    return {METADATA_KEY: json.dumps({"format": MODEL_FORMAT, "spec": spec.to_json(), "card": dict(card)})}


def _parse_metadata(metadata: Any, path: Path) -> tuple[ModelSpec, dict[str, str]]:
    """Read the network and the card from the ``__metadata__`` of a header."""
    if not isinstance(metadata, dict) or METADATA_KEY not in metadata:
        raise ModelError(
            f"{path} is a safetensors file, but its header has no {METADATA_KEY!r} entry that describes the network: "
            f"{CONVERT_HINT}"
        )
    try:
        data = json.loads(metadata[METADATA_KEY])
        version, fields, card = data["format"], data["spec"], data["card"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(
            f"the {METADATA_KEY!r} entry in the header of {path} is damaged ({error!r}): {CONVERT_HINT}"
        ) from error
    if version != MODEL_FORMAT:
        raise ModelError(
            f"{path} has model format {_shown(version)}, but this emseg reads format {MODEL_FORMAT}: use the emseg that wrote "
            "it"
        )
    if not isinstance(card, dict) or not all(isinstance(value, str) for value in card.values()):
        raise ModelError(f"the card in the header of {path} has values that are not text: {CONVERT_HINT}")
    if not isinstance(fields, dict):
        raise ModelError(f"the network in the header of {path} is not a JSON object: {CONVERT_HINT}")
    try:
        return ModelSpec.from_json(fields), {_plain(name): _plain(value) for name, value in card.items()}
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _check_tensors(tensors: Mapping[str, Any], spec: ModelSpec, available: int, path: Path) -> None:
    """Check that the tensors are those of the network, and fill the `available` bytes after the header without gaps."""
    expected = parameter_shapes(spec)
    if missing := expected.keys() - tensors.keys():
        _disagree(path, f"it lacks {_list(missing)}")
    if extra := tensors.keys() - expected.keys():
        _disagree(path, f"it has {_list(extra)}, which the network does not")
    end = 0
    for name, (start, stop) in sorted(
        ((name, _byte_range(name, tensors[name], path)) for name in expected), key=lambda item: item[1]
    ):
        entry, shape = tensors[name], expected[name]
        if entry.get("shape") != list(shape):
            _disagree(path, f"{name} has shape {_shown(entry.get('shape'))}, the network needs {list(shape)}")
        if entry.get("dtype") != "F32":
            _disagree(path, f"{name} is {_shown(entry.get('dtype'))}, the network needs F32")
        if start != end or stop - start != FLOAT32_BYTES * math.prod(shape):
            place = f"{_shown(start)} to {_shown(stop)}"
            _disagree(path, f"{name} lies at bytes {place}, but {shape} float32 from {end} was expected")
        end = stop
    if end > available:
        raise ModelError(
            f"the model file {path} is truncated: its weights take {end} bytes, but only {available} follow its "
            "header; download it again"
        )
    if end < available:
        _refuse(path, f"{available - end} bytes follow the last tensor")


def _byte_range(name: str, entry: Any, path: Path) -> tuple[int, int]:
    """Return the first byte of a tensor and the one after its last, counted from the end of the header."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        _refuse(path, f"its header has no valid byte offsets for {name}")
    return offsets[0], offsets[1]


def _refuse(path: Path, reason: str) -> NoReturn:
    """Raise the error for a file that is not a safetensors file."""
    raise ModelError(f"{path} is not a safetensors file ({reason}): {CONVERT_HINT}")


def _disagree(path: Path, reason: str) -> NoReturn:
    """Raise the error for weights that do not fit the network."""
    raise ModelError(f"the weights in {path} are not those of the network in its header: {reason}; {CONVERT_HINT}")


def _list(names: set[str]) -> str:
    """Join names for a message, at most three of them."""
    shown = sorted(map(_shown, names))
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _shown(value: Any) -> str:
    """Show a header value in one short line; `repr` would exceed the recursion limit on deeply nested JSON."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= 80 else reprlib.repr(value)


def _plain(text: str) -> str:
    """Put text on one line, without control characters for a terminal."""
    return printable(" ".join(text.split()))
