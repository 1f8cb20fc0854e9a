"""From logits to stored numbers, and from tiles to a block."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from emseg.box import Box

NOT_COMPUTED = 255
"""Stored where no block has been written: no label and no quantised probability ever has this value."""
QUANTA = 254
"""Steps of a stored probability: ``stored = round(QUANTA * p)``."""

Scalar = TypeVar("Scalar", bound=np.generic)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities ``(class, z, y, x) float32`` of logits of that shape; they sum to 1 over the classes."""
    with np.errstate(over="ignore"):  # logits may lie further apart than the largest float32: -inf, so 0
        raised = np.exp(logits - logits.max(axis=0))
    probabilities: NDArray[np.float32] = raised / raised.sum(axis=0)
    return probabilities


def classify(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Label ``(z, y, x) uint8`` of the largest of the logits ``(class, z, y, x)``; the first one if they tie.

    Slice by slice, which stays in the processor's cache; NumPy's ``argmax`` over the first axis takes ten times as long.
    """
    labels = np.zeros(logits.shape[1:], np.uint8)
    for found, by_class in zip(labels, logits.swapaxes(0, 1), strict=True):
        largest = by_class[0]
        for label in range(1, len(by_class)):
            np.maximum(found, (by_class[label] > largest) * np.uint8(label), out=found)
            if label + 1 < len(by_class):
                largest = np.maximum(largest, by_class[label])
    return labels


def finite(logits: NDArray[np.float32]) -> bool:
    """Whether no logit ``(class, z, y, x)`` is NaN or infinite; looked at slice by slice, as in `classify`."""
    return all(bool(np.isfinite(by_class).all()) for by_class in logits.swapaxes(0, 1))


def quantise(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Probabilities as they are stored, ``uint8`` from 0 to `QUANTA`.

    Examples
    --------
    >>> quantise(np.array([0.0, 0.5, 1.0], np.float32))
    array([  0, 127, 254], dtype=uint8)
    """
    stored: NDArray[np.uint8] = np.rint(probabilities * np.float32(QUANTA)).astype(np.uint8)
    return stored


class Canvas(Generic[Scalar]):
    """A block being put together from the targets of its tiles; each voxel must be painted exactly once."""

    def __init__(self, box: Box, dtype: DTypeLike, channels: int | None = None) -> None:
        self.box = box
        shape = box.shape if channels is None else (channels, *box.shape)
        self._values: NDArray[Scalar] = np.empty(shape, dtype)
        self._painted = np.zeros(box.shape, bool)

    def paste(self, target: Box, values: NDArray[Scalar]) -> None:
        """Paint `target`, a part of the box, with values ``(z, y, x)`` or ``(channel, z, y, x)``.

        Raises
        ------
        ValueError
            If a voxel was painted before, or `target` is not inside the box.
        """
        if not self.box.contains(target):
            raise ValueError(f"the target {target} is not inside the block {self.box}")
        where = target.relative_to(self.box.start).slices()
        if self._painted[where].any():
            raise ValueError(f"a voxel of {target} was painted twice")
        self._painted[where] = True
        self._values[(..., *where)] = values

    def finish(self) -> NDArray[Scalar]:
        """The whole block.

        Raises
        ------
        ValueError
            If a voxel was never painted.
        """
        if not self._painted.all():
            raise ValueError(f"{np.count_nonzero(~self._painted)} voxels of the block {self.box} were never painted")
        return self._values
