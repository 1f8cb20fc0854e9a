"""Truth as classes, out of what annotators store: instance ids, or values that stand for classes; NumPy only.

Dense ids have no label for membrane: neighbouring bodies touch. Membrane is where they do::

    ids     1 1 1 1 2 2 2 2        truth   . . . M M . . .        M membrane, . inside

so that a membrane is two voxels wide, one on each side of the face.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.errors import InputError

INSIDE, MEMBRANE, IGNORE = 0, 1, 255
CLASSES = ("inside", "membrane")
"""Names of the classes in the order of their values."""
BORDERS = ("membrane", "boundary")
"""Names of a class that parts segments; where a network has several, the first of these."""


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


def check_meaning(meaning: Mapping[str, tuple[int, ...]], classes: tuple[str, ...], ignore: tuple[int, ...] = ()) -> None:
    """Refuse values that stand for no class, or for two.

    Raises
    ------
    InputError
        If a name is none of the classes, or a value was given twice.
    """
    for name in meaning:
        if name not in classes:
            raise InputError(f"there is no class {name!r}: the classes are {', '.join(classes)}")
    owners: dict[int, str] = dict.fromkeys(ignore, "what is ignored")
    for name, values in meaning.items():
        for value in values:
            if value in owners:
                raise InputError(f"the value {value} stands for {owners[value]} and for {name}: leave out one of them")
            owners[value] = name


def class_truth(
    values: NDArray[Any], meaning: Mapping[str, tuple[int, ...]], classes: tuple[str, ...], ignore: tuple[int, ...] = ()
) -> NDArray[np.uint8]:
    """Class of each voxel, ``(z, y, x) uint8``: its place in `classes`, or 255 ignore.

    Parameters
    ----------
    values
        What the annotators stored, ``(z, y, x)`` of any integer type.
    meaning
        The values that stand for each class, by its name. A class may be left out.
    classes
        Names of the classes in the order of their values.
    ignore
        Values of voxels that do not count.

    Raises
    ------
    InputError
        If a voxel has a value that stands for nothing, a name is none of the classes, or a value was given twice.

    Examples
    --------
    >>> class_truth(np.array([[[0, 255, 7]]]), {"membrane": (0,), "inside": (255,)}, ("inside", "membrane"), (7,)).tolist()
    [[[1, 0, 255]]]
    """
    check_meaning(meaning, classes, ignore)
    truth = np.full(values.shape, IGNORE, np.uint8)
    known = np.isin(values, ignore)
    for label, name in enumerate(classes):
        members = np.isin(values, meaning.get(name, ()))
        truth[members] = label
        known |= members
    if not known.all():
        odd = values[~known]
        value = int(odd.flat[0])
        raise InputError(
            f"{np.count_nonzero(odd == value)} voxels have the value {value}, which stands for none of "
            f"{', '.join(classes)}: say for which it does, or that it is to be ignored"
        )
    return truth


def between(truth: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Where the truth, class by class, is known and is no membrane: what membranes part."""
    inside: NDArray[np.bool_] = (truth != MEMBRANE) & (truth != IGNORE)
    return inside


def whole_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Stored truth as whole numbers, if it is such.

    Raises
    ------
    InputError
        If it is not.
    """
    if values.dtype.kind != "f":
        return values
    whole = np.isfinite(values) & (values == np.floor(values))
    if not whole.all():
        odd = float(values[~whole].flat[0])
        raise InputError(f"there is the value {odd:g}, but classes and ids are whole numbers: give labels, not grey values")
    return values.astype(np.int64)


def _neighbours(array: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two views that hold, at the same place, the two voxels on either side of a face."""
    along = np.moveaxis(array, axis, 0)
    return along[:-1], along[1:]
