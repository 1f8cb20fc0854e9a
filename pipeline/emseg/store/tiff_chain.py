"""The pages of a TIFF file are a chain of directories, each of which says where the next is."""

from __future__ import annotations

from struct import unpack

from tifffile import TiffFile


def chain_length(tif: TiffFile) -> int:
    """Number of pages in the chain, followed to its end.

    tifffile takes what it can read of a broken chain for the whole of it, and may take voxels for a directory.

    Raises
    ------
    ValueError
        If the chain leads out of the file or back into itself.
    """
    layout, file = tif.tiff, tif.filehandle
    offset, seen = tif.pages.first.offset, set[int]()
    while offset:
        if offset in seen:
            raise ValueError(f"the chain of pages comes back after {len(seen)} pages")
        seen.add(offset)
        file.seek(offset)
        count = file.read(layout.tagnosize)
        if len(count) == layout.tagnosize:
            file.seek(offset + layout.tagnosize + unpack(layout.tagnoformat, count)[0] * layout.tagsize)
        following = file.read(layout.offsetsize)
        if len(count) < layout.tagnosize or len(following) < layout.offsetsize:
            raise ValueError(f"the chain of pages breaks off after {len(seen) - 1} pages")
        offset = unpack(layout.offsetformat, following)[0]
    return len(seen)
