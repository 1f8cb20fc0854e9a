"""From predictions to stored values, and from tiles to a block."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from emseg_core.box import Box
from emseg_core.specs.heads import StoredImage

NOT_COMPUTED = 255
"""Value of voxels that no block has written. Labels and quantised probabilities never have it."""
QUANTA = 254
"""Steps of a stored probability: ``stored = round(QUANTA * p)``."""

Scalar = TypeVar("Scalar", bound=np.generic)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits into probabilities.

    Parameters
    ----------
    logits
        Logits, ``(class, z, y, x) float32``.

    Returns
    -------
    ndarray
        Probabilities, ``(class, z, y, x) float32``; they sum to 1 over the classes.
    """
    with np.errstate(over="ignore"):  # the difference of logits may overflow to -inf, which gives the correct 0
        raised = np.exp(logits - logits.max(axis=0))
    probabilities: NDArray[np.float32] = raised / raised.sum(axis=0)
    return probabilities


def classify(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the class with the largest logit, the first one in a tie.

    It works slice by slice, which stays in the processor's cache; NumPy's ``argmax`` over the first axis takes ten times as
    long.

    Parameters
    ----------
    logits
        Logits, ``(class, z, y, x) float32``.

    Returns
    -------
    ndarray
        Labels, ``(z, y, x) uint8``.
    """
    labels = np.zeros(logits.shape[1:], np.uint8)
    for found, by_class in zip(labels, logits.swapaxes(0, 1), strict=True):
        largest = by_class[0]
        for label in range(1, len(by_class)):
            np.maximum(found, (by_class[label] > largest) * np.uint8(label), out=found)
            if label + 1 < len(by_class):
                largest = np.maximum(largest, by_class[label])
    return labels


def finite(values: NDArray[np.float32]) -> bool:
    """Return whether all predicted values are finite. It works slice by slice, as `classify` does.

    Parameters
    ----------
    values
        ``(channel, z, y, x) float32``.

    Returns
    -------
    bool
        False if one of them is NaN or infinite.
    """
    return all(bool(np.isfinite(by_channel).all()) for by_channel in values.swapaxes(0, 1))


def quantise(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise probabilities for storage.

    Parameters
    ----------
    probabilities
        Probabilities of any shape, ``float32``.

    Returns
    -------
    ndarray
        Stored probabilities, ``uint8`` from 0 to `QUANTA`.

    Examples
    --------
    >>> quantise(np.array([0.0, 0.5, 1.0], np.float32))
    array([  0, 127, 254], dtype=uint8)
    """
    stored: NDArray[np.uint8] = np.rint(probabilities * np.float32(QUANTA)).astype(np.uint8)
    return stored


def stored_values(image: StoredImage, values: NDArray[np.float32]) -> NDArray[Any]:
    """Turn predicted values of a head into voxels of an image.

    Parameters
    ----------
    image
        The image.
    values
        Prediction of its head, ``(channel, z, y, x) float32``: logits of classes that exclude one another, probabilities of
        independent classes and affinities, or values.

    Returns
    -------
    ndarray
        Voxels, ``(z, y, x)`` or ``(channel, z, y, x)`` in the type of the image. Values outside its scale are clipped.

    Raises
    ------
    ValueError
        If a probability is not between 0 and 1, or a value is too large for the image's type.
    """
    head = image.head
    if head.kind == "classes":
        return classify(values) if image.content == "labels" else quantise(softmax(values))
    if head.kind != "values":
        if values.size and not 0 <= float(values.min()) <= float(values.max()) <= 1:
            raise ValueError(
                f"the head {head.name!r} is said to give probabilities, but gives {values.min():.4g} to {values.max():.4g}"
            )
        if image.content == "probabilities":
            return quantise(values)
        number = head.channels.index(image.name)
        belongs: NDArray[np.uint8] = (values[number] >= np.float32(head.thresholds[number])).astype(np.uint8)
        return belongs
    if head.scale is None:
        with np.errstate(over="ignore"):
            halves: NDArray[np.float16] = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise ValueError(f"the head {head.name!r} gives {np.abs(values).max():.4g}, too large for float16: state a scale")
        return halves
    low, high = map(np.float32, head.scale)
    return quantise((np.clip(values, low, high) - low) / (high - low))


class Canvas(Generic[Scalar]):
    """A block that is assembled from the targets of its tiles. Every voxel must be painted exactly once.

    Parameters
    ----------
    box
        The block, in the volume's coordinates.
    dtype
        Type of the values.
    channels
        Number of channels; None for values ``(z, y, x)``.
    """

    def __init__(self, box: Box, dtype: DTypeLike, channels: int | None = None) -> None:
        self.box = box
        shape = box.shape if channels is None else (channels, *box.shape)
        self._values: NDArray[Scalar] = np.empty(shape, dtype)
        self._painted = np.zeros(box.shape, bool)

    def paste(self, target: Box, values: NDArray[Scalar]) -> None:
        """Paint a target.

        Parameters
        ----------
        target
            A box inside the block, in the volume's coordinates.
        values
            Its values, ``(z, y, x)`` or ``(channel, z, y, x)``.

        Raises
        ------
        ValueError
            If a voxel was painted before, or `target` is not inside the block.
        """
        if not self.box.contains(target):
            raise ValueError(f"the target {target} is not inside the block {self.box}")
        where = target.relative_to(self.box.start).slices()
        if self._painted[where].any():
            raise ValueError(f"a voxel of {target} was painted twice")
        self._painted[where] = True
        self._values[(..., *where)] = values

    def finish(self) -> NDArray[Scalar]:
        """Return the whole block.

        Returns
        -------
        ndarray
            Values, ``(z, y, x)`` or ``(channel, z, y, x)``.

        Raises
        ------
        ValueError
            If a voxel was never painted.
        """
        if not self._painted.all():
            raise ValueError(f"voxels of the block {self.box} were never painted: {np.count_nonzero(~self._painted)}")
        return self._values
