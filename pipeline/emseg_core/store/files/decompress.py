"""Decompress the content of files, but no further than to the number of bytes that it should have.

A few bytes can decompress to more than memory holds, and most libraries continue until none is left. Here the header is
checked first for formats that store the decompressed length; the others are decompressed only up to the limit.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

GZIP_WBITS, ZLIB_WBITS = 31, 15
"""Values of zlib's ``wbits`` for its two formats."""
BLOSC_HEADER_BYTES = 16
"""The header of Blosc contains the compressed and the decompressed length."""
LZ4_HEADER_BYTES = 4
ZSTD_HEADER_BYTES = 18
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
PACKBITS_NO_OP = 128
"""In PackBits a header byte below this value is one less than the number of literal bytes that follow; the value itself means
nothing."""


class TooLargeError(ValueError):
    """Compressed bytes decompress to more than they should."""

    def __init__(self, most: int, found: int | None = None) -> None:
        actual = "more than that" if found is None else f"{found}"
        super().__init__(f"it should have {most} bytes, but decompresses to {actual}")


def decompress(codec: Any, data: Any, most: int) -> Any:
    """Decompress a buffer with a codec of numcodecs, to at most `most` bytes.

    Parameters
    ----------
    data
        Any contiguous buffer.
    most
        Most bytes that it may decompress to.

    Returns
    -------
    buffer
        What the codec decodes to.

    Raises
    ------
    TooLargeError
        If it decompresses to more; this is noticed before memory for it is allocated.
    Exception
        What the codec raises, of almost any type, where the bytes are damaged.
    """
    match codec.codec_id:
        case "gzip":
            return _streamed(lambda: zlib.decompressobj(GZIP_WBITS), data, most, several=True)
        case "zlib":
            return _streamed(lambda: zlib.decompressobj(ZLIB_WBITS), data, most)
        case "bz2":
            return _streamed(bz2.BZ2Decompressor, data, most, several=True)
        case "lzma":
            return _streamed(lambda: lzma.LZMADecompressor(codec.format, filters=codec.filters), data, most, several=True)
        case "zstd":
            return _zstd(codec, data, most)
        case "blosc":
            _refuse_blosc(data, most)
        case "lz4":
            _refuse_beyond(most, int.from_bytes(_head(data, LZ4_HEADER_BYTES), "little"))
    return codec.decode(data)


def inflate(data: Any, most: int) -> bytes:
    """Decompress zlib data to at most `most` bytes; raises like `decompress`.

    Parameters
    ----------
    data
        Compressed bytes.
    most
        Bound of the result, in bytes.

    Returns
    -------
    bytes
        The decompressed data.
    """
    return _streamed(lambda: zlib.decompressobj(ZLIB_WBITS), data, most)


def unlzma(data: Any, most: int) -> bytes:
    """Decompress LZMA data that has a header to at most `most` bytes; raises like `decompress`.

    Parameters
    ----------
    data
        Compressed bytes.
    most
        Bound of the result, in bytes.

    Returns
    -------
    bytes
        The decompressed data.
    """
    return _streamed(lzma.LZMADecompressor, data, most, several=True)


def unpack_bits(data: bytes, most: int) -> bytes:
    """Decompress PackBits data to at most `most` bytes; raises like `decompress`.

    Parameters
    ----------
    data
        Compressed bytes.
    most
        Bound of the result, in bytes.

    Returns
    -------
    bytes
        The decompressed data.
    """
    found = bytearray()
    place = 0
    while place < len(data):
        count = data[place]
        if count < PACKBITS_NO_OP:
            found += data[place + 1 : place + count + 2]
            place += count + 2
        elif count > PACKBITS_NO_OP:
            found += data[place + 1 : place + 2] * (2 * PACKBITS_NO_OP + 1 - count)
            place += 2
        else:
            place += 1
        if len(found) > most:
            raise TooLargeError(most)
    return bytes(found)


