"""Strips and tiles of TIFF that are decompressed no further than to the pixels that one of them holds.

Without imagecodecs, tifffile tells its decoders how much that is, and they do not listen. Those of imagecodecs do.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, cast

from tifffile import TIFF, TiffFrame, TiffPage

from emseg.errors import VolumeError
from emseg.store.decompress import inflate, unlzma, unpack_bits

DECODERS: dict[int, Callable[[bytes, int], bytes]] = {
    8: inflate,
    32946: inflate,
    50013: inflate,
    34925: unlzma,
    32773: unpack_bits,
}
"""By the value of the tag Compression."""
ROOM = 2**16
"""What compressing in vain may add to a strip beside an eighth of it."""

_lock = Lock()


def bound_decoder(page: TiffPage | TiffFrame) -> None:
    """Makes tifffile decompress the strips or tiles of a page no further than that, if it does so by itself.

    A strip at the end may be as long as the others: some writers fill it up.

    Raises
    ------
    VolumeError
        If a strip or tile is longer than it can be.
    """
    first: Any = page.keyframe
    if first.compression == 1 or first.dtype is None:
        return
    rows, width = (
        (first.tilelength, first.tilewidth)
        if first.is_tiled
        else (min(first.rowsperstrip, first.imagelength), first.imagewidth)
    )
    most = rows * width * first.dtype.itemsize
    if (longest := max(page.databytecounts)) > most + most // 8 + ROOM:
        raise VolumeError(
            f"page {page.index} of {page.parent.filehandle.path} has a strip or tile of {longest} bytes, but decompressed it "
            f"should have {most}: copy the file again"
        )
    if first.compression in DECODERS and TIFF.DECOMPRESSORS[first.compression].__module__ == "tifffile._imagecodecs":
        codecs, decode = cast("Any", TIFF.DECOMPRESSORS)._codecs, DECODERS[first.compression]
        with _lock:  # tifffile asks for a decoder once for all pages that are alike, and keeps what it makes of that
            usual = codecs[first.compression]
            codecs[first.compression] = lambda data, /, **_: decode(data, most)
            try:
                _ = first.decode
            finally:
                codecs[first.compression] = usual
