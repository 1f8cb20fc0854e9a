"""Membrane truth out of instance ids, NumPy only.

Dense ids have no label for membrane: neighbouring bodies touch. Membrane is where they do::

    ids     1 1 1 1 2 2 2 2        truth   . . . M M . . .        M membrane, . inside

so that a membrane is two voxels wide, one on each side of the face.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

INSIDE, MEMBRANE, IGNORE = 0, 1, 255
CLASSES = ("inside", "membrane")
"""Names of the classes in the order of their values."""


def membrane_truth(ids: NDArray[Any], *, planar: bool = False) -> NDArray[np.uint8]:
    """Class of each voxel, ``(z, y, x) uint8``: 0 inside, 1 membrane, 255 ignore.

    A voxel is membrane if a neighbour that shares a face with it has another id. The id 0 means *not labelled*: such
    voxels are ignored, and they do not make their neighbours membrane, since nobody knows whose they are.
    A face of the volume makes no membrane either.

    Parameters
    ----------
    ids
        Instance ids, ``(z, y, x)`` of any integer type.
    planar
        Look at the four neighbours in the plane only. For stacks of thick sections, where the next slice lies too far
        away to say anything about this voxel; without it, the six neighbours of isotropic volumes.

    Examples
    --------
    >>> membrane_truth(np.array([[[1, 1, 2, 2, 0, 3]]])).tolist()
    [[[0, 1, 1, 0, 255, 0]]]
    """
    truth = np.full(ids.shape, INSIDE, np.uint8)
    for axis in (1, 2) if planar else (0, 1, 2):
        lower, upper = _neighbours(ids, axis)
        border = (lower != upper) & (lower != 0) & (upper != 0)
        for side in _neighbours(truth, axis):
            side[border] = MEMBRANE
    truth[ids == 0] = IGNORE
    return truth


def _neighbours(array: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two views that hold, at the same place, the two voxels on either side of a face."""
    along = np.moveaxis(array, axis, 0)
    return along[:-1], along[1:]
