"""Test damaged model files: header, network description, weights, and files that only look like models."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import sys
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_cases import TEXTS, Attempt, Property, check, damaged_bytes, damaged_json, fuzz, try_in_child
from hypothesis import strategies as st
from safetensors.torch import load, save

from emseg_core.errors import ModelError
from emseg_core.model.file import load_model
from emseg_core.model.header import (
    LENGTH_BYTES,
    METADATA_KEY,
    header_metadata,
    model_digest,
    parameter_shapes,
    read_header,
)
from emseg_core.model.unet import UNet
from emseg_core.specs.model import FLOAT32_BYTES, ModelSpec

SPECS = {
    "planar": ModelSpec.unet(width=2, depth=1),
    "cubic": ModelSpec.unet(width=2, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2)),
    "flat": ModelSpec.unet(width=1, depth=0, classes=("all",), dropout=0),
    "mixed": ModelSpec(1, 2, ("a", "b", "c"), ((1, 3, 3), (3, 3, 3), (1, 1, 1)), ((1, 2, 2), (2, 2, 2)), channels=2),
}
CARD = {"name": "tiny", "licence": "CC BY", "voxel_size": "40 4 4 nm"}
NAMES = st.sampled_from(sorted(SPECS))


@cache
def models() -> dict[str, bytes]:
    """Make a valid model file of each network."""
    torch.manual_seed(7)
    return {name: save(UNet(spec).state_dict(), header_metadata(spec, CARD)) for name, spec in SPECS.items()}


def parts(name: str) -> tuple[bytes, bytes]:
    """Return the header and weights of a valid model file."""
    stored = models()[name]
    end = LENGTH_BYTES + int.from_bytes(stored[:LENGTH_BYTES], "little")
    return stored[LENGTH_BYTES:end], stored[end:]


def joined(header: bytes, weights: bytes) -> bytes:
    return len(header).to_bytes(LENGTH_BYTES, "little") + header + weights


def put(content: bytes, folder: Path) -> Path:
    (folder / "m.safetensors").write_bytes(content)
    return folder / "m.safetensors"


def use(path: Path) -> None:
    """Read a model as a driver and a worker do: its description first, then all of it. Both must be the same."""
    try:
        spec, card = read_header(path)
    except ModelError as error:
        with pytest.raises(ModelError, match=f"^{re.escape(str(error))}$"):
            load_model(path)
        raise
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert all(map(str.isprintable, spec.classes))
    assert max(spec.tile_for((1, 1, 1))) > 0
    digest = model_digest(path)
    model = load_model(path)
    assert (model.spec, model.card, model.digest) == (spec, card, digest)
    weights = model.network().state_dict()
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == parameter_shapes(spec)
    assert all(weight.isfinite().all() for weight in weights.values())


SIZES = st.sampled_from(
    [1] * 20 + [3] * 6 + [5, 7, 9, 255, 257, 2**16 - 1, 2**16 + 1, 2**31 - 1, 2**63 - 1, 10**400 + 1, 10**4200 + 1]
)
DEPTHS = st.sampled_from([0, 1, 1, 1, 2, 2, 3, 10, 32, 33, 1000, 5000])


@fuzz(cases=300)
def claims(data: st.DataObject, folder: Path) -> Attempt:
    """Draw headers that list all tensors of a network too large for any file. The file may be long and empty."""
    depth = data.draw(DEPTHS)
    kernel, factor = ([data.draw(SIZES) for _ in range(3)] for _ in range(2))
    fields = {
        "width": data.draw(SIZES),
        "depth": depth,
        "classes": ["class"] * data.draw(st.sampled_from([1, 2, 3, 254, 255, 20_000])),
        "kernels": ([kernel] * 40 + [[1, 1, 1]] * depth)[: depth + 1],
        "pooling": ([factor] * 40 + [[1, 1, 1]] * depth)[:depth],
        "channels": data.draw(SIZES),
    }
    try:
        shapes = parameter_shapes(ModelSpec.from_json(fields))
    except ModelError:
        shapes = {}
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: json.dumps({"format": 1, "spec": fields, "card": CARD})}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + FLOAT32_BYTES * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    path = put(joined(json.dumps(header).encode(), b""), folder)
    os.truncate(path, path.stat().st_size + data.draw(st.sampled_from([0, 1, 1000, min(end, 2**22), 2**34])))
    return lambda: use(path)


@fuzz(cases=900)
def headers(data: st.DataObject, folder: Path) -> Attempt:
    """Draw a damaged header, or damage to the JSON text of network and card inside it."""
    header, weights = parts(data.draw(NAMES))
    if data.draw(st.booleans()):
        document = json.loads(header)
        metadata = document["__metadata__"]
        metadata[METADATA_KEY] = damaged_json(data, metadata[METADATA_KEY]).decode()
        header = json.dumps(document).encode()
    else:
        header = damaged_json(data, header)
    path = put(joined(header, weights), folder)
    return lambda: use(path)


@fuzz(cases=500)
def stored(data: st.DataObject, folder: Path) -> Attempt:
    """Draw a file with bytes truncated, changed, inserted or removed: anywhere, in the header only, or in the stated length."""
    content = models()[name := data.draw(NAMES)]
    header, weights = parts(name)
    match data.draw(st.sampled_from(["file", "header", "length"])):
        case "file":
            content = damaged_bytes(data, content)
        case "header":
            content = joined(damaged_bytes(data, header), weights)
        case "length":
            lengths = st.one_of(st.integers(len(header) - 9, len(header) + 9), st.integers(0, 2**64 - 1))
            content = data.draw(lengths).to_bytes(LENGTH_BYTES, "little") + header + weights
    path = put(content, folder)
    return lambda: use(path)


TYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool, torch.float8_e5m2]
VALUES = [float("nan"), float("inf"), float("-inf"), 3e38, 1e-45, -0.0]


@fuzz(cases=300)
def weights(data: st.DataObject, folder: Path) -> Attempt:
    """Draw valid files with tensors of another type, shape, name or value, or with missing or extra ones."""
    tensors = load(models()[name := data.draw(NAMES)])
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from(sorted(tensors)))
        tensor = tensors[key]
        match data.draw(st.sampled_from(["type", "shape", "size", "name", "more", "less", "value", "value"])):
            case "type":
                tensors[key] = tensor.to(data.draw(st.sampled_from(TYPES)))
            case "shape":
                shapes = [tensor.flatten(), tensor[None], tensor[..., None], tensor.transpose(0, -1).contiguous()]
                tensors[key] = data.draw(st.sampled_from(shapes))
            case "size":
                tensors[key] = data.draw(st.sampled_from([tensor[:0], tensor[1:], torch.cat([tensor, tensor])])).clone()
            case "name":
                tensors[data.draw(st.sampled_from(TEXTS[:9]))] = tensors.pop(key)
            case "more":
                tensors[data.draw(st.sampled_from(["extra", f"{key}.bias", *TEXTS[:9]]))] = tensor.clone()
            case "less":
                del tensors[key]
            case "value" if tensor.is_floating_point() and tensor.numel():
                tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = data.draw(st.sampled_from(VALUES))
    path = put(save(tensors, header_metadata(SPECS[name], CARD)), folder)
    return lambda: use(path)


class Trap:
    """Ends the process when it is unpickled."""

    def __reduce__(self) -> Any:
        return sys.exit, ("a pickle was run",)


@cache
def traps() -> list[bytes]:
    """Return pickles of all protocols and those that torch writes, bare and zipped."""
    files = [BytesIO(), BytesIO()]
    for file, zipped in zip(files, (False, True), strict=True):
        torch.save({"state_dict": Trap()}, file, _use_new_zipfile_serialization=zipped)
    return [pickle.dumps(Trap(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)] + [f.getvalue() for f in files]


@fuzz(cases=300)
def pickles(data: st.DataObject, folder: Path) -> Attempt:
    """Draw pickles, alone or inside a model. Nothing in them is ever run."""
    content = models()[name := data.draw(NAMES)]
    header, weights = parts(name)
    trap = data.draw(st.sampled_from(traps()))
    match data.draw(st.sampled_from(["alone", "first", "header", "description", "weights", "last"])):
        case "alone":
            content = trap
        case "first":
            content = trap + content
        case "header":
            content = joined(trap, weights)
        case "description":
            document = json.loads(header)
            document["__metadata__"][METADATA_KEY] = trap.decode("latin-1")
            content = joined(json.dumps(document).encode(), weights)
        case "weights":
            content = joined(header, (trap + weights)[: len(weights)])
        case "last":
            content += trap
    path = put(content if data.draw(st.booleans()) else damaged_bytes(data, content), folder)
    return lambda: use(path)


@pytest.mark.parametrize("name", [name for name, value in list(globals().items()) if isinstance(value, Property)])
def test_model(name: str) -> None:
    check(try_in_child(__file__, name), globals()[name].wanted)


@pytest.mark.parametrize("name", SPECS)
def test_sound_models_pass(tmp_path: Path, name: str) -> None:
    """Otherwise the tests above would pass on anything."""
    path = put(models()[name], tmp_path)
    use(path)
    assert read_header(path) == (SPECS[name], CARD)
    for tensor, found in load_model(path).network().state_dict().items():
        assert torch.equal(found, load(models()[name])[tensor])
    path.write_bytes(models()[name][:-1])
    with pytest.raises(ModelError):
        use(path)


def test_traps_work() -> None:
    """Otherwise no test would notice a model that is unpickled."""
    for trap in traps()[: pickle.HIGHEST_PROTOCOL + 1]:
        with pytest.raises(SystemExit, match="a pickle was run"):
            pickle.loads(trap)
    for trap in traps()[pickle.HIGHEST_PROTOCOL + 1 :]:
        with pytest.raises(SystemExit, match="a pickle was run"):
            torch.load(BytesIO(trap), weights_only=False)
