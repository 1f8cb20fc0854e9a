from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.v04 import Image as Image04
from ome_zarr_models.v05 import Image as Image05
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from emseg_core.box import Box
from emseg_core.errors import BlockError, VolumeError
from emseg_core.store.volumes.volume import level_path, open_volume

SHAPE = (9, 21, 17)

LAYOUTS: dict[str, dict[str, Any]] = {
    "v2": {"zarr_format": 2},
    "v2-f-order": {"zarr_format": 2, "order": "F"},
    "v2-slashes-raw": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}, "compressors": None},
    "v3": {"zarr_format": 3},
    "v3-raw-big-endian": {"zarr_format": 3, "serializer": BytesCodec(endian="big"), "compressors": None},
    "v3-sharded": {"zarr_format": 3, "shards": (8, 16, 16), "compressors": [ZstdCodec(level=1), Crc32cCodec()]},
}


def voxels(dtype: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    random = np.random.default_rng(7)
    return random.integers(0, 250, shape).astype(dtype) if dtype != "float32" else random.normal(size=shape).astype("f4")


def save(path: Path, data: np.ndarray, attributes: dict[str, Any] | None = None, **options: Any) -> Path:
    """Save a Zarr array in chunks of 4 and 8 voxels."""
    options = {"chunks": (4, 8, 8)[-data.ndim :] if data.ndim < 4 else (1,) * (data.ndim - 3) + (4, 8, 8), **options}
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, attributes=attributes or {}, **options)
    array[:] = data
    return path


def axes(names: str, unit: str | None = "nanometer") -> list[dict[str, str]]:
    kinds = {"t": "time", "c": "channel"}
    return [{"name": n, "type": kinds.get(n, "space")} | ({"unit": unit} if unit and n not in kinds else {}) for n in names]


def image(names: str, *steps: dict[str, Any], overall: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    found: dict[str, Any] = {"axes": axes(names), "datasets": [{"path": "s0", "coordinateTransformations": list(steps)}]}
    return [found | ({"coordinateTransformations": overall} if overall else {})]


def scale(*values: float) -> dict[str, Any]:
    return {"type": "scale", "scale": list(values)}


def move(*values: float) -> dict[str, Any]:
    return {"type": "translation", "translation": list(values)}


def save_image(path: Path, data: np.ndarray, multiscales: Any, version: str = "0.5", **options: Any) -> Path:
    """Save an OME-Zarr image with its level 0 at ``s0``."""
    if version == "0.4":
        zarr.create_group(path, zarr_format=2, attributes={"multiscales": [{"version": "0.4", **m} for m in multiscales]})
        save(path / "s0", data, zarr_format=2, chunk_key_encoding={"name": "v2", "separator": "/"}, **options)
    else:
        zarr.create_group(path, zarr_format=3, attributes={"ome": {"version": version, "multiscales": multiscales}})
        names = [axis["name"] for axis in multiscales[0]["axes"]]
        save(path / "s0", data, zarr_format=3, dimension_names=names, **options)
    return path


def error(path: Path | str) -> str:
    """Return the message of a failed open, which is one line."""
    with pytest.raises(VolumeError) as caught:
        open_volume(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- voxels -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("layouts")
    return {name: save(folder / name, voxels("uint16"), **options) for name, options in LAYOUTS.items()}


@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    ends=st.tuples(*(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True) for n in SHAPE)),
)
def test_any_box_of_any_layout(layouts: dict[str, Path], name: str, ends: tuple[list[int], ...]) -> None:
    start, stop = (tuple(sorted(pair)[i] for pair in ends) for i in (0, 1))
    box = Box(start, stop)  # type: ignore[arg-type]
    found = open_volume(layouts[name]).read(box)
    assert found.dtype == np.dtype("=u2")
    assert found.flags.c_contiguous
    assert found.flags.writeable
    np.testing.assert_array_equal(found, voxels("uint16")[box.slices()])


