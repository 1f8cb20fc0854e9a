"""Files that are read whole, as they are small: descriptions, settings, metadata. What is larger is no such thing."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

MOST_BYTES = 2**20
"""Most bytes of a document."""


def read_document(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file of no more than `most`.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is larger, or no file, such as a device, which has no end.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path.name} is no file")
    with path.open("rb") as file:
        document = file.read(most + 1)
    if len(document) > most:
        raise ValueError(f"{path.name} has more than {most} bytes")
    return document
