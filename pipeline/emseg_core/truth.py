"""Ground truth as classes, from what annotators store: instance ids, or values that stand for classes. Uses NumPy only.

Dense instance ids have no label for membrane, since neighbouring cells touch. Membrane is where they touch::

    ids     1 1 1 1 2 2 2 2        truth   . . . M M . . .        M membrane, . inside

so that a membrane is two voxels wide, one on each side of the face.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Triple
from emseg_core.errors import InputError

INSIDE, MEMBRANE, IGNORE = 0, 1, 255
BACKGROUND = "background"
"""Name of the values that stand for none of the classes that do not exclude one another."""
CLASSES = ("inside", "membrane")
"""Names of the classes, in the order of their values."""
BORDERS = ("membrane", "boundary")
"""Names of a class that separates segments; if a network has several, the first of these is used."""


def membrane_truth(ids: NDArray[Any], *, planar: bool = False) -> NDArray[np.uint8]:
    """Derive classes from instance ids.

    A voxel is membrane if a neighbour that shares a face with it has another id. The id 0 means *not labelled*: such
    voxels are ignored, and they do not turn their neighbours into membrane, since it is unknown which cell they belong to.
    The faces of the volume are not membrane either.

    Parameters
    ----------
    ids
        Instance ids, ``(z, y, x)`` of any integer type.
    planar
        Compare only with the four neighbours in the plane, instead of all six. Meant for stacks of thick sections, where the
        next slice is too far away to be informative.

    Returns
    -------
    ndarray
        Class of each voxel, ``(z, y, x) uint8``: 0 inside, 1 membrane, 255 ignore.

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
    """Check that every value stands for exactly one class.

    Parameters
    ----------
    meaning
        Values that stand for each class, by the name of the class.
    classes
        Names of the classes.
    ignore
        Values of voxels to ignore.

    Raises
    ------
    InputError
        If a name is not one of the classes, or a value was given twice.
    """
    for name in meaning:
        if name not in classes:
            raise InputError(f"there is no class {name!r}: the classes are {', '.join(classes)}")
    owners: dict[int, str] = dict.fromkeys(ignore, "ignored voxels")
    for name, values in meaning.items():
        for value in values:
            if value in owners:
                raise InputError(f"the value {value} stands for {owners[value]} and for {name}: remove one of the two")
            owners[value] = name


def ends_of_edges(offset: Triple, shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Find the voxels of an array that edges start from and lead to.

    Parameters
    ----------
    offset
        Offset (z, y, x) in voxels, of any sign.
    shape
        Shape (z, y, x) of the array, in voxels.

    Returns
    -------
    source, target : tuple of slice
        Where edges start, and where they end, in the same order; empty if the offset is longer than the array.

    Examples
    --------
    >>> ends_of_edges((0, -1, 2), (1, 4, 4))
    ((slice(0, 1, None), slice(1, 4, None), slice(0, 2, None)), (slice(0, 1, None), slice(0, 3, None), slice(2, 4, None)))
    """
    pairs = list(zip(offset, shape, strict=True))
    source = tuple(slice(max(0, -step), max(0, length - max(0, step))) for step, length in pairs)
    target = tuple(slice(max(0, step), max(0, length + min(0, step))) for step, length in pairs)
    return source, target


def class_truth(
    values: NDArray[Any], meaning: Mapping[str, tuple[int, ...]], classes: tuple[str, ...], ignore: tuple[int, ...] = ()
) -> NDArray[np.uint8]:
    """Derive classes from stored values.

    Parameters
    ----------
    values
        Values that the annotators stored, ``(z, y, x)`` of any integer type.
    meaning
        Values that stand for each class, by the name of the class. A class may be left out.
    classes
        Names of the classes, in the order of their values.
    ignore
        Values of voxels to ignore.

    Returns
    -------
    ndarray
        Class of each voxel, ``(z, y, x) uint8``: its position in `classes`, or 255 ignore.

    Raises
    ------
    InputError
        If a voxel has a value without a meaning, a name is not one of the classes, or a value was given twice.

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
        count = np.count_nonzero(odd == value)
        raise InputError(
            f"{count} voxel{' has' if count == 1 else 's have'} the value {value}, which stands for none of "
            f"{', '.join(classes)}: name its class, or ignore it"
        )
    return truth


def between(truth: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Return where the truth is known and is not membrane: the inside of cells.

    Parameters
    ----------
    truth
        Class of each voxel, of any shape.

    Returns
    -------
    ndarray
        Mask of the same shape, ``bool``.
    """
    inside: NDArray[np.bool_] = (truth != MEMBRANE) & (truth != IGNORE)
    return inside


def whole_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Return stored truth as integers.

    Parameters
    ----------
    values
        Stored truth, of any shape and numeric type.

    Returns
    -------
    ndarray
        The same array if it has an integer type, otherwise a copy in ``int64``.

    Raises
    ------
    InputError
        If a value is not a whole number.
    """
    if values.dtype.kind != "f":
        return values
    whole = np.isfinite(values) & (values == np.floor(values))
    if not whole.all():
        odd = float(values[~whole].flat[0])
        raise InputError(
            f"the truth holds the value {odd:g}, but classes and ids are whole numbers: give labels, not grey values"
        )
    return values.astype(np.int64)


def _neighbours(array: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return two views that hold, at the same index, the two voxels on either side of a face."""
    along = np.moveaxis(array, axis, 0)
    return along[:-1], along[1:]
