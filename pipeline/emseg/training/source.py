"""Volumes with truth, read box by box as a training asks for it: neither is ever in memory as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import fastremap
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from emseg.box import Box
from emseg.grid.mirror import fold, reflect
from emseg.normalise import Normalisation, normalised
from emseg.ports import VolumeReader
from emseg.truth import between, class_truth, membrane_truth, whole_numbers


class Kind(Protocol):
    """What stored truth means.

    A crop is deformed in between, so that it happens in two steps: numbers small enough to be moved, then their meaning.
    """

    def numbers(self, stored: NDArray[Any]) -> NDArray[np.int32]:
        """Numbers below 2^24 ``(z, y, x)`` that tell apart what this truth does."""
        ...

    def classes(self, numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Class of each voxel, ``(z, y, x) uint8``; 255 is ignored."""
        ...

    def segments(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Number of the segment that each voxel lies in, ``(z, y, x) int32``; 0 in none."""
        ...


@dataclass(frozen=True, slots=True)
class InstanceIds:
    """Truth that numbers the instances; 0 is not labelled, and membrane is where two of them meet."""

    planar: bool
    """Whether they meet in the plane only."""
    ignore: tuple[int, ...] = ()
    """Further values that are not labelled."""

    def numbers(self, stored: NDArray[Any]) -> NDArray[np.int32]:
        """Ids counted anew within the box, and 0 for what is not labelled."""
        numbers: NDArray[np.int32] = fastremap.renumber(whole_numbers(stored), preserve_zero=True)[0].astype(np.int32)
        if self.ignore:
            numbers[np.isin(stored, self.ignore)] = 0
        return numbers

    def classes(self, numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Inside, membrane, or ignore."""
        return membrane_truth(numbers, planar=self.planar)

    def segments(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """The ids."""
        return numbers


@dataclass(frozen=True, slots=True)
class ClassValues:
    """Truth whose values stand for classes; what lies between membranes is a segment."""

    values: Mapping[str, tuple[int, ...]]
    """Those that stand for each class, by its name."""
    names: tuple[str, ...]
    """Of the classes in the order of their labels."""
    ignore: tuple[int, ...]
    """Values that do not count."""
    planar: bool
    """Whether segments are connected in the plane only."""

    def numbers(self, stored: NDArray[Any]) -> NDArray[np.int32]:
        """The classes themselves."""
        return class_truth(whole_numbers(stored), self.values, self.names, self.ignore).astype(np.int32)

    def classes(self, numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
        """The classes."""
        return numbers.astype(np.uint8)

    def segments(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Connected parts of what is known and no membrane, over the faces of voxels."""
        neighbours = ndimage.generate_binary_structure(3, 1)
        neighbours[[0, 2]] &= not self.planar
        parts: NDArray[np.int32] = ndimage.label(between(numbers), neighbours)[0]
        return parts


@dataclass(frozen=True, slots=True)
class Source:
    """A volume with its truth, mirrored without end at its faces; threads may read at the same time."""

    raw: VolumeReader
    """Grey values."""
    truth: VolumeReader
    """What annotators stored, of the same shape."""
    kind: Kind
    """What that means."""
    normalisation: Normalisation
    """Of the grey values."""
    weight: float = 1.0
    """How often it is drawn from, beside others."""

    def read(self, box: Box) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Normalised grey values and numbers of the truth, both ``(z, y, x)``, of a box that may lie anywhere."""
        shape = self.raw.spec.shape
        reflection = reflect(box, shape)
        raw, truth = (reflection.fill(reader.read(reflection.source)) for reader in (self.raw, self.truth))
        slices = fold(np.arange(box.start[0], box.stop[0]), shape[0])
        return normalised(raw, *self.normalisation.table(slices)), self.kind.numbers(truth)


@dataclass(frozen=True, slots=True)
class Sample:
    """A volume in memory with its truth, to validate on."""

    raw: NDArray[np.float32]
    """Normalised grey values, ``(z, y, x) float32``."""
    truth: NDArray[np.uint8]
    """Class of each voxel, ``(z, y, x) uint8``; 255 is ignored."""

    @classmethod
    def of(cls, source: Source) -> Sample:
        """All of a source."""
        raw, numbers = source.read(source.raw.spec.box)
        return cls(raw, source.kind.classes(numbers))
