"""Test that compressed bytes that expand too much are rejected at the bound, in every compression format."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs.numcodecs as extra
from bombs import PACKED, endless_zstd
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import BZ2, LZ4, LZMA, Blosc, GZip, Zlib, Zstd
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from emseg_core.errors import BlockError
from emseg_core.store.files.decompress import TooLargeError, decompress, unpack_bits, unpack_lzf
from emseg_core.store.volumes.volume import open_volume

SHAPE = (16, 64, 64)
"""Shape of a chunk of 64 KiB."""
CODECS: dict[str, Any] = {
    "gzip": GZip(),
    "zlib": Zlib(),
    "bz2": BZ2(),
    "lzma": LZMA(),
    "zstd": Zstd(),
    "zstd of no length": Zstd(),
    "blosc": Blosc(),
    "lz4": LZ4(),
}
V3: dict[str, Any] = {
    "gzip": GzipCodec(),
    "zlib": extra.Zlib,
    "bz2": extra.BZ2,
    "lzma": extra.LZMA,
    "zstd": ZstdCodec(),
    "zstd of no length": ZstdCodec(),
    "blosc": BloscCodec(),
    "lz4": extra.LZ4,
}
"""The same codecs in Zarr v3. Those that only zarr-python has give a warning when created."""
UNNAMED = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")


@contextmanager
def little_memory(most: int = 2**22) -> Iterator[None]:
    """Fail if Python and NumPy, which hold decompressed data, allocate more than this."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def voxels(shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 40, shape, "u1")


