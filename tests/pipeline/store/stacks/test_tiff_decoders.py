"""Test strips and tiles of TIFF that hold more than they should, and valid ones that resemble them."""

from __future__ import annotations

import lzma
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from bombs import BLOATED

from emseg_core.errors import VolumeError
from emseg_core.store.stacks.tiff import open_tiff


def strips(path: Path, compression: int, *packed: bytes, height: int, rows: int) -> Path:
    """Make an image of strips, 256 pixels wide."""
    places = [8 + sum(map(len, packed[:number])) for number in range(len(packed))]
    end = 8 + sum(map(len, packed))
    count = len(packed)
    tags = [(256, 256), (257, height), (258, 8), (259, compression), (262, 1), (277, 1), (278, rows)]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags]
    lists = [struct.pack(f"<{count}I", *values) for values in (places, list(map(len, packed)))]
    for tag, values, place in ((273, lists[0], end), (279, lists[1], end + 4 * count)):
        entries.append(struct.pack("<HHI", tag, 4, count) + (values if count == 1 else struct.pack("<I", place)))
    ifd = end + 8 * count
    head = b"II*\0" + struct.pack("<I", ifd)
    path.write_bytes(
        head + b"".join(packed) + b"".join(lists) + struct.pack("<H", 9) + b"".join(sorted(entries)) + struct.pack("<I", 0)
    )
    return path


def read(path: Path) -> Any:
    with open_tiff(path) as stack:
        return stack.read(0, stack.shape[0])


@pytest.mark.parametrize(
    ("compression", "packed"),
    [
        (8, zlib.compress(BLOATED, 1)),
        (32946, zlib.compress(bytes(65537))),
        (34925, lzma.compress(BLOATED, preset=0)),
        (32773, b"\x81\0" * 2**12),
    ],
)
def test_a_strip_that_decompresses_to_more_than_it_declares(tmp_path: Path, compression: int, packed: bytes) -> None:
    path = strips(tmp_path / "s.tif", compression, packed, height=256, rows=256)
    tracemalloc.start()
    try:
        with pytest.raises(VolumeError, match=r"page 0 of .*should have 65536 bytes, but decompresses to more") as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert str(caught.value).endswith("copy the file again")


def test_a_strip_that_is_stored_longer_than_it_can_be(tmp_path: Path) -> None:
    path = strips(tmp_path / "s.tif", 32773, b"\x80" * 2**18, height=256, rows=256)
    with pytest.raises(VolumeError, match="has a strip or tile of 262144 bytes, but 65536 bytes when decompressed"):
        read(path)


def test_a_last_strip_that_is_filled_up(tmp_path: Path) -> None:
    """Some writers pad it: the image is 100 high, its two strips 64."""
    data = np.random.default_rng(0).integers(0, 256, (128, 256), "u1")
    packed = [zlib.compress(data[:64].tobytes()), zlib.compress(data[64:].tobytes())]
    np.testing.assert_array_equal(read(strips(tmp_path / "s.tif", 8, *packed, height=100, rows=64))[0], data[:100])


@pytest.mark.parametrize("how", [{"rowsperstrip": 33}, {"tile": (64, 48)}], ids=str)
@pytest.mark.parametrize("compression", ["zlib", "lzma"])
def test_strips_and_tiles_as_they_should_be(tmp_path: Path, compression: str, how: dict[str, Any]) -> None:
    data = np.random.default_rng(0).integers(0, 9, (4, 100, 130), "u2")
    tifffile.imwrite(tmp_path / "s.tif", data, compression=compression, photometric="minisblack", predictor=True, **how)
    np.testing.assert_array_equal(read(tmp_path / "s.tif"), data)
