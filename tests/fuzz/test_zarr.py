"""Test damaged Zarr: metadata of both formats, arrays, groups, OME-Zarr images, chunks and shards."""

from __future__ import annotations

import json
import pickle
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from fuzz_cases import Attempt, Property, check, damaged_bytes, damaged_json, fuzz, try_in_child
from hypothesis import strategies as st
from numcodecs import Blosc, Delta, Zlib
from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from emseg_core.box import Box, triple
from emseg_core.errors import BlockError
from emseg_core.grid.cost import cost_of
from emseg_core.grid.layout import plan_volume
from emseg_core.specs.model import ModelSpec
from emseg_core.store.volumes.volume import open_volume

SHAPE = (9, 12, 10)
PLANNED = 2**21
"""Longest axis of planned volumes. The memory of planning grows with the length of an axis, to 200 MiB for this one."""

OLD = {"zarr_format": 2}
NEW = {"zarr_format": 3}
LAYOUTS: dict[str, dict[str, Any]] = {
    "v2": OLD | {"compressors": Zlib()},
    "v2-blosc-filters": OLD | {"compressors": Blosc(), "filters": [Delta(dtype="u1")], "order": "F"},
    "v2-slashes": OLD | {"chunk_key_encoding": {"name": "v2", "separator": "/"}, "compressors": None},
    "v3": NEW | {"dimension_names": "zyx"},
    "v3-float32": NEW | {"dtype": "float32", "compressors": [GzipCodec()], "filters": [TransposeCodec(order=(2, 0, 1))]},
    "v3-raw": NEW | {"dtype": "uint16", "compressors": None, "serializer": BytesCodec(endian="big")},
    "v3-shards": NEW | {"shards": (8, 8, 8), "compressors": [ZstdCodec(), Crc32cCodec()]},
    "v3-index-first": NEW | {"compressors": None, "serializer": ShardingCodec(chunk_shape=(2, 4, 4), index_location="start")},
    "ome-0.4": OLD | {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "ome-0.5": NEW | {"shards": (8, 8, 8), "dimension_names": "zyx"},
}
PLAIN = {"voxel_size": [40, 4, 4], "offset": [0, 8, 8], "units": ["nm", "nm", "nm"], "axis_names": ["z", "y", "x"]}
STEPS = [{"type": "scale", "scale": [40, 4, 4]}, {"type": "translation", "translation": [0, 8, 8.5]}]
IMAGE = {
    "name": "raw",
    "axes": [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"],
    "datasets": [{"path": "s0", "coordinateTransformations": STEPS}],
    "coordinateTransformations": STEPS[:1],
}
NETWORK = ModelSpec.unet(width=2, depth=1)


def voxels(dtype: str) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 250, SHAPE).astype(dtype)


@cache
def stores() -> dict[str, dict[str, bytes]]:
    """Return the files of a valid volume of each layout, by relative path."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, layout in LAYOUTS.items():
            path = Path(folder, name)
            attributes: dict[str, Any] = {}
            if name == "ome-0.4":
                zarr.create_group(path, zarr_format=2, attributes={"multiscales": [IMAGE]})
            elif name == "ome-0.5":
                zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": [IMAGE]}})
            else:
                attributes = PLAIN
            inside = path / "s0" if name.startswith("ome") else path
            options = {"dtype": "uint8", "chunks": (4, 8, 8), "attributes": attributes, **layout}
            zarr.create_array(inside, shape=SHAPE, **options)[:] = voxels(options["dtype"])
            found[name] = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return found


def is_metadata(file: str) -> bool:
    return file.endswith((".json", ".zarray", ".zgroup", ".zattrs"))


def put(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        file = folder / "volume" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder / "volume"


def use(path: Path) -> None:
    """Use a volume as a driver and a worker do: open it, pass it on, and read at both ends."""
    volume = open_volume(path)
    spec = volume.spec
    assert min(spec.shape + spec.chunk) >= 1
    assert min(spec.scale) > 0
    assert np.isfinite([*spec.scale, *spec.translation]).all()
    assert pickle.loads(pickle.dumps(volume)).spec == spec
    near = Box.of_shape(triple(min(length, 16) for length in spec.shape))
    far = near.shift(triple(length - taken for length, taken in zip(spec.shape, near.shape, strict=True)))
    for box in (near, far):
        found = volume.read(box)
        assert (found.shape, found.dtype) == (box.shape, np.dtype(spec.dtype))


def plan(path: Path) -> None:
    spec = open_volume(path).spec
    if max(spec.shape) <= PLANNED:
        cost_of(plan_volume(spec, NETWORK), spec, probabilities=True)


SIZES = st.sampled_from([*range(1, 20), *(2**power for power in range(5, 25)), 10**6, 10**18, 10**30])


@fuzz(cases=200)
def claims(data: st.DataObject, folder: Path) -> Attempt:
    """Draw shapes of volume, shards and chunks that are consistent, but too large for any disk."""
    name = data.draw(st.sampled_from(["v2", "v3", "v3-raw", "v3-shards", "v3-index-first"]))
    files = dict(stores()[name])
    file = ".zarray" if name == "v2" else "zarr.json"
    document = json.loads(files[file])
    chunk = [data.draw(SIZES) for _ in range(3)]
    document["shape"] = [data.draw(SIZES) for _ in range(3)]
    if name == "v2":
        document["chunks"] = chunk
    elif "shard" in name or "index" in name:
        document["chunk_grid"]["configuration"]["chunk_shape"] = [length * data.draw(SIZES) for length in chunk]
        document["codecs"][0]["configuration"]["chunk_shape"] = chunk
    else:
        document["chunk_grid"]["configuration"]["chunk_shape"] = chunk
    files[file] = json.dumps(document).encode()
    path = put(files, folder)

    def attempt() -> None:
        plan(path)
        use(path)

    return attempt


@fuzz(cases=700)
def metadata(data: st.DataObject, folder: Path) -> Attempt:
    files = dict(stores()[data.draw(st.sampled_from(sorted(LAYOUTS)))])
    file = data.draw(st.sampled_from(sorted(filter(is_metadata, files))))
    files[file] = damaged_json(data, files[file])
    path = put(files, folder)

    def attempt() -> None:
        plan(path)
        use(path)

    return attempt


@fuzz(cases=250)
def metadata_bytes(data: st.DataObject, folder: Path) -> Attempt:
    files = dict(stores()[data.draw(st.sampled_from(sorted(LAYOUTS)))])
    file = data.draw(st.sampled_from(sorted(filter(is_metadata, files))))
    files[file] = damaged_bytes(data, files[file])
    path = put(files, folder)
    return lambda: use(path)


@fuzz(cases=500)
def chunks(data: st.DataObject, folder: Path) -> Attempt:
    """Draw damaged chunks and shards. A truncated one must never pass as voxels."""
    name = data.draw(st.sampled_from(sorted(LAYOUTS)))
    files = dict(stores()[name])
    file = data.draw(st.sampled_from(sorted(name for name in files if not is_metadata(name))))
    sound = files[file]
    files[file] = damaged_bytes(data, sound)
    path = put(files, folder)

    def attempt() -> None:
        use(path)
        if len(files[file]) < len(sound) and sound.startswith(files[file]):
            found = open_volume(path).read(Box.of_shape(SHAPE))
            np.testing.assert_array_equal(found, voxels(found.dtype.name))

    return attempt


@pytest.mark.parametrize("name", [name for name, value in list(globals().items()) if isinstance(value, Property)])
def test_zarr(name: str) -> None:
    check(try_in_child(__file__, name), globals()[name].wanted)


@pytest.mark.parametrize("name", LAYOUTS)
def test_sound_volumes_pass(tmp_path: Path, name: str) -> None:
    """Otherwise the tests above would pass on anything."""
    path = put(stores()[name], tmp_path)
    use(path)
    found = open_volume(path).read(Box.of_shape(SHAPE))
    np.testing.assert_array_equal(found, voxels(found.dtype.name))
    for file in sorted(name for name in stores()[name] if not is_metadata(name)):
        (path / file).write_bytes(b"")
    with pytest.raises(BlockError):
        use(path)