@pytest.mark.parametrize("name", CODECS)
def test_no_more_than_there_may_be(name: str) -> None:
    codec, data = CODECS[name], voxels().tobytes()
    packed = endless_zstd(len(data)) if name == "zstd of no length" else codec.encode(data)
    expected = bytes(len(data)) if name == "zstd of no length" else data
    for most in (len(data), len(data) + 1, 2**20):
        assert bytes(decompress(codec, packed, most)) == expected
    with pytest.raises(TooLargeError, match=f"should have {len(data) - 1} bytes, but decompresses to"):
        decompress(codec, packed, len(data) - 1)
    with little_memory(), pytest.raises(TooLargeError):
        decompress(codec, PACKED[name], 2**16)
    with pytest.raises(Exception, match=r"\w"):
        decompress(codec, bytes(packed)[: len(packed) // 2], len(data))


@pytest.mark.parametrize("name", ["gzip", "bz2", "lzma", "zstd", "zstd of no length"])
def test_several_streams_count_together(name: str) -> None:
    one = endless_zstd(1000) if name == "zstd of no length" else CODECS[name].encode(bytes(1000))
    assert len(decompress(CODECS[name], one + one, 2000)) == 2000
    with pytest.raises(TooLargeError):
        decompress(CODECS[name], one + one, 1999)


@given(st.lists(st.one_of(st.binary(max_size=300), st.binary(max_size=3).map(lambda part: part * 90))).map(b"".join))
def test_what_numcodecs_and_python_compress_comes_back(data: bytes) -> None:
    for codec in (GZip(), Zlib(), BZ2(), LZMA(), Zstd(), LZ4()):
        if data:
            assert bytes(decompress(codec, codec.encode(data), len(data))) == data
    assert decompress(GZip(), gzip.compress(data), len(data)) == data
    assert decompress(Zlib(), zlib.compress(data), len(data)) == data
    assert decompress(BZ2(), bz2.compress(data), len(data)) == data
    assert decompress(LZMA(), lzma.compress(data), len(data)) == data


def test_packbits() -> None:
    """This is the example of Apple's note."""
    packed = bytes.fromhex("FE AA 02 80 00 2A FD AA 03 80 00 2A 22 F7 AA")
    found = bytes.fromhex("AA AA AA 80 00 2A AA AA AA AA 80 00 2A 22 AA AA AA AA AA AA AA AA AA AA")
    assert unpack_bits(packed, len(found)) == found
    with pytest.raises(TooLargeError):
        unpack_bits(packed, len(found) - 1)


def test_lzf() -> None:
    """The input has literal bytes, a reference back to them, and a long repetition of one byte."""
    packed = b"\x02abc" + bytes([(1 << 5) | 0, 2]) + bytes([(7 << 5) | 0, 40, 0])
    found = b"abcabc" + b"c" * 49
    assert unpack_lzf(packed, len(found)) == found
    with pytest.raises(TooLargeError):
        unpack_lzf(packed, len(found) - 1)
    with pytest.raises(ValueError, match="before the first"):
        unpack_lzf(b"\x00a" + bytes([1 << 5, 9]), 100)


# -- chunks of Zarr ---------------------------------------------------------------------------------------------


def replaced(folder: Path, packed: bytes) -> Path:
    """Make a volume with its only chunk replaced."""
    chunk = next(file for file in folder.rglob("*") if file.is_file() and file.name == "0")
    chunk.write_bytes(packed)
    return folder


def refusal(folder: Path, most: int = 2**22) -> str:
    volume = open_volume(folder)
    with little_memory(most), pytest.raises(BlockError) as caught:
        volume.read(volume.spec.box)
    return str(caught.value)


def save(path: Path, *, version: Literal[2, 3], data: NDArray[Any] | None = None, **how: Any) -> Path:
    keys: Any = {"name": "v2", "separator": "/"} if version == 2 else {"name": "default", "separator": "/"}
    data = voxels() if data is None else data
    array = zarr.create_array(
        str(path), shape=data.shape, dtype=data.dtype, zarr_format=version, chunk_key_encoding=keys, **({"chunks": SHAPE} | how)
    )
    array[...] = data
    return path


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("version", [2, 3])
@UNNAMED
def test_a_chunk_that_decompresses_to_more_than_it_declares(tmp_path: Path, name: str, version: Literal[2, 3]) -> None:
    codec = CODECS[name] if version == 2 else V3[name]() if isinstance(V3[name], type) else V3[name]
    folder = save(tmp_path / "v.zarr", version=version, compressors=[codec])
    volume = open_volume(folder)
    np.testing.assert_array_equal(volume.read(volume.spec.box), voxels())
    said = refusal(replaced(folder, PACKED[name]))
    assert f"the chunk {'0/0/0' if version == 2 else 'c/0/0/0'}: it should have 65536 bytes, but decompresses to" in said
    assert said.endswith("restore them")


def test_a_chunk_inside_a_shard(tmp_path: Path) -> None:
    shape = (4, 64, 64)
    folder = save(tmp_path / "v.zarr", version=3, shards=SHAPE, chunks=shape, compressors=[GzipCodec(), Crc32cCodec()])
    volume = open_volume(folder)
    np.testing.assert_array_equal(volume.read(volume.spec.box), voxels())
    packed = with_checksum(PACKED["gzip"])
    (folder / "c/0/0/0").write_bytes(packed + with_checksum(np.array([[0, len(packed)]] * 4, "<u8").tobytes()))
    assert "the chunk c/0/0/0: it should have 16384 bytes, but decompresses to more than that" in refusal(folder)


def with_checksum(document: bytes) -> bytes:
    return document + int(google_crc32c.value(document)).to_bytes(4, "little")


@UNNAMED
def test_one_compressor_after_another(tmp_path: Path) -> None:
    """Noise, which the second compressor only makes longer."""
    noise = np.random.default_rng(0).integers(0, 256, SHAPE, "u1")
    for codecs in ([ZstdCodec(), GzipCodec()], [BloscCodec(), extra.BZ2(), extra.LZ4()]):
        folder = save(tmp_path / f"3{len(codecs)}", version=3, data=noise, compressors=codecs)
        np.testing.assert_array_equal(open_volume(folder).read(open_volume(folder).spec.box), noise)
    assert "the chunk c/0/0/0: it should have" in refusal(replaced(tmp_path / "32", PACKED["gzip"]))
    folder = save(tmp_path / "2", version=2, data=noise, filters=[Zlib(), Zstd()], compressors=[GZip()])
    np.testing.assert_array_equal(open_volume(folder).read(open_volume(folder).spec.box), noise)
    packed = GZip().encode(Zstd().encode(PACKED["zlib"]))
    assert "the chunk 0/0/0: it should have" in refusal(replaced(folder, packed), 2**23)


def test_filters_that_make_voxels_wider(tmp_path: Path) -> None:
    filters = [numcodecs.FixedScaleOffset(0, 1, dtype="u1", astype="f8"), numcodecs.Delta("f8")]
    folder = save(tmp_path / "v", version=2, filters=filters, compressors=[Zlib()])
    np.testing.assert_array_equal(open_volume(folder).read(open_volume(folder).spec.box), voxels())
    assert "the chunk 0/0/0: it should have" in refusal(replaced(folder, PACKED["zlib"]), 2**23)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"id": "astype", "encode_dtype": "u1", "decode_dtype": "S100000"}, "the type '|S100000', which is not for numbers"),
        ({"id": "categorize", "labels": ["a"], "dtype": "O"}, "the codec 'categorize' is not for numbers"),
    ],
)
def test_filters_that_are_not_for_numbers(tmp_path: Path, other: dict[str, str], said: str) -> None:
    folder = save(tmp_path / "v", version=2, filters=[numcodecs.AsType("u1", "u1")], compressors=[Zlib()])
    metadata = folder / ".zarray"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"filters": [other]}))
    assert said in refusal(folder)


def test_a_truncated_blosc_chunk_is_not_read_beyond_its_end(tmp_path: Path) -> None:
    folder = save(tmp_path / "v", version=3, compressors=[BloscCodec()])
    whole = (folder / "c/0/0/0").read_bytes()
    assert f"a Blosc chunk has {len(whole) - 9} bytes, but its header says {len(whole)}" in refusal(
        replaced(folder, whole[:-9])
    )
