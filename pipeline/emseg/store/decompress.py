"""Decompressing what lies in files, no further than to the bytes that it is said to have.

A few bytes can decompress to as many as memory holds, and most libraries go on until there is none left. Here formats that
say in their own header how long they are get that looked at first; of the others no more is decompressed than there may be.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

GZIP, ZLIB = 31, 15
"""What zlib calls its two formats."""
BLOSC_HEADER = 16
"""Bytes of the header of Blosc; the bytes before and after decompressing are numbers in it."""
LZ4_HEADER = 4
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LITERALS = 128
"""A byte of PackBits below it is one less than the number of bytes that follow it; this one stands for nothing."""


class TooLargeError(ValueError):
    """More comes out of compressed bytes than is said to."""

    def __init__(self, most: int, found: int | None = None) -> None:
        said = "more than that" if found is None else f"{found}"
        super().__init__(f"it should have {most} bytes, but decompresses to {said}")


class _Stream(Protocol):
    """What decompresses as much as it is asked for."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: Any, max_length: int = ..., /) -> bytes: ...


def decompress(codec: Any, data: Any, most: int) -> Any:
    """What a codec of numcodecs makes of bytes, if that is no more than `most`.

    Parameters
    ----------
    data
        Any contiguous buffer.

    Raises
    ------
    TooLargeError
        If it is more, before memory for it is taken.
    Exception
        What the codec raises, of almost any type, where the bytes are damaged.
    """
    match codec.codec_id:
        case "gzip":
            return _streamed(lambda: zlib.decompressobj(GZIP), data, most, several=True)
        case "zlib":
            return _streamed(lambda: zlib.decompressobj(ZLIB), data, most)
        case "bz2":
            return _streamed(bz2.BZ2Decompressor, data, most, several=True)
        case "lzma":
            return _streamed(lambda: lzma.LZMADecompressor(codec.format, filters=codec.filters), data, most, several=True)
        case "zstd":
            return _zstd(codec, data, most)
        case "blosc":
            _refuse_blosc(data, most)
        case "lz4":
            _refuse_beyond(most, int.from_bytes(_head(data, LZ4_HEADER), "little"))
    return codec.decode(data)


def inflate(data: Any, most: int) -> bytes:
    """What zlib has compressed, if that is no more than `most` bytes; raises as `decompress`."""
    return _streamed(lambda: zlib.decompressobj(ZLIB), data, most)


def unlzma(data: Any, most: int) -> bytes:
    """What LZMA has compressed, with a header, if that is no more than `most` bytes; raises as `decompress`."""
    return _streamed(lzma.LZMADecompressor, data, most, several=True)


def unpack_bits(data: bytes, most: int) -> bytes:
    """What PackBits has compressed, if that is no more than `most` bytes; raises as `decompress`."""
    found = bytearray()
    place = 0
    while place < len(data):
        count = data[place]
        if count < LITERALS:
            found += data[place + 1 : place + count + 2]
            place += count + 2
        elif count > LITERALS:
            found += data[place + 1 : place + 2] * (2 * LITERALS + 1 - count)
            place += 2
        else:
            place += 1
        if len(found) > most:
            raise TooLargeError(most)
    return bytes(found)


def unpack_lzf(data: bytes, most: int) -> bytes:
    """What LZF has compressed, the filter of h5py, if that is no more than `most` bytes; raises as `decompress`."""
    found = bytearray()
    place = 0
    while place < len(data):
        count = data[place]
        if count < 32:  # so many bytes, and one, as they are
            found += data[place + 1 : place + count + 2]
            place += count + 2
        else:  # bytes that were there before
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
            else:  # it repeats itself
                found += (bytes(found[start:]) * (length // back + 1))[:length]
        if len(found) > most:
            raise TooLargeError(most)
    return bytes(found)


def _streamed(make: Callable[[], Any], data: Any, most: int, *, several: bool = False) -> bytes:
    """What a stream holds, or `several` one after another."""
    stream: _Stream = make()
    found = stream.decompress(data, most + 1)
    while len(found) <= most and stream.eof and several and (rest := stream.unused_data.lstrip(b"\0")):
        stream = make()
        found += stream.decompress(rest, most + 1 - len(found))
    if len(found) > most:
        raise TooLargeError(most)
    if not stream.eof:
        raise EOFError("the compressed bytes break off")
    return found


def _zstd(codec: Any, data: Any, most: int) -> Any:
    """Into memory that is there, numcodecs decompresses no more than that has room for, be it one frame or several."""
    said = zstd_length(_head(data, 18))
    if said is not None:
        _refuse_beyond(most, said)
    room = np.empty(most, "u1")
    try:
        codec.decode(data, room)
    except (ValueError, RuntimeError) as error:
        if "too small" in str(error):
            raise TooLargeError(most) from error
        if "expected to decompress" not in str(error):
            raise
        said = -1
    # what is less than there is room for has no end in it
    return room if said in (None, most) else codec.decode(data)


def zstd_length(head: bytes) -> int | None:
    """Bytes that the first frame of Zstandard says to hold, by its first 18 bytes; None if it does not say so.

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
    """Blosc trusts its header, and of a chunk that is cut short it reads on, into whatever lies behind in memory."""
    head, length = _head(data, BLOSC_HEADER), memoryview(data).nbytes
    stored = int.from_bytes(head[12:16], "little")
    if length < BLOSC_HEADER or stored != length:
        raise ValueError(f"a Blosc chunk of {length} bytes says that it has {stored}")
    _refuse_beyond(most, int.from_bytes(head[4:8], "little"))


def _refuse_beyond(most: int, said: int) -> None:
    if said > most:
        raise TooLargeError(most, said)


def _head(data: Any, count: int) -> bytes:
    """The first bytes of a buffer."""
    return bytes(memoryview(data).cast("B")[:count])