def unpack_lzf(data: bytes, most: int) -> bytes:
    """Decompress data of LZF, the filter of h5py, to at most `most` bytes; raises like `decompress`.

    Parameters
    ----------
    data
        Compressed bytes.
    most
        Bound of the result, in bytes.

    Returns
    -------
    bytes
        The decompressed data.
    """
    found = bytearray()
    place = 0
    while place < len(data):
        count = data[place]
        if count < 32:  # count + 1 literal bytes
            found += data[place + 1 : place + count + 2]
            place += count + 2
        else:  # a reference to bytes decompressed before
            length = count >> 5
            if length == 7:
                place += 1
                length += data[place]
            back = ((count & 31) << 8) + data[place + 1] + 1
            place += 2
            start = len(found) - back
            if start < 0:
                raise ValueError("LZF refers to bytes before the first one")
            length += 2
            if back >= length:
                found += found[start : start + length]
            else:  # source and destination overlap: the bytes repeat
                found += (bytes(found[start:]) * (length // back + 1))[:length]
        if len(found) > most:
            raise TooLargeError(most)
    return bytes(found)


def _streamed(make: Callable[[], Any], data: Any, most: int, *, several: bool = False) -> bytes:
    """Decompress a stream, or `several` one after another."""
    stream = make()
    found: bytes = stream.decompress(data, most + 1)
    while len(found) <= most and stream.eof and several and (rest := stream.unused_data.lstrip(b"\0")):
        stream = make()
        found += stream.decompress(rest, most + 1 - len(found))
    if len(found) > most:
        raise TooLargeError(most)
    if not stream.eof:
        raise EOFError("the compressed data are truncated")
    return found


def _zstd(codec: Any, data: Any, most: int) -> Any:
    """Decompress one or several frames of Zstandard.

    If an array is given, numcodecs decompresses no more than fits into it.
    """
    declared = zstd_length(_head(data, ZSTD_HEADER_BYTES))
    if declared is not None:
        _refuse_beyond(most, declared)
    room = np.empty(most, "u1")
    try:
        codec.decode(data, room)
    except (ValueError, RuntimeError) as error:
        if "too small" in str(error):
            raise TooLargeError(most) from error
        if "expected to decompress" not in str(error):
            raise
        declared = -1
    # if the data are shorter than the array, nothing tells where they end: decode again
    return room if declared in (None, most) else codec.decode(data)


def zstd_length(head: bytes) -> int | None:
    """Return the decompressed length that the first frame of Zstandard declares; None if it declares none.

    Parameters
    ----------
    head
        The first 18 bytes of the frame, or fewer if there are no more.

    Returns
    -------
    int or None
        Bytes.

    Notes
    -----
    https://datatracker.ietf.org/doc/html/rfc8878#name-frame-header
    """
    if len(head) < 6 or not head.startswith(ZSTD_MAGIC):
        return None
    flags = head[4]
    single = flags >> 5 & 1
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    length = (single, 2, 4, 8)[flags >> 6]
    return int.from_bytes(head[start : start + length], "little") + 256 * (length == 2) if length else None


def _refuse_blosc(data: Any, most: int) -> None:
    """Check the header of Blosc, which trusts it: in a truncated chunk it would read memory beyond the end."""
    head, length = _head(data, BLOSC_HEADER_BYTES), memoryview(data).nbytes
    stored = int.from_bytes(head[12:16], "little")
    if length < BLOSC_HEADER_BYTES or stored != length:
        raise ValueError(f"a Blosc chunk has {length} bytes, but its header says {stored}")
    _refuse_beyond(most, int.from_bytes(head[4:8], "little"))


def _refuse_beyond(most: int, declared: int) -> None:
    """Raise `TooLargeError` if a declared length exceeds the limit."""
    if declared > most:
        raise TooLargeError(most, declared)


def _head(data: Any, count: int) -> bytes:
    """Return the first bytes of a buffer."""
    return bytes(memoryview(data).cast("B")[:count])