@pytest.mark.parametrize("dtype", ["|u1", "<u2", ">u2", "<f4", ">f4"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_types_in_either_byte_order(tmp_path: Path, dtype: str, zarr_format: int) -> None:
    native = np.dtype(dtype).newbyteorder("=").name
    data = voxels(native)
    if zarr_format == 2:
        path = save(tmp_path / "v", data.astype(dtype), zarr_format=2)
    else:
        order = {"|": None, "<": "little", ">": "big"}[dtype[0]]
        path = save(tmp_path / "v", data, zarr_format=3, serializer=BytesCodec(endian=order))
    volume = open_volume(path)
    found = volume.read(volume.spec.box)
    assert volume.spec.dtype == native
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, data)


def test_spec_of_a_plain_array(tmp_path: Path) -> None:
    spec = open_volume(save(tmp_path / "v", voxels("uint8"), **LAYOUTS["v3-sharded"])).spec
    assert (spec.shape, spec.dtype, spec.chunk, spec.rank) == (SHAPE, "uint8", (4, 8, 8), 3)
    assert (spec.scale, spec.translation, spec.units) == ((1.0,) * 3, (0.0,) * 3, (None,) * 3)


def test_image_of_two_axes_is_a_volume_of_one_slice(tmp_path: Path) -> None:
    data = voxels("uint8")[0]
    volume = open_volume(save_image(tmp_path / "v", data, image("yx", scale(3, 2), move(1, 5))))
    spec = volume.spec
    assert (spec.shape, spec.rank, spec.chunk) == ((1, *SHAPE[1:]), 2, (1, 8, 8))
    assert (spec.scale, spec.translation, spec.units) == ((1, 3, 2), (0, 1, 5), (None, "nanometer", "nanometer"))
    np.testing.assert_array_equal(volume.read(Box((0, 3, 5), (1, 20, 9))), data[None, 3:20, 5:9])


def test_missing_chunk_is_the_fill_value(tmp_path: Path) -> None:
    path = save(tmp_path / "v", voxels("uint8"), fill_value=77)
    (path / "c" / "0" / "0" / "0").unlink()
    volume = open_volume(path)
    assert (volume.read(Box((0, 0, 0), (4, 8, 8))) == 77).all()
    np.testing.assert_array_equal(volume.read(Box((4, 0, 0), (9, 8, 8))), voxels("uint8")[4:, :8, :8])


@pytest.mark.parametrize("name", ["v2", "v2-slashes-raw", "v3", "v3-raw-big-endian", "v3-sharded"])
@pytest.mark.parametrize("left", [-9, 9, 0])
def test_damaged_chunk_is_a_block_error_that_names_the_box(tmp_path: Path, name: str, left: int) -> None:
    path = save(tmp_path / "v", voxels("uint8"), **LAYOUTS[name])
    file = path / ("c/0/0/0" if "v3" in name else "0/0/0" if "slashes" in name else "0.0.0")
    file.write_bytes(file.read_bytes()[:left])
    volume = open_volume(path)
    with pytest.raises(BlockError, match=r"0:3,0:4,0:5 of .*/v cannot be read \(.+\)") as caught:
        volume.read(Box((0, 0, 0), (3, 4, 5)))
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(volume.read(Box((8, 16, 16), SHAPE)), voxels("uint8")[8:, 16:, 16:])


@pytest.mark.parametrize("box", [Box((-1, 0, 0), (2, 2, 2)), Box((0, 0, 0), (10, 2, 2))])
def test_a_box_outside_is_never_clamped(layouts: dict[str, Path], box: Box) -> None:
    with pytest.raises(ValueError, match="not within the volume 0:9,0:21,0:17"):
        open_volume(layouts["v3"]).read(box)


def test_pickled_it_is_its_path(layouts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(layouts["v3"].parent)
    volume = open_volume("v3")
    monkeypatch.chdir("/")
    data = pickle.dumps(volume)
    again = pickle.loads(data)
    assert len(data) < 500
    assert (again.spec, again.path) == (volume.spec, layouts["v3"])
    np.testing.assert_array_equal(again.read(volume.spec.box), voxels("uint16"))


def test_threads_read_at_the_same_time(layouts: dict[str, Path]) -> None:
    volume = open_volume(layouts["v3-sharded"])
    boxes = [Box((z, y, 0), (z + 1, y + 3, 17)) for z in range(9) for y in range(0, 21, 3)]
    with ThreadPoolExecutor(4) as pool:
        for box, found in zip(boxes, pool.map(volume.read, boxes), strict=True):
            np.testing.assert_array_equal(found, voxels("uint16")[box.slices()])


# -- voxel size and axes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_transformations_of_the_dataset_come_first(tmp_path: Path, version: str) -> None:
    multiscales = image("zyx", scale(10, 4, 4), move(5, 2, 1), overall=[scale(2, 3, 1), move(100, 0, -7)])
    path = save_image(tmp_path / "v", voxels("uint8"), multiscales, version)
    (Image04 if version == "0.4" else Image05).from_zarr(zarr.open_group(path, mode="r"))
    spec = open_volume(path).spec
    index = np.array([1, 2, 3])
    place = (index * [10, 4, 4] + [5, 2, 1]) * [2, 3, 1] + [100, 0, -7]
    assert tuple(np.array(spec.translation) + index * spec.scale) == tuple(place)
    assert (spec.scale, spec.translation) == ((20, 12, 4), (110, 6, -6))
    assert spec.units == ("nanometer",) * 3


@pytest.mark.parametrize(("names", "lead"), [("tczyx", (1, 1)), ("czyx", (1,)), ("tcyx", (1, 1)), ("cyx", (1,))])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_time_and_channel_of_length_one_are_left_out(tmp_path: Path, names: str, lead: tuple[int, ...], version: str) -> None:
    rank = len(names) - len(lead)
    data = voxels("uint8")[0] if rank == 2 else voxels("uint8")
    numbers = [1.0] * len(lead) + [9.0, 5.0, 3.0][-rank:]
    chunks = (1,) * len(lead) + (4, 8, 8)[-rank:]
    path = save_image(tmp_path / "v", data.reshape(lead + data.shape), image(names, scale(*numbers)), version, chunks=chunks)
    volume = open_volume(path)
    assert volume.spec.scale == ((9, 5, 3) if rank == 3 else (1, 5, 3))
    np.testing.assert_array_equal(volume.read(volume.spec.box), data.reshape(volume.spec.shape))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (
            {"voxel_size": [40, 4, 8], "offset": [80, 0, -16], "units": ["nm", "nm", "nm"]},
            ((40, 4, 8), (80, 0, -16), "nanometer"),
        ),
        ({"resolution": [40, 4, 8], "offset": [80, 0, 16]}, ((40, 4, 8), (80, 0, 16), None)),
        ({"voxel_size": [0.5, 4, 8], "units": "micrometer"}, ((0.5, 4, 8), (0, 0, 0), "micrometer")),
        ({"offset": [80, 0, 16]}, ((1, 1, 1), (0, 0, 0), None)),
        ({"voxel_size": [2, 2, 2], "units": ["", "", ""]}, ((2, 2, 2), (0, 0, 0), None)),
    ],
)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_voxel_size_in_the_attributes_of_a_plain_array(
    tmp_path: Path, attributes: dict[str, Any], expected: tuple[Any, Any, Any], zarr_format: int
) -> None:
    spec = open_volume(save(tmp_path / "v", voxels("uint8"), attributes, zarr_format=zarr_format)).spec
    assert (spec.scale, spec.translation, spec.units) == (expected[0], expected[1], (expected[2],) * 3)


