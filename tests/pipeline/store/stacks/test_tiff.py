from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_core.errors import VolumeError
from emseg_core.store.stacks.tiff import open_tiff

SHAPE = (6, 19, 23)


def voxels(dtype: str = "uint8", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 250, shape).astype(dtype)


def pages(path: Path, slices: Any, **options: Any) -> Path:
    """Write a file with a separate series for each page."""
    with tifffile.TiffWriter(path) as writer:
        for number, pixels in enumerate(slices):
            given = {name: value[number] if isinstance(value, list) else value for name, value in options.items()}
            writer.write(pixels, contiguous=False, metadata=None, photometric="minisblack", **given)
    return path


def folder(path: Path, slices: Any, **options: Any) -> Path:
    path.mkdir()
    for number, pixels in enumerate(slices):
        tifffile.imwrite(path / f"s{number}.tif", pixels, **options)
    return path


def error(path: Path | str) -> str:
    """Return the message of a failed open or read, which is one line."""
    with pytest.raises(VolumeError) as caught, open_tiff(path) as stack:
        stack.read(0, stack.shape[0])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def strip_single(path: Path) -> None:
    """Hide all pages but the first, as ImageJ does with large stacks."""
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) > 1
        first = tif.pages.first
        size = first.tags[0x100].offset  # first entry of the directory
        place = size + 12 * len(first.tags)
    raw = bytearray(path.read_bytes())
    raw[place : place + 4] = bytes(4)
    path.write_bytes(raw)


WRITERS: dict[str, Any] = {
    "tifffile": tifffile.imwrite,
    "tifffile compressed": lambda path, data: tifffile.imwrite(path, data, compression="zlib", predictor=False),
    "tiled": lambda path, data: tifffile.imwrite(path, data, tile=(16, 16)),
    "big endian": lambda path, data: tifffile.imwrite(path, data, byteorder=">"),
    "BigTIFF": lambda path, data: tifffile.imwrite(path, data, bigtiff=True),
    "BigTIFF pages": lambda path, data: tifffile.imwrite(path, data, bigtiff=True, metadata=None),
    "ImageJ": lambda path, data: tifffile.imwrite(path, data, imagej=True, metadata={"axes": "ZYX"}),
    "ImageJ time": lambda path, data: tifffile.imwrite(path, data, imagej=True, metadata={"axes": "TYX"}),
    "ImageJ big endian": lambda path, data: tifffile.imwrite(path, data, imagej=True, byteorder=">", metadata={"axes": "ZYX"}),
    "OME": lambda path, data: tifffile.imwrite(path, data, ome=True, metadata={"axes": "ZYX"}),
    "pages": pages,
    "pages differently compressed": lambda path, data: pages(
        path, data, compression=["zlib", None, "zlib", None, None, "zlib"]
    ),
    "strips": lambda path, data: pages(path, data, rowsperstrip=5),
    "folder": folder,
    "folder compressed": lambda path, data: folder(path, data, compression="zlib"),
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("name", WRITERS)
def test_any_writer(tmp_path: Path, name: str, dtype: str) -> None:
    data = voxels(dtype)
    WRITERS[name](tmp_path / "s.tif", data)
    with open_tiff(tmp_path / "s.tif") as stack:
        assert (stack.shape, stack.dtype) == (SHAPE, dtype)
        for start in range(6):
            for stop in range(start + 1, 7):
                found = stack.read(start, stop)
                assert found.dtype == np.dtype(dtype)
                assert found.dtype.isnative
                np.testing.assert_array_equal(found, data[start:stop])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_imagej_stack_with_a_single_directory(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, voxels(dtype), imagej=True, byteorder=">", metadata={"axes": "ZYX"})
    strip_single(path)
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 1
    with open_tiff(path) as stack:
        assert stack.shape == SHAPE
        np.testing.assert_array_equal(stack.read(2, 6), voxels(dtype)[2:])
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    assert "should hold 6 slices, but holds 3: it is truncated" in error(path)


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"ome": True}, {"metadata": None}])
def test_a_single_page_is_one_slice(tmp_path: Path, options: dict[str, Any]) -> None:
    tifffile.imwrite(tmp_path / "s.tif", voxels()[0], **options)
    with open_tiff(tmp_path / "s.tif") as stack:
        assert stack.shape == (1, *SHAPE[1:])
        np.testing.assert_array_equal(stack.read(0, 1), voxels()[:1])


