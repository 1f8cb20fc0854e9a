"""Read small files whole, such as descriptions, settings and metadata, up to a size limit."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

MAX_DOCUMENT_BYTES = 2**20
"""Largest size of a document, in bytes."""


def read_document(path: Path, most: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Read a small file whole.

    Parameters
    ----------
    path
        The file.
    most
        Largest size in bytes.

    Returns
    -------
    bytes
        Content of the file.

    Raises
    ------
    OSError
        If the file cannot be read, or is a folder.
    ValueError
        If it is larger than `most`, or not a regular file, such as a device, which has no end.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    with path.open("rb") as file:
        document = file.read(most + 1)
    if len(document) > most:
        raise ValueError(f"{path.name} has more than {most} bytes")
    return document