def test_named_channel_of_a_plain_array_is_left_out(tmp_path: Path) -> None:
    path = save(tmp_path / "v", voxels("uint8")[None], {"axis_names": ["c^", "z", "y", "x"], "voxel_size": [8, 4, 2]})
    assert open_volume(path).spec.scale == (8, 4, 2)


def test_upper_case_axes_mean_the_same(tmp_path: Path) -> None:
    assert open_volume(save(tmp_path / "v", voxels("uint8"), dimension_names=["Z", "Y", "X"])).spec.shape == SHAPE


def test_unnamed_dimensions_are_taken_as_z_y_x(tmp_path: Path) -> None:
    assert open_volume(save(tmp_path / "v", voxels("uint8"), dimension_names=["dim_0", "dim_1", "dim_2"])).spec.rank == 3


# -- what cannot be opened --------------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    assert "there is nothing at" in error(tmp_path / "missing.zarr")
    (tmp_path / "file").touch()
    assert "there is nothing at" in error(tmp_path / "file" / "below")
    assert "is a file, but a Zarr is a folder" in error(tmp_path / "file")
    assert "no file name can have" in error("a\0b")
    assert "no file name can have" in error("\ud800")
    assert "cannot be read" in error("n" * 5000)
    assert "so it is not a Zarr" in error(tmp_path)


