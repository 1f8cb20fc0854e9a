"""Test `emseg export` to Neuroglancer precomputed with tensorstore and a reader written from the specification.

https://neuroglancer-docs.web.app/datasource/precomputed/
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from exported import STEPS, WHAT, in_unit, levels_in, make_output
from numpy.typing import NDArray
from runs import PLANAR, run_emseg, save_random_model, snapshot, texture

from emseg.flows.export import export
from emseg.flows.ingest import ingest
from emseg.flows.segment import segment
from emseg_core.box import Triple
from emseg_core.errors import InputError, OutputError, VolumeError
from emseg_core.installation import install_hint
from emseg_core.store.exports import new_volume
from emseg_core.store.volumes.volume import open_volume

FIRST = (120.0, 0.0, 24.0)
"""Position of the output's first voxel, in nanometres."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(tmp_path_factory.mktemp("exported"))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small chunks, so that there are several files."""
    monkeypatch.setattr(new_volume, "CHUNK_SIDE_VOXELS", 4)


def read_scale(root: Path, number: int) -> NDArray[Any]:
    """Return the voxels ``(z, y, x)`` of a scale, decoded step by step."""
    info = json.loads((root / "info").read_bytes())
    scale, dtype = info["scales"][number], np.dtype(info["data_type"]).newbyteorder("<")
    size, chunk = scale["size"], scale["chunk_sizes"][0]
    grid = [-(-length // part) for length, part in zip(size, chunk, strict=True)]
    files = {path.name: path.read_bytes() for path in (root / scale["key"]).iterdir()}
    found = np.zeros(size[::-1], dtype)
    for place in itertools.product(*map(range, grid)):
        corner = [i * length for i, length in zip(place, chunk, strict=True)]
        shape = [min(length, end - start) for length, end, start in zip(chunk, size, corner, strict=True)]
        data = chunk_of(files, scale["sharding"], morton(place, grid))
        if data is None:
            continue
        if scale["encoding"] == "raw":
            values = np.frombuffer(data, dtype).reshape(shape[::-1])
        else:
            values = segmentation(np.frombuffer(data, "<u4"), shape, scale["compressed_segmentation_block_size"], dtype)
        found[tuple(slice(start, start + length) for start, length in zip(corner[::-1], shape[::-1], strict=True))] = values
    return found


def morton(place: tuple[int, ...], grid: list[int]) -> int:
    """Return the compressed Morton code of a chunk."""
    code = bits = 0
    for bit in range(max(grid).bit_length()):
        for i, length in zip(place, grid, strict=True):
            if 1 << bit < length:
                code |= (i >> bit & 1) << bits
                bits += 1
    return code


def chunk_of(files: dict[str, bytes], sharding: dict[str, Any], code: int) -> bytes | None:
    """Return the bytes of a chunk from a shard whose only minishard lists it, or None if it is 0 everywhere."""
    assert (sharding["minishard_bits"], sharding["hash"]) == (0, "identity")
    name = f"{code >> sharding['preshift_bits']:0{-(-sharding['shard_bits'] // 4) or 1}x}.shard"
    if name not in files:
        return None
    shard = files[name]
    start, end = np.frombuffer(shard[:16], "<u8").astype(int) + 16
    ids, offsets, sizes = np.frombuffer(gzip.decompress(shard[start:end]), "<u8").reshape(3, -1).astype(int)
    if code not in np.cumsum(ids):
        return None
    (entry,) = np.flatnonzero(np.cumsum(ids) == code)
    begin = 16 + offsets[: entry + 1].sum() + sizes[:entry].sum()
    return gzip.decompress(shard[begin : begin + sizes[entry]])


def segmentation(words: NDArray[Any], shape: list[int], block: list[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the ids ``(z, y, x)`` of a chunk of one channel in the encoding ``compressed_segmentation``."""
    words = words[words[0] :]
    grid = [-(-length // part) for length, part in zip(shape, block, strict=True)]
    found = np.zeros([i * part for i, part in zip(grid[::-1], block[::-1], strict=True)], dtype)
    for number, (z, y, x) in enumerate(itertools.product(*map(range, grid[::-1]))):
        head, start = int(words[2 * number]), int(words[2 * number + 1])
        table, bits = head & 0xFFFFFF, head >> 24
        count = block[0] * block[1] * block[2]
        packed = words[start : start + count * bits // 32]
        indices = np.zeros(count, int)
        if bits:
            indices = (packed[:, None] >> np.arange(0, 32, bits, dtype="u4") & (1 << bits) - 1).ravel().astype(int)
        ids = words[table : table + (indices.max() + 1) * dtype.itemsize // 4].view(dtype)[indices]
        corner = [i * part for i, part in zip((z, y, x), block[::-1], strict=True)]
        where = tuple(slice(first, first + part) for first, part in zip(corner, block[::-1], strict=True))
        found[where] = ids.reshape(block[::-1])
    return found[tuple(map(slice, shape[::-1]))]


@pytest.mark.parametrize("what", WHAT)
def test_each_level_is_what_and_where_it_is_in_the_output(output: Path, tmp_path: Path, what: str) -> None:
    said: list[str] = []
    made = export(output, tmp_path / "made", file_format="precomputed", tell=said.append, **WHAT[what])
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    info = json.loads((made / "info").read_bytes())
    assert (info["@type"], info["num_channels"]) == ("neuroglancer_multiscale_volume", 1)
    assert (info["type"], info["data_type"]) == (("image", "uint8") if what == "inside" else ("segmentation", "uint32"))
    for number, (expected, step) in enumerate(zip(levels_in(output, what), STEPS, strict=True)):
        scale = info["scales"][number]
        assert scale["resolution"] == [4 * step[2], 4.5 * step[1], 30 * step[0]]
        exact = [place / (size * s) for place, size, s in zip(FIRST, (30, 4.5, 4), step, strict=True)]
        assert all(abs(place - whole) <= 0.5 for place, whole in zip(exact, scale["voxel_offset"][::-1], strict=True))
        np.testing.assert_array_equal(read_scale(made, number), expected)
        spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{made}/", "scale_index": number}
        np.testing.assert_array_equal(tensorstore.open(spec).result().read().result()[..., 0].transpose(), expected)
    assert len(info["scales"]) == len(STEPS)
    assert len(list((made / "0").iterdir())) > 1
    assert said == ["precomputed stores offsets in whole voxels: moved level 2 by up to half a voxel"]
    before = snapshot(tmp_path)
    export(output, made, file_format="precomputed", overwrite=True, **WHAT[what])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("what", WHAT)
def test_there_and_back(output: Path, tmp_path: Path, what: str) -> None:
    made = export(output, tmp_path / "made", file_format="precomputed", **WHAT[what])
    spec = ingest(made, tmp_path / "v").spec
    assert (spec.scale, spec.translation, spec.units) == ((30, 4.5, 4), FIRST, ("nanometer",) * 3)
    found = open_volume(tmp_path / "v", dtypes=("uint8", "uint32")).read(spec.box)
    np.testing.assert_array_equal(found, levels_in(output, what)[0])


def test_classes_have_their_names(output: Path, tmp_path: Path) -> None:
    for what, options in WHAT.items():
        made = export(output, tmp_path / what, file_format="precomputed", **options)
        info = json.loads((made / "info").read_bytes())
        assert ("segment_properties" in info) == (what == "classes")
    named = json.loads((tmp_path / "classes" / "segment_properties" / "info").read_bytes())
    assert named["@type"] == "neuroglancer_segment_properties"
    assert named["inline"]["ids"] == [str(number) for number in range(len(PLANAR.classes))]
    (labels,) = named["inline"]["properties"]
    assert labels == {"id": "label", "type": "label", "values": list(PLANAR.classes)}


def test_units_become_nanometres_or_are_missed(output: Path, tmp_path: Path) -> None:
    said: list[str] = []
    for unit, size in (("micrometer", [4000, 4500, 30000]), (None, [4, 4.5, 30])):
        other = in_unit(output, tmp_path / f"{unit}.out", unit)
        made = export(other, tmp_path / f"{unit}", file_format="precomputed", tell=said.append)
        assert json.loads((made / "info").read_bytes())["scales"][0]["resolution"] == size
    assert [line for line in said if "moved" not in line] == [
        "the volume states no unit of length: its voxel size is written as nanometres, which precomputed requires"
    ]
    other = in_unit(output, tmp_path / "feet.out", "foot")
    with pytest.raises(OutputError, match="would be in nanometres, but the unit of the volume is 'foot': export OME-Zarr"):
        export(other, tmp_path / "feet", file_format="precomputed")
    assert not (tmp_path / "feet").exists()


@pytest.mark.parametrize("shape", [(1, 60, 70), (70, 9, 10)])
def test_images_and_columns(tmp_path: Path, shape: Triple) -> None:
    tall = texture(shape).reshape(shape if shape[0] > 1 else shape[1:])
    zarr.create_array(tmp_path / "raw.zarr", data=tall, chunks=tuple(min(8, length) for length in tall.shape))
    segment(tmp_path / "raw.zarr", tmp_path / "o.out", model=save_random_model(tmp_path / "m.safetensors", PLANAR), workers=0)
    made = export(tmp_path / "o.out", tmp_path / "made", file_format="precomputed")
    expected = np.asarray(zarr.open_array(tmp_path / "o.out" / "labels" / "classes" / "0", mode="r"))
    np.testing.assert_array_equal(read_scale(made, 0), expected.reshape(shape))


def test_only_an_export_and_nothing_else_is_replaced(output: Path, tmp_path: Path) -> None:
    more, made = (export(output, tmp_path / name, file_format="precomputed") for name in ("more", "made"))
    (more / "mesh").mkdir()
    shutil.copytree(made, tmp_path / "theirs")
    info = json.loads((made / "info").read_bytes())
    del info["emseg"]
    (tmp_path / "theirs" / "info").write_text(json.dumps(info))
    before = snapshot(tmp_path)
    for name in ("more", "theirs"):
        with pytest.raises(OutputError, match="is not an export of emseg, or contains other files"):
            export(output, tmp_path / name, file_format="precomputed", overwrite=True)
    with pytest.raises(OutputError, match="already exists"):
        export(output, made, file_format="precomputed")
    assert snapshot(tmp_path) == before
    export(output, made, file_format="ome-zarr-0.5", overwrite=True)
    assert open_volume(made).spec.shape == levels_in(output, "classes")[0].shape


def test_a_full_disk_leaves_nothing(output: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))  # no file may grow beyond this, as if the disk were full
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            export(output, tmp_path / "made", file_format="precomputed", probability="inside")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_without_the_library(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(VolumeError, match="made is written with tensorstore, .* " + re.escape(install_hint("tensorstore"))):
        export(output, tmp_path / "made", file_format="precomputed")
    with pytest.raises(InputError, match="choose one with --format"):
        export(output, tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_the_command(output: Path, tmp_path: Path) -> None:
    done = run_emseg("export", output, tmp_path / "made", "--format", "precomputed", "--instances")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'made'}\n"), done.stderr
    said, *_ = done.stderr.splitlines()
    assert said == "precomputed stores offsets in whole voxels: moved level 2 by up to half a voxel"
