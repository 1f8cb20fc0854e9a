"""Limit the decompression of TIFF strips and tiles to the pixels that one of them holds.

Without imagecodecs, tifffile passes that size to its own decoders, which ignore it. Those of imagecodecs respect it.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, cast

from tifffile import TIFF, TiffFrame, TiffPage

from emseg_core.errors import VolumeError
from emseg_core.store.files.decompress import inflate, unlzma, unpack_bits

DECODERS: dict[int, Callable[[bytes, int], bytes]] = {34925: unlzma, 32773: unpack_bits}
DECODERS |= dict.fromkeys((8, 32946, 50013), inflate)
"""Decoders by the value of the tag Compression."""
STRIP_OVERHEAD_BYTES = 2**16
"""Most bytes that compression may add to a strip, besides an eighth of it."""

_lock = Lock()


def limit_decoder(page: TiffPage | TiffFrame) -> None:
    """Make tifffile's own decoders stop at the size of a strip or tile of a page.

    A strip at the end may be as long as the others: some writers pad it.

    Parameters
    ----------
    page
        A page of an open file.

    Raises
    ------
    VolumeError
        If a compressed strip or tile is longer than its pixels allow.
    """
    first: Any = page.keyframe
    if first.compression == 1 or first.dtype is None:
        return
    strip = min(first.rowsperstrip, first.imagelength), first.imagewidth
    rows, width = (first.tilelength, first.tilewidth) if first.is_tiled else strip
    most = rows * width * first.dtype.itemsize
    if (longest := max(page.databytecounts)) > most + most // 8 + STRIP_OVERHEAD_BYTES:
        raise VolumeError(
            f"page {page.index} of {page.parent.filehandle.path} has a strip or tile of {longest} bytes, but {most} bytes when "
            f"decompressed: copy the file again"
        )
    if first.compression in DECODERS and TIFF.DECOMPRESSORS[first.compression].__module__ == "tifffile._imagecodecs":
        codecs, decode = cast("Any", TIFF.DECOMPRESSORS)._codecs, DECODERS[first.compression]
        with _lock:  # tifffile looks up the decoder once for all similar pages, and caches the result
            usual = codecs[first.compression]
            codecs[first.compression] = lambda data, /, **_: decode(data, most)
            try:
                _ = first.decode
            finally:
                codecs[first.compression] = usual