@pytest.mark.parametrize("head", [b"II*\0", b"MM\0*", b"II+\0"])
def test_tiff_is_sent_to_ingest(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "slice0.TIF").write_bytes(head + b"rest")
    assert "TIFF file, not a Zarr: convert it with `emseg ingest`" in error(tmp_path / "slice0.TIF")
    assert "folder of TIFF files, not a Zarr: convert it with `emseg ingest`" in error(tmp_path)


def test_group_without_multiscales_lists_what_is_inside(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "g")
    assert "there are none" in error(tmp_path / "g")
    for name in ("raw/a", "raw/b"):
        save(tmp_path / "g" / name, voxels("uint8"))
    save_image(tmp_path / "g" / "em", voxels("uint8"), image("zyx", scale(1, 1, 1)))
    assert error(tmp_path / "g").endswith("name an array inside it; there are em, raw/a, raw/b")
    for number in range(9):
        zarr.create_array(tmp_path / "g" / f"more{number}", shape=(1,), dtype="uint8")
    assert error(tmp_path / "g").endswith("there are em, more0, more1, more2, more3, more4, more5, more6, ...")


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "uint64", "float16", "float64", "bool", "complex64", "S3", "U4"])
def test_other_types_are_refused(tmp_path: Path, dtype: str) -> None:
    zarr.create_array(tmp_path / "v", shape=(2, 3, 4), dtype=np.dtype(dtype), zarr_format=2)
    assert "but emseg reads uint8, uint16, float32" in error(tmp_path / "v")


@pytest.mark.parametrize("shape", [(), (5,), (1, 1, 1, 2, 3, 4)])
def test_other_ranks_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    zarr.create_array(tmp_path / "v", shape=shape, dtype="uint8")
    assert f"the axes are {len(shape)} without names, but emseg reads (z, y, x) or (y, x)" in error(tmp_path / "v")


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 0), (4, 4, 0)])
def test_an_empty_axis_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    zarr.create_array(tmp_path / "v", shape=shape, chunks=(2,) * len(shape), dtype="uint8")
    assert "holds no voxel" in error(tmp_path / "v")


@pytest.mark.parametrize("names", ["xyz", "yxz", "zxy"])
def test_transposed_axes_are_not_guessed(tmp_path: Path, names: str) -> None:
    expected = f"the axes are ({', '.join(names)}), but emseg reads (z, y, x)"
    assert expected in error(save(tmp_path / "3", voxels("uint8"), dimension_names=list(names)))
    assert expected in error(save(tmp_path / "2", voxels("uint8"), {"_ARRAY_DIMENSIONS": list(names)}, zarr_format=2))
    assert expected in error(save_image(tmp_path / "ome", voxels("uint8"), image(names, scale(1, 1, 1))))


