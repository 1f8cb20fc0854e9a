"""Follow the pages of a TIFF file, a chain of directories that each contain the offset of the next."""

from __future__ import annotations

from pathlib import Path
from struct import unpack

from emseg_core.store.zarrs.nodes import TIFF_MAGIC


def chain_length(path: Path) -> int:
    """Count the pages of a TIFF file by following the chain to its end.

    tifffile accepts the readable part of a broken chain as the whole, may mistake voxels for a directory, and follows some
    circular chains forever. The length must therefore be known before tifffile opens the file.

    Parameters
    ----------
    path
        Path of the file.

    Returns
    -------
    int
        Number of pages.

    Raises
    ------
    ValueError
        If the file is not TIFF, or the chain leads out of the file or back into itself.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        if magic not in TIFF_MAGIC:
            raise ValueError(f"it starts with {magic!r}, unlike any TIFF file")
        order = "<" if magic.startswith(b"II") else ">"
        big = b"+" in magic
        count_form, count_size, entry_size = ("Q", 8, 20) if big else ("H", 2, 12)
        offset_form, offset_size = ("Q", 8) if big else ("I", 4)
        seen = set[int]()
        file.seek(offset_size)  # in both formats the header is two offsets long, and ends with that of the first page
        while True:
            following = file.read(offset_size)
            if len(following) < offset_size:
                raise ValueError(f"the chain of pages breaks off after {max(len(seen) - 1, 0)} pages")
            offset = unpack(order + offset_form, following)[0]
            if not offset:
                return len(seen)
            if offset in seen:
                raise ValueError(f"the chain of pages comes back after {len(seen)} pages")
            seen.add(offset)
            file.seek(offset)
            count = file.read(count_size)
            if len(count) == count_size:
                file.seek(offset + count_size + unpack(order + count_form, count)[0] * entry_size)