def test_axes_of_length_one_do_not_matter(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", voxels()[None, :, None], imagej=True, metadata={"axes": "TZCYX"})
    with open_tiff(tmp_path / "s.tif") as stack:
        assert stack.shape == SHAPE


# -- what cannot be read ----------------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    assert "cannot be read (no such file or directory)" in error(tmp_path / "missing.tif")
    assert "contains no file .tif" in error(tmp_path)
    (tmp_path / "a.tif").write_bytes(b"")
    (tmp_path / "b.tif").write_bytes(b"\x89PNG" + bytes(100))
    for name in ("a.tif", "b.tif"):
        assert "cannot be opened as TIFF" in error(tmp_path / name)
    assert "remote store" in error("s3://bucket/a.tif")
    assert "no file name" in error("a\0b")


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 9, 9, 3), {"photometric": "rgb"}, "photometric interpretation RGB, but emseg reads greyscale"),
        ((9, 9, 3), {"photometric": "rgb"}, "photometric interpretation RGB, but emseg reads greyscale"),
        ((4, 9, 9), {"photometric": "miniswhite"}, "photometric interpretation MINISWHITE, but emseg reads greyscale"),
        ((9, 9), {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}, "photometric interpretation PALETTE"),
        ((4, 2, 9, 9), {"imagej": True, "metadata": {"axes": "ZCYX"}}, "has axes ZCYX of lengths (4, 2, 9, 9)"),
        ((4, 9, 9), {"imagej": True, "metadata": {"axes": "CYX"}}, "has axes CYX of lengths (4, 9, 9)"),
        ((2, 4, 9, 9), {"imagej": True, "metadata": {"axes": "TZYX"}}, "has axes TZYX of lengths (2, 4, 9, 9)"),
        ((2, 4, 9, 9), {}, "but emseg reads one stack of slices"),
    ],
)
def test_what_is_not_one_grey_stack(tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    tifffile.imwrite(
        tmp_path / "s.tif",
        voxels("uint8", shape),
        **{"photometric": "minisblack", **options} if "imagej" not in options else options,
    )
    assert message in error(tmp_path / "s.tif")


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int32", "uint64", "float16", "float64", "bool", "complex64"])
def test_other_types_are_refused(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "s.tif", voxels(dtype), photometric="minisblack")
    assert f"s.tif is {dtype}, but emseg reads uint8, uint16, float32: convert it first" in error(tmp_path / "s.tif")


def test_pages_that_differ_are_named(tmp_path: Path) -> None:
    slices = [voxels()[0], voxels()[1], voxels()[2, :-1], voxels()[3]]
    assert "page 0 of {} is (19, 23) uint8, but page 2 is (18, 23) uint8".format(pages(tmp_path / "a.tif", slices)) in error(
        tmp_path / "a.tif"
    )
    slices[2] = voxels("uint16")[2]
    assert "but page 2 is (19, 23) uint16: keep only pages of the same size and type" in error(
        pages(tmp_path / "b.tif", slices)
    )


def test_files_that_differ_are_named(tmp_path: Path) -> None:
    slices = [voxels()[0], voxels()[1], voxels()[2, :-1]]
    assert "s0.tif is (19, 23) uint8, but s2.tif is (18, 23) uint8" in error(folder(tmp_path / "a", slices))
    slices[2] = voxels("uint16")[2]
    assert "s0.tif is (19, 23) uint8, but s2.tif is (19, 23) uint16" in error(folder(tmp_path / "b", slices))
    slices[2] = voxels()
    assert "s2.tif has 6 pages, but files in a folder of slices have one" in error(folder(tmp_path / "c", slices))
    slices[2] = voxels("uint8", (19, 23, 3))
    assert "greyscale" in error(folder(tmp_path / "d", slices))


def test_a_damaged_slice_in_a_folder_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", voxels())
    raw = (path / "s3.tif").read_bytes()
    for left in (0, 7, 100, len(raw) - 10):
        (path / "s3.tif").write_bytes(raw[:left])
        assert "s3.tif" in error(path)


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="imagecodecs is installed, which knows this compression")
def test_a_compression_that_is_not_there_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, voxels()[0], compression="zlib", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages.first.tags["Compression"].overwrite(5)  # LZW
    assert "install imagecodecs, or save the file without compression" in error(path)


@pytest.mark.parametrize("name", [name for name in WRITERS if "folder" not in name])
def test_a_file_cut_short_is_never_taken_for_a_shorter_stack(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s.tif"
    WRITERS[name](path, voxels())
    raw = path.read_bytes()
    for left in range(0, len(raw), 17):
        path.write_bytes(raw[:left])
        try:
            with open_tiff(path) as stack:
                found = stack.read(0, stack.shape[0])
        except VolumeError as caught:
            assert "\n" not in str(caught)  # noqa: PT017
        else:
            np.testing.assert_array_equal(found, voxels())


@settings(max_examples=150)
@given(name=st.sampled_from(["tifffile", "tifffile compressed", "ImageJ", "OME", "pages", "BigTIFF pages"]), data=st.data())
def test_damaged_bytes_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.tif"
    WRITERS[name](path, voxels())
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(raw) - 1, 500)))
        raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        with open_tiff(path) as stack:
            if np.prod([float(n) for n in stack.shape]) < 1e7:
                stack.read(0, stack.shape[0])
    except VolumeError as caught:
        assert "\n" not in str(caught)  # noqa: PT017


@pytest.mark.skipif("EMSEG_DATA" not in os.environ, reason="EMSEG_DATA names no folder")
def test_real_stack() -> None:
    path = Path(os.environ["EMSEG_DATA"]) / "isbi2012" / "train-volume.tif"
    with open_tiff(path) as stack:
        assert (stack.shape, stack.dtype) == ((24, 512, 512), "uint8")
        np.testing.assert_array_equal(stack.read(5, 9), tifffile.imread(path)[5:9])
