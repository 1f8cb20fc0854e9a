"""Test `emseg ingest` of N5 and precomputed volumes: the same voxels at the same position, or one line with the reason."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import Blosc
from numpy.typing import NDArray
from runs import run_emseg
from stacks import BLOCK, save_n5, save_precomputed

from emseg.flows.ingest import ingest
from emseg_core.box import Box, Triple
from emseg_core.errors import VolumeError
from emseg_core.installation import install_hint
from emseg_core.store.stacks.formats import open_stack
from emseg_core.store.stacks.tensor import TensorStack
from emseg_core.store.volumes.volume import open_volume

SHAPE = (23, 40, 50)
NM, NONE = ("nanometer",) * 3, (None,) * 3


def voxels(dtype: str = "uint8", shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    return np.random.default_rng(3).integers(1, 250, shape).astype(dtype)


def save_n5_by_hand(folder: Path, data: NDArray[Any]) -> Path:
    """Save a dataset as in the specification: https://github.com/saalfeldlab/n5#file-system-specification."""
    folder.mkdir()
    described = {"dimensions": data.shape[::-1], "blockSize": BLOCK[::-1], "dataType": data.dtype.name}
    (folder / "attributes.json").write_text(json.dumps({**described, "compression": {"type": "gzip"}}))
    for z, y, x in itertools.product(*(range(-(-length // block)) for length, block in zip(data.shape, BLOCK, strict=True))):
        part = data[tuple(slice(i * b, (i + 1) * b) for i, b in zip((z, y, x), BLOCK, strict=True))]
        packed = gzip.compress(part.astype(part.dtype.newbyteorder(">")).tobytes())
        file = folder / str(x) / str(y) / str(z)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(struct.pack(">HH3I", 0, 3, *part.shape[::-1]) + packed)
    return folder


def refused(tmp_path: Path, source: Path, **options: Any) -> str:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VolumeError) as caught:
        ingest(source, tmp_path / "v", **options)
    assert sorted(tmp_path.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check(volume: Path, data: NDArray[Any], scale: tuple[float, ...], first: tuple[float, ...], units: tuple[Any, ...]) -> None:
    found = open_volume(volume, dtypes=(data.dtype.name,))
    assert found.spec.dtype == data.dtype.name
    np.testing.assert_array_equal(found.read(found.spec.box), data)
    assert (found.spec.scale, found.spec.translation, found.spec.units) == (scale, first, units)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_n5(tmp_path: Path, dtype: str) -> None:
    """The container holds the levels of one image. The finest one is used."""
    group = tmp_path / "em.n5" / "volumes" / "raw"
    size = {"resolution": [4, 8.5, 30], "offset": [40, 0, -60], "units": ["nm", "nm", "nm"]}
    save_n5(group / "s0", voxels(dtype), **size)
    save_n5(group / "s1", voxels(dtype)[::2, ::2, ::2])
    ingest(tmp_path / "em.n5", tmp_path / "v")
    check(tmp_path / "v", voxels(dtype), (30, 8.5, 4), (-60, 0, 40), NM)
    for number, (source, dataset) in enumerate(((tmp_path / "em.n5", "volumes/raw"), (group / "s0", None))):
        ingest(source, tmp_path / f"w{number}", dataset=dataset)
        check(tmp_path / f"w{number}", voxels(dtype), (30, 8.5, 4), (-60, 0, 40), NM)


def test_n5_as_its_specification_says(tmp_path: Path) -> None:
    ingest(save_n5_by_hand(tmp_path / "s.n5", voxels("uint16")), tmp_path / "v")
    check(tmp_path / "v", voxels("uint16"), (1, 1, 1), (0, 0, 0), NONE)


COSEM = {"axes": ["z", "y", "x"], "scale": [30, 8, 4], "translate": [60, 4, 2], "units": ["nm", "nm", "nm"]}


@pytest.mark.parametrize(
    ("attributes", "scale", "first", "units"),
    [
        ({}, (1, 1, 1), (0, 0, 0), NONE),
        ({"resolution": [4, 8, 30]}, (30, 8, 4), (0, 0, 0), NONE),
        ({"resolution": [4, 8, 30], "units": "pixel"}, (30, 8, 4), (0, 0, 0), NONE),
        ({"pixelResolution": [0.4, 0.8, 3]}, (3, 0.8, 0.4), (0, 0, 0), NONE),
        ({"pixelResolution": {"dimensions": [4, 8, 30], "unit": "um"}}, (30, 8, 4), (0, 0, 0), ("micrometer",) * 3),
        ({"transform": COSEM, "resolution": [1, 1, 1]}, (30, 8, 4), (60, 4, 2), NM),
        ({"transform": {**COSEM, "axes": ["x", "y", "z"]}}, (4, 8, 30), (2, 4, 60), NM),
        (
            {"resolution": [4, 8, 30], "units": ["nm"] * 3, "offset": [4, 0, 0], "downsamplingFactors": [4, 2, 1]},
            (30, 16, 16),
            (0, 4, 10),
            NM,
        ),
    ],
)
def test_the_voxel_size_of_n5(tmp_path: Path, attributes: dict[str, Any], scale: Any, first: Any, units: Any) -> None:
    ingest(save_n5(tmp_path / "s.n5" / "em", voxels(), **attributes), tmp_path / "v")
    check(tmp_path / "v", voxels(), scale, first, units)


def test_the_voxel_size_of_the_group_holds_for_its_levels(tmp_path: Path) -> None:
    group = tmp_path / "s.n5" / "em"
    for level in ("s0", "s1"):
        save_n5(group / level, voxels())
    (group / "attributes.json").write_text(json.dumps({"scales": [[1, 1, 1], [2, 2, 1]]}))
    (tmp_path / "s.n5" / "attributes.json").write_text(json.dumps({"n5": "2.5.0", "resolution": [4, 8, 30], "units": "nm"}))
    (tmp_path / "attributes.json").write_text(json.dumps({"resolution": [9, 9, 9]}))
    ingest(group / "s1", tmp_path / "v")
    check(tmp_path / "v", voxels(), (30, 16, 8), (0, 4, 2), NM)
    (group / "attributes.json").write_text(json.dumps({"scales": [[1, 1, 1]] * 2, "resolution": [5, 5, 5]}))
    ingest(tmp_path / "s.n5", tmp_path / "w", dataset="em/s1")
    check(tmp_path / "w", voxels(), (5, 5, 5), (0, 0, 0), NONE)


def test_a_size_without_a_unit_is_said(tmp_path: Path) -> None:
    done = run_emseg("ingest", save_n5(tmp_path / "s.n5", voxels(), resolution=[4, 8, 30]), tmp_path / "v")
    assert done.stdout == f"{tmp_path / 'v'}: 23 x 40 x 50 uint8, voxels of 30 x 8 x 4, unit not stated\n"
    done = run_emseg("ingest", save_n5(tmp_path / "t.n5", voxels()), tmp_path / "w")
    assert done.stdout == f"{tmp_path / 'w'}: 23 x 40 x 50 uint8, voxel size not stated\n"


def test_axes_of_n5(tmp_path: Path) -> None:
    ingest(save_n5(tmp_path / "named.n5", voxels(), axes=["z", "y", "x"], resolution=[4, 8, 30], units="nm"), tmp_path / "a")
    check(tmp_path / "a", voxels().transpose(), (4, 8, 30), (0, 0, 0), NM)
    ingest(save_n5(tmp_path / "one.n5", voxels()[None, None]), tmp_path / "b")
    check(tmp_path / "b", voxels(), (1, 1, 1), (0, 0, 0), NONE)
    ingest(save_n5(tmp_path / "image.n5", voxels()[0]), tmp_path / "c")
    check(tmp_path / "c", voxels()[:1], (1, 1, 1), (0, 0, 0), NONE)


def test_n5_that_cannot_be_read(tmp_path: Path) -> None:
    for name, data, message in (
        ("pairs", voxels(shape=(2, *SHAPE)), "has axes (x: 50, y: 40, z: 23, c: 2), but emseg reads one volume"),
        ("signed", voxels("int16"), "is int16, but emseg reads uint8, uint16, float32"),
        ("line", voxels()[0, 0], "has axes (x: 50)"),
    ):
        assert message in refused(tmp_path, save_n5(tmp_path / f"{name}.n5", data))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"resolution": [4, 4]}, "the resolution is [4, 4], not 3 numbers"),
        ({"pixelResolution": {"unit": "nm"}}, "the resolution is None, not 3 numbers"),
        ({"resolution": [4, 4, 0]}, "must be positive"),
        ({"transform": {"scale": [1, 1, 1]}}, "the transform names no axes"),
        ({"compression": {"type": "lz4"}}, "cannot be opened"),
        ({"dataType": "uint128"}, "cannot be opened"),
        ({"axes": ["a", "b", "c"]}, "has axes (a: 50, b: 40, c: 23)"),
    ]
    for number, (attributes, message) in enumerate(wrong):
        assert message in refused(tmp_path, save_n5(tmp_path / f"wrong{number}.n5", voxels(), **attributes))
    (tmp_path / "broken.n5").mkdir()
    (tmp_path / "broken.n5" / "attributes.json").write_text('{"dimensions": [1')
    assert "attributes.json is damaged" in refused(tmp_path, tmp_path / "broken.n5")
    (tmp_path / "empty.n5").mkdir()
    assert "has 0 datasets: choose one with --dataset (available: none)" in refused(tmp_path, tmp_path / "empty.n5")
    for name in ("a/s0", "a/s1", "b"):
        save_n5(tmp_path / "many.n5" / name, voxels())
    many = tmp_path / "many.n5"
    assert "has 3 datasets: choose one with --dataset (available: a/s0, a/s1, b)" in refused(tmp_path, many)
    assert "no dataset 'c': choose one with --dataset (available: " in refused(tmp_path, many, dataset="c")
    assert "no dataset '../wrong0.n5'" in refused(tmp_path, many, dataset="../wrong0.n5")


def test_damaged_and_missing_blocks_of_n5(tmp_path: Path) -> None:
    source = save_n5(tmp_path / "s.n5", voxels())
    block = source / "1" / "2" / "0"
    whole = block.read_bytes()
    block.write_bytes(whole[:-9])
    assert "the voxels 0:23,0:40,0:50 of" in (said := refused(tmp_path, source))
    assert said.endswith("copy it again")
    block.unlink()
    assert "or read missing chunks as 0 with --allow-missing" in refused(tmp_path, source)
    ingest(source, tmp_path / "v", allow_missing=True)
    expected = voxels()
    expected[:8, 32:, 32:] = 0
    check(tmp_path / "v", expected, (1, 1, 1), (0, 0, 0), NONE)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_precomputed(tmp_path: Path, dtype: str) -> None:
    ingest(save_precomputed(tmp_path / "s", voxels(dtype)), tmp_path / "v")
    check(tmp_path / "v", voxels(dtype), (30, 8, 4.5), (90, 800, -31.5), NM)


def test_a_precomputed_segmentation_keeps_its_ids(tmp_path: Path) -> None:
    data = voxels("uint64") + 2**40
    ingest(save_precomputed(tmp_path / "s", data, "segmentation", "compressed_segmentation"), tmp_path / "v")
    check(tmp_path / "v", data, (30, 8, 4.5), (90, 800, -31.5), NM)


def test_precomputed_that_cannot_be_read(tmp_path: Path) -> None:
    for name, data, message in (
        ("two", voxels(shape=(2, *SHAPE)), "has axes (x: 50, y: 40, z: 23, channel: 2), but emseg reads one volume"),
        ("ids", voxels("uint64"), "is uint64, but emseg reads uint8, uint16, float32"),
    ):
        assert message in refused(tmp_path, save_precomputed(tmp_path / name, data))
    source = save_precomputed(tmp_path / "s", voxels())
    assert "has no datasets, as it is neither HDF5" in refused(tmp_path, source, dataset="s0")
    chunk = source / "s0" / "-7-25_100-116_3-11"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    assert "the voxels 0:23,0:40,0:50 of" in (said := refused(tmp_path, source))
    assert said.endswith("copy it again")
    chunk.unlink()
    assert "or read missing chunks as 0 with --allow-missing" in refused(tmp_path, source)
    ingest(source, tmp_path / "v", allow_missing=True)
    expected = voxels()
    expected[:8, :16, :32] = 0
    check(tmp_path / "v", expected, (30, 8, 4.5), (90, 800, -31.5), NM)
    chunk.with_name(f"{chunk.name}.gz").touch()
    assert "gz is a compressed chunk file: decompress all of them" in refused(tmp_path, source, allow_missing=True)
    chunk.with_name(f"{chunk.name}.gz").unlink()
    info = json.loads((source / "info").read_text())
    for change, message in (
        ({"resolution": [4, 4]}, "does not describe a volume .*not 3 numbers"),
        ({"resolution": [0, 4, 4]}, "must be positive"),
        ({"encoding": "mpeg"}, "cannot be opened"),
        ({"chunk_sizes": [[2**31, 16, 8]]}, "states the chunk shape .*, more than 2147483648 bytes"),
        ({"key": "\0"}, "the chunks in .* cannot be listed .*null (byte|character)"),
        ({"key": "gone"}, "the chunks in .*gone' cannot be listed"),
        ({"size": [50, 40, 0]}, "cannot be opened|contains no voxels"),
    ):
        (source / "info").write_text(json.dumps({**info, "scales": [{**info["scales"][0], **change}]}))
        assert re.search(message, refused(tmp_path, source))
    for text, message in (
        ("{}", "does not describe a volume"),
        ("{", "info is damaged"),
        ('{"scales": []}', "does not describe a volume"),
    ):
        (source / "info").write_text(text)
        assert message in refused(tmp_path, source)


def test_large_stacks_come_box_by_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk is decompressed once, and the memory does not grow with the number of slices."""
    monkeypatch.setattr("emseg_core.store.exports.new_volume.CHUNK_SIDE_VOXELS", 4)
    shapes: list[Triple] = []
    read = TensorStack.read_box

    def noting(self: TensorStack, box: Box) -> NDArray[Any]:
        shapes.append(box.shape)
        return read(self, box)

    monkeypatch.setattr(TensorStack, "read_box", noting)
    source = save_n5(tmp_path / "s.n5", voxels())
    ingest(source, tmp_path / "v")
    check(tmp_path / "v", voxels(), (1, 1, 1), (0, 0, 0), NONE)
    assert max(shapes) == (16, 16, 16)
    assert len(shapes) == 2 * 3 * 4


@pytest.mark.parametrize("kind", ["n5", "precomputed"])
def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    source = (save_n5 if kind == "n5" else save_precomputed)(tmp_path / "s", voxels())
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    assert refused(tmp_path, source).endswith(
        f"is read with tensorstore, which is not installed: {install_hint('tensorstore')}"
    )


def test_chunks_that_are_longer_than_they_can_be(tmp_path: Path) -> None:
    """One is a sparse file with a large size, the other has a Blosc header that states a large size."""
    for source, chunk in ((save_n5(tmp_path / "a.n5", voxels()), "0/0/0"), (save_precomputed(tmp_path / "p", voxels()), "s0")):
        file = source / chunk if chunk != "s0" else next((source / chunk).iterdir())
        with file.open("r+b") as stored:
            stored.truncate(2**24)
        with open_stack(source) as stack, pytest.raises(VolumeError, match="has 16777216 bytes, but should have 4096"):
            stack.read(0, stack.shape[0])
    attributes = {"dimensions": [32, 16, 8], "blockSize": [32, 16, 8], "dataType": "uint8"}
    (tmp_path / "b.n5/0/0").mkdir(parents=True)
    compression = {"type": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 0}
    (tmp_path / "b.n5/attributes.json").write_text(json.dumps(attributes | {"compression": compression}))
    head = b"".join(number.to_bytes(size, "big") for number, size in ((0, 2), (3, 2), (32, 4), (16, 4), (8, 4)))
    (tmp_path / "b.n5/0/0/0").write_bytes(head + bytes(Blosc("lz4").encode(bytes(2**20))))
    with open_stack(tmp_path / "b.n5") as stack, pytest.raises(VolumeError, match="claims to decompress to 1048576 bytes"):
        stack.read(0, 8)