def test_channels_are_refused(tmp_path: Path) -> None:
    path = save_image(tmp_path / "v", np.zeros((2, 4, 4, 4), np.uint8), image("czyx", scale(1, 1, 1, 1)))
    assert "(c, z, y, x) have shape (2, 4, 4, 4), but emseg reads one channel" in error(path)
    path = save_image(tmp_path / "w", np.zeros((4, 1, 4, 4), np.uint8), image("zcyx", scale(1, 1, 1, 1)))
    assert "transpose" in error(path)


def test_a_twice_named_axis_is_refused(tmp_path: Path) -> None:
    path = save_image(tmp_path / "v", np.zeros((1, 4, 4, 4), np.uint8), image("zzyx", scale(1, 1, 1, 1)), "0.4")
    assert "the axes are (z, z, y, x)" in error(path)


BAD_IMAGES: dict[str, tuple[Any, str]] = {
    "no list": ({}, "multiscales is {}"),
    "empty": ([], "not a list with at least one entry"),
    "no datasets": ([{"axes": axes("zyx")}], "datasets is None"),
    "no transformations": (image("zyx"), "has no coordinateTransformations"),
    "unknown transformation": (image("zyx", {"type": "affine"}), "type 'affine' is not known"),
    "too few numbers": (image("zyx", scale(1, 1)), r"scale is [1, 1], not 3 numbers"),
    "text": (image("zyx", {"type": "scale", "scale": "abc"}), "scale is 'abc', not 3 numbers"),
    "true": (image("zyx", {"type": "scale", "scale": [True, 1, 1]}), "not 3 numbers"),
    "zero": (image("zyx", scale(0, 1, 1)), "the scale positive"),
    "negative": (image("zyx", scale(1, -1, 1)), "the scale positive"),
    "not a number": (image("zyx", scale(float("nan"), 1, 1)), "must be finite"),
    "endless": (image("zyx", scale(1, 1, 1), move(float("inf"), 0, 0)), "must be finite"),
    "huge": (image("zyx", scale(10**400, 1, 1)), "must be finite"),
    "overflow": (image("zyx", scale(1e300, 1, 1), overall=[scale(1e300, 1, 1)]), "must be finite"),
    "axes missing": ([{"datasets": [{"path": "s0", "coordinateTransformations": [scale(1, 1, 1)]}]}], "there are no axes"),
    "axes as letters": ([{**image("zyx", scale(1, 1, 1))[0], "axes": ["z", "y", "x"]}], "an axis is 'z', not an object"),
    "axes of another rank": (image("zyxc", scale(1, 1, 1, 1)), "('z', 'y', 'x', 'c'), but 's0' has 3"),
    "missing": (
        [{**image("zyx", scale(1, 1, 1))[0], "datasets": [{"path": "s7", "coordinateTransformations": [scale(1, 1, 1)]}]}],
        "name the array 's7', but there is nothing at",
    ),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_wrong_ome_metadata(tmp_path: Path, name: str, version: str) -> None:
    path = save_image(tmp_path / "v", voxels("uint8"), image("zyx", scale(1, 1, 1)), version)
    multiscales, expected = BAD_IMAGES[name]
    file = path / ("zarr.json" if version == "0.5" else ".zattrs")
    document = json.loads(file.read_text())
    (document if version == "0.4" else document["attributes"]["ome"])["multiscales"] = multiscales
    file.write_text(json.dumps(document))
    message = error(path)
    assert expected in message
    assert str(path) in message


@pytest.mark.parametrize("inside", ["../other", "/etc", "s0/../../other", "", ".", "a\0", "..\\other", None, 3])
def test_a_dataset_outside_its_group_is_refused(tmp_path: Path, inside: Any) -> None:
    save(tmp_path / "other", voxels("uint8"))
    multiscales = image("zyx", scale(1, 1, 1))
    path = save_image(tmp_path / "v", voxels("uint8"), multiscales)
    multiscales[0]["datasets"][0]["path"] = inside
    zarr.open_group(path, mode="r+").attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    assert "the path of datasets[0]" in error(path)


def pyramid(path: Path, version: str) -> Path:
    """Make an image of two levels. The coarser one has its own folder and starts half a voxel later."""
    steps = [[scale(1, 4, 8, 8), move(0, 1, 2, 3)], [scale(1, 4, 16, 16), move(0, 1, 6, 7)]]
    multiscales = image("czyx", *steps[0], overall=[scale(1, 2, 1, 1)])
    multiscales[0]["datasets"].append({"path": "down/s1", "coordinateTransformations": steps[1]})
    save_image(path, voxels("uint8")[None], multiscales, version)
    form: dict[str, Any] = {"zarr_format": 2} if version == "0.4" else {"dimension_names": list("czyx")}
    save(path / "down" / "s1", voxels("uint8")[None, :, ::2, ::2], **form)
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_each_level_of_a_pyramid(tmp_path: Path, version: str) -> None:
    """Each array, named or by number, has the offset from the image. Coarser voxels are twice as long in the plane."""
    path = pyramid(tmp_path / "v", version)
    for named, coarse in ((path, 1), (level_path(path, 0), 1), (level_path(path, 1), 2), (path / "down" / "s1", 2)):
        found = open_volume(named)
        np.testing.assert_array_equal(found.read(found.spec.box), voxels("uint8")[:, ::coarse, ::coarse])
        assert found.spec.scale == (8, 8 * coarse, 8 * coarse)
        assert found.spec.translation == (2, 2 if coarse == 1 else 6, 3 if coarse == 1 else 7)
        assert found.spec.units == ("nanometer",) * 3
    with pytest.raises(VolumeError, match=r"has no level 2, its coarsest is 1: choose one with --level"):
        level_path(path, 2)
    with pytest.raises(VolumeError, match=r"not an OME-Zarr image and has no levels"):
        level_path(path / "s0", 0)


def test_an_array_beside_the_levels_has_its_own_voxel_size(tmp_path: Path) -> None:
    path = pyramid(tmp_path / "v", "0.5")
    save(path / "other", voxels("uint8"), {"voxel_size": [1, 2, 3]})
    assert open_volume(path / "other").spec.scale == (1, 2, 3)


def test_dataset_that_is_a_group_is_refused(tmp_path: Path) -> None:
    path = save_image(tmp_path / "v", voxels("uint8"), image("zyx", scale(1, 1, 1)))
    shutil.rmtree(path / "s0")
    zarr.create_group(path / "s0")
    assert "is a Zarr group, not an array" in error(path)


def test_dimension_names_that_contradict_the_ome_axes(tmp_path: Path) -> None:
    path = save_image(tmp_path / "v", voxels("uint8"), image("zyx", scale(1, 1, 1)))
    shutil.rmtree(path / "s0")
    save(path / "s0", voxels("uint8"), dimension_names=["x", "y", "z"])
    assert "have axes ('z', 'y', 'x'), but 's0' has ('x', 'y', 'z')" in error(path)


@pytest.mark.parametrize("attributes", [{"voxel_size": [1, 2]}, {"voxel_size": [1, 0, 1]}, {"resolution": "4nm"}])
def test_wrong_attributes_of_a_plain_array(tmp_path: Path, attributes: dict[str, Any]) -> None:
    assert "voxel_size is" in error(save(tmp_path / "v", voxels("uint8"), attributes))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"text"', "{}", "\xff\xfe", "[" * 100000, '{"node_type":3}'])
def test_damaged_json(tmp_path: Path, text: str) -> None:
    path = save_image(tmp_path / "v", voxels("uint8"), image("zyx", scale(1, 1, 1)))
    for file in (path / "s0" / "zarr.json", path / "zarr.json"):
        file.write_bytes(text.encode("latin-1"))
        assert str(file.parent) in error(path)


def test_a_codec_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "v", voxels("uint8"), zarr_format=2)
    document = json.loads((path / ".zarray").read_text())
    for change in ({"compressor": {"id": "pickle"}}, {"filters": [{"id": "numcodecs.pickle"}]}):
        (path / ".zarray").write_text(json.dumps(document | change))
        assert "names the codec 'pickle', which can run any code" in error(path)
    (path / ".zarray").write_text(json.dumps(document))
    (path / ".zattrs").write_text(json.dumps({"name": "pickle"}))
    assert open_volume(path).spec.shape == SHAPE


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Make a folder that anybody may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    os.seteuid(os.getuid())
    subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)
    shutil.rmtree(folder)


