"""A checksum of voxels that depends on their values and type, but not on how they are stored."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGEST_LENGTH = 16
"""Hexadecimal digits of a digest: 64 bits, so that a change is missed once in 10^19 times."""


def voxel_digest(voxels: NDArray[Any]) -> str:
    """Return a checksum of voxels: the first 64 bits of the SHA-256 of their type, shape and values.

    The byte order of the array does not matter. SHA-256 is fast because processors have instructions for it.

    Parameters
    ----------
    voxels
        Array of any shape and numeric type.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    plain = np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("<"))
    found = hashlib.sha256(f"{plain.dtype.name} {plain.shape} ".encode())
    found.update(plain.data)
    return found.hexdigest()[:DIGEST_LENGTH]
