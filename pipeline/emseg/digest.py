"""A digest of voxels: the same however they are stored, another one where a single voxel differs."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGITS = 16
"""Of a digest: 64 bits, so that a change goes unnoticed once in 10^19 times."""


def voxel_digest(voxels: NDArray[Any]) -> str:
    """The first 64 bits of the SHA-256 of type, shape and values, as hexadecimal digits; which byte comes first is no matter.

    SHA-256, as processors have instructions for it.
    """
    plain = np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("<"))
    found = hashlib.sha256(f"{plain.dtype.name} {plain.shape} ".encode())
    found.update(plain.data)
    return found.hexdigest()[:DIGITS]