def drop_root() -> None:
    """Become nobody, since root is never denied a permission."""
    if os.getuid() == 0:
        os.seteuid(65534)


def test_permission_denied(unprivileged: Path) -> None:
    path = save_image(unprivileged / "v", voxels("uint8"), image("zyx", scale(1, 1, 1)))
    volume = open_volume(path)
    (path / "s0" / "c" / "0" / "0" / "0").chmod(0)
    drop_root()
    with pytest.raises(BlockError, match="permission denied"):
        volume.read(volume.spec.box)
    os.seteuid(os.getuid())
    for part in (path / "s0" / "zarr.json", path / "s0", path / "zarr.json", path):
        part.chmod(0)
        drop_root()
        assert "permission denied" in error(path)
        os.seteuid(os.getuid())


# -- fuzzing ----------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([10**30, "zstd", "pickle"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container of a JSON document with each of its keys."""
    for key in list(document) if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from places(document[key])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Return metadata files of valid images, with their content."""
    folder = tmp_path_factory.mktemp("images")
    multiscales = image("zyx", scale(10, 4, 4), move(5, 2, 1), overall=[scale(2, 3, 1)])
    new = save_image(
        folder / "new", voxels("uint8"), multiscales, **{k: v for k, v in LAYOUTS["v3-sharded"].items() if k != "zarr_format"}
    )
    old = save_image(folder / "old", voxels("uint8"), multiscales, "0.4")
    files = [new / "zarr.json", new / "s0" / "zarr.json", old / ".zattrs", old / ".zgroup", old / "s0" / ".zarray"]
    return {file: file.read_text() for file in files}


@settings(max_examples=300)
@given(data=st.data())
def test_mutated_metadata_never_raise_anything_else(images: dict[Path, str], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(images)))
    document = json.loads(images[file])
    for _ in range(data.draw(st.integers(1, 3))):
        if not (found := list(places(document))):
            break
        container, key = data.draw(st.sampled_from(found))
        if data.draw(st.booleans()):
            container[key] = data.draw(JSON)
        else:
            del container[key]
    try:
        file.write_text(json.dumps(document))
        root = file.parent if file.parent.name in ("new", "old") else file.parent.parent
        volume = open_volume(root)
        assert min(volume.spec.shape) >= 1
        assert np.isfinite([*volume.spec.scale, *volume.spec.translation]).all()
        if np.prod([float(length) for length in volume.spec.chunk]) < 1e6:
            assert volume.read(Box((0, 0, 0), (1, 1, 1))).shape == (1, 1, 1)
    except (VolumeError, BlockError) as caught:
        assert "\n" not in str(caught)  # noqa: PT017
    finally:
        file.write_text(images[file])


@settings(max_examples=150)
@given(data=st.data())
def test_mutated_bytes_never_raise_anything_else(images: dict[Path, str], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(images)))
    raw = bytearray(images[file].encode())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        file.write_bytes(raw)
        open_volume(file.parent if file.parent.name in ("new", "old") else file.parent.parent)
    except VolumeError as caught:
        assert "\n" not in str(caught)  # noqa: PT017
    finally:
        file.write_text(images[file])
