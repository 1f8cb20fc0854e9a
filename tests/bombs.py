"""Small files that decompress to far more than they should. They expand to 16 MiB, which every machine can hold."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib

from numcodecs import LZ4, Blosc, Zstd

BLOATED = bytes(2**24)


def endless_zstd(length: int) -> bytes:
    """Return a Zstandard frame of many zeros that does not state its decompressed size."""
    frame, left = bytearray(b"\x28\xb5\x2f\xfd\x00\x50"), length
    while left:
        part = min(left, 2**17 - 1)
        left -= part
        frame += (part << 3 | 1 << 1 | (not left)).to_bytes(3, "little") + b"\0"
    return bytes(frame)


PACKED = {
    "gzip": gzip.compress(BLOATED, 1),
    "zlib": zlib.compress(BLOATED, 1),
    "bz2": bz2.compress(BLOATED),
    "lzma": lzma.compress(BLOATED, preset=0),
    "zstd": Zstd().encode(BLOATED),
    "zstd of no length": endless_zstd(len(BLOATED)),
    "blosc": Blosc().encode(BLOATED),
    "lz4": LZ4().encode(BLOATED),
}
"""Compressed bytes by compressor."""
