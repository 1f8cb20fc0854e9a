"""Read volumes with truth box by box, as a training needs them, without loading either as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import fastremap
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from emseg_core.box import Box
from emseg_core.errors import InputError
from emseg_core.grid.mirror import fold, reflect
from emseg_core.normalise import Normalisation, normalised
from emseg_core.ports import VolumeReader
from emseg_core.specs.heads import Head
from emseg_core.truth import BACKGROUND, IGNORE, between, class_truth, ends_of_edges, membrane_truth, whole_numbers


class TruthKind(Protocol):
    """Interpretation of stored truth.

    It takes two steps, because crops are deformed in between: stored values are mapped to small numbers, which survive the
    deformation in float32, and these are mapped to classes and segments.
    """

    def numbers(self, stored: NDArray[Any]) -> NDArray[np.int32]:
        """Map stored values to small numbers.

        Parameters
        ----------
        stored
            Values of a box, ``(z, y, x)``.

        Returns
        -------
        NDArray
            Numbers below 2^24, ``(z, y, x) int32``, different wherever this truth makes a difference.
        """

    def classes(self, numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Map numbers to classes.

        Parameters
        ----------
        numbers
            What `numbers` returned, ``(z, y, x) int32``.

        Returns
        -------
        NDArray
            Class of each voxel, ``(z, y, x) uint8``; or 1 or 0 for each channel that does not exclude others,
            ``(channel, z, y, x) uint8``. 255 is ignored.
        """

    def segments(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Map numbers to segments.

        Parameters
        ----------
        numbers
            What `numbers` returned, ``(z, y, x) int32``.

        Returns
        -------
        NDArray
            Segment of each voxel, ``(z, y, x) int32``; 0 is no segment.
        """


@dataclass(frozen=True, slots=True)
class InstanceIds:
    """Truth that consists of instance ids; 0 is unlabelled, and membrane is where two instances meet."""

    planar: bool
    """Whether only contacts within the plane are membrane."""
    ignore: tuple[int, ...] = ()
    """Further values that are unlabelled."""

    def numbers(self, stored: NDArray[Any]) -> NDArray[np.int32]:
        """Renumber the ids within a box.

        Parameters
        ----------
        stored
            Stored ids, ``(z, y, x)``.

        Returns
        -------
        NDArray
            Consecutive ids, ``(z, y, x) int32``; 0 is unlabelled.

        Raises
        ------
        InputError
            If a value is not a whole number.
        """
        numbers: NDArray[np.int32] = fastremap.renumber(whole_numbers(stored), preserve_zero=True)[0].astype(np.int32)
        if self.ignore:
            numbers[np.isin(stored, self.ignore)] = 0
        return numbers

    def classes(self, numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Derive classes from ids.

        Parameters
        ----------
        numbers
            What `numbers` returned, ``(z, y, x) int32``.

        Returns
        -------
        NDArray
            Inside, membrane or ignored, ``(z, y, x) uint8``.
        """
        return membrane_truth(numbers, planar=self.planar)

    def segments(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the ids, which are the segments.

        Parameters
        ----------
        numbers
            What `numbers` returned, ``(z, y, x) int32``.

        Returns
        -------
        NDArray
            Segment of each voxel, ``(z, y, x) int32``.
        """
        return numbers


@dataclass(frozen=True, slots=True)
class ClassValues:
    """Truth that consists of class values; segments are the connected components between membranes."""

    values: Mapping[str, tuple[int, ...]]
    """Values that stand for each class, by its name."""
    names: tuple[str, ...]
    """Names of the classes in the order of their labels."""
    ignore: tuple[int, ...]
    """Values that are ignored."""
    planar: bool
    """Whether segments are connected within the plane only."""

    def numbers(self, stored: NDArray[Any]) -> NDArray[np.int32]:
        """Map stored values to classes.

        Parameters
        ----------
        stored
            Stored values, ``(z, y, x)``.

        Returns
        -------
        NDArray
            Class of each voxel, ``(z, y, x) int32``; 255 is ignored.

        Raises
        ------
        InputError
            If a value is not a whole number or stands for no class.
        """
        return class_truth(whole_numbers(stored), self.values, self.names, self.ignore).astype(np.int32)

    def classes(self, numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return the numbers, which are the classes.

        Parameters
        ----------
        numbers
            What `numbers` returned, ``(z, y, x) int32``.

        Returns
        -------
        NDArray
            Class of each voxel, ``(z, y, x) uint8``.
        """
        return numbers.astype(np.uint8)

    def segments(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Label the connected components of labelled voxels that are not membrane, connected through faces.

        Parameters
        ----------
        numbers
            What `numbers` returned, ``(z, y, x) int32``.

        Returns
        -------
        NDArray
            Segment of each voxel, ``(z, y, x) int32``; 0 is no segment.
        """
        neighbours = ndimage.generate_binary_structure(3, 1)
        neighbours[[0, 2]] &= not self.planar
        parts: NDArray[np.int32] = ndimage.label(between(numbers), neighbours)[0]
        return parts


@dataclass(frozen=True, slots=True)
class IndependentValues:
    """Truth that consists of values, each of which stands for any number of classes."""

    values: Mapping[str, tuple[int, ...]]
    """Values that stand for each class, by its name; `BACKGROUND` names values that stand for none."""
    names: tuple[str, ...]
    """Names of the classes in the order of their channels."""
    ignore: tuple[int, ...]
    """Values that are ignored."""

    @property
    def known(self) -> NDArray[np.int64]:
        """All values that have a meaning, in rising order."""
        return np.unique([*self.ignore, *(value for values in self.values.values() for value in values)]).astype(np.int64)

    def numbers(self, stored: NDArray[Any]) -> NDArray[np.int32]:
        """Map stored values to their positions among all known ones.

        Parameters
        ----------
        stored
            Stored values, ``(z, y, x)``.

        Returns
        -------
        NDArray
            Position of each voxel's value, ``(z, y, x) int32``.

        Raises
        ------
        InputError
            If a value is not a whole number or has no meaning.
        """
        whole, known = whole_numbers(stored), self.known
        odd = ~np.isin(whole, known)
        if odd.any():
            count = np.count_nonzero(odd)
            raise InputError(
                f"values without a meaning, such as {int(whole[odd].flat[0])}, in {count} of {odd.size} voxels: "
                f"name their classes, put them under {BACKGROUND}, or ignore them"
            )
        return np.searchsorted(known, whole).astype(np.int32)

    def classes(self, numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return which classes each voxel belongs to.

        Parameters
        ----------
        numbers
            What `numbers` returned, ``(z, y, x) int32``.

        Returns
        -------
        NDArray
            1 or 0 for each class, ``(class, z, y, x) uint8``; 255 is ignored.
        """
        known = self.known
        table = np.stack([np.isin(known, self.values.get(name, ())) for name in self.names]).astype(np.uint8)
        table[:, np.isin(known, self.ignore)] = IGNORE
        found: NDArray[np.uint8] = table[:, numbers]
        return found

    def segments(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return no segments, as such classes have none.

        Parameters
        ----------
        numbers
            What `numbers` returned, ``(z, y, x) int32``.

        Returns
        -------
        NDArray
            Zeros, ``(z, y, x) int32``.
        """
        return np.zeros_like(numbers)


@dataclass(frozen=True, slots=True)
class Edges:
    """Truth that consists of instance ids, as affinities; 0 is unlabelled unless it is background."""

    head: Head
    """The affinities."""
    ignore: tuple[int, ...] = ()
    """Further values that are unlabelled."""
    background: tuple[int, ...] = ()
    """Ids of voxels that belong to no object, not even to the same one as their neighbours."""

    def numbers(self, stored: NDArray[Any]) -> NDArray[np.int32]:
        """Renumber the ids within a box.

        Parameters
        ----------
        stored
            Stored ids, ``(z, y, x)``.

        Returns
        -------
        NDArray
            Consecutive ids from 2 on, ``(z, y, x) int32``; 0 is unlabelled, 1 background.

        Raises
        ------
        InputError
            If a value is not a whole number.
        """
        numbers = InstanceIds(planar=False, ignore=self.ignore).numbers(stored)
        numbers[numbers > 0] += 1
        if self.background:
            numbers[np.isin(stored, self.background)] = 1
        return numbers

    def classes(self, numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return the affinities, in the sense in which the head states them.

        Parameters
        ----------
        numbers
            What `numbers` returned, ``(z, y, x) int32``.

        Returns
        -------
        NDArray
            1 or 0 for each offset, ``(offset, z, y, x) uint8``. 255 is ignored: edges that leave the array, or of which an end
            is unlabelled.
        """
        found = np.full((len(self.head.offsets), *numbers.shape), IGNORE, np.uint8)
        for channel, offset in zip(found, self.head.offsets, strict=True):
            source, target = ends_of_edges(offset, numbers.shape)
            ours, theirs = numbers[source], numbers[target]
            together = (ours == theirs) & (ours > 1)
            edges = np.where((ours > 0) & (theirs > 0), together != self.head.repulsive, IGNORE)
            channel[source if self.head.anchor == "source" else target] = edges
        return found

    def segments(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the ids of objects.

        Parameters
        ----------
        numbers
            What `numbers` returned, ``(z, y, x) int32``.

        Returns
        -------
        NDArray
            Segment of each voxel, ``(z, y, x) int32``; 0 is no segment.
        """
        return np.maximum(numbers - 1, 0)


@dataclass(frozen=True, slots=True)
class TrainingVolume:
    """A volume with its truth, mirrored at its faces without end; several threads may read from it at once."""

    raw: VolumeReader
    """Grey values."""
    truth: VolumeReader
    """Stored truth, of the same shape."""
    kind: TruthKind
    """Interpretation of the truth."""
    normalisation: Normalisation
    """Normalisation of the grey values."""
    weight: float = 1.0
    """How often crops are drawn from it, relative to other volumes."""

    def read(self, box: Box) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Read a box, which may extend beyond the volume.

        Parameters
        ----------
        box
            The box, in voxels of the volume.

        Returns
        -------
        raw : NDArray
            Normalised grey values, ``(z, y, x) float32``.
        truth : NDArray
            Numbers of the truth, ``(z, y, x) int32``; see `TruthKind`.

        Raises
        ------
        InputError
            If the truth has invalid values.
        """
        shape = self.raw.spec.shape
        reflection = reflect(box, shape)
        raw, truth = (reflection.fill(reader.read(reflection.source)) for reader in (self.raw, self.truth))
        slices = fold(np.arange(box.start[0], box.stop[0]), shape[0])
        return normalised(raw, *self.normalisation.table(slices)), self.kind.numbers(truth)


@dataclass(frozen=True, slots=True)
class ValidationVolume:
    """A volume in memory with its truth, for validation."""

    raw: NDArray[np.float32]
    """Normalised grey values, ``(z, y, x) float32``."""
    truth: NDArray[np.uint8]
    """Class of each voxel, ``(z, y, x) uint8``, or truth of each channel, ``(channel, z, y, x)``; 255 is ignored."""

    @classmethod
    def of(cls, source: TrainingVolume) -> ValidationVolume:
        """Load a whole volume.

        Parameters
        ----------
        source
            Voxels and truth, which are still on the disk.

        Returns
        -------
        ValidationVolume
            The volume in memory.

        Raises
        ------
        InputError
            If the truth has invalid values.
        """
        raw, numbers = source.read(source.raw.spec.box)
        return cls(raw, source.kind.classes(numbers))
