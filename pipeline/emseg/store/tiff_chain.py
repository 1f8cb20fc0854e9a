"""The pages of a TIFF file are a chain of directories, each of which says where the next is."""

from __future__ import annotations

from pathlib import Path
from struct import unpack

from emseg.store.nodes import TIFF_MAGIC


def chain_length(path: Path) -> int:
    """Number of pages in the chain, followed to its end.

    tifffile takes what it can read of a broken chain for the whole of it, may take voxels for a directory, and follows
    some chains that come back for ever, so this has to be known before tifffile opens the file.

    Raises
    ------
    ValueError
        If the file is no TIFF, or the chain leads out of it or back into itself.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        if magic not in TIFF_MAGIC:
            raise ValueError(f"it starts with {magic!r}, as no TIFF does")
        order = "<" if magic.startswith(b"II") else ">"
        big = b"+" in magic
        count_form, count_size, entry_size = ("Q", 8, 20) if big else ("H", 2, 12)
        offset_form, offset_size = ("Q", 8) if big else ("I", 4)
        seen = set[int]()
        file.seek(offset_size)  # in either format, the header has the first offset at its end, and is two offsets long
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
