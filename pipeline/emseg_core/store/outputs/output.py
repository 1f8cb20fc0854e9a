"""An open output: a block is done when its files exist, and nothing else records that.

One write unit is one shard: one file in each array. Boxes are in the volume's coordinates; the grid of write units
starts at the corner of the region that the output covers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple
from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.store.files.faults import translate_errors
from emseg_core.store.files.files import Files
from emseg_core.store.files.place import Place
from emseg_core.store.files.records import Records
from emseg_core.store.outputs.level import Level
from emseg_core.store.zarrs.arrays import Shards


class Output:
    """An open output; implements `emseg_core.ports.LabelWriter`.

    Threads and processes may write different write units at the same time; an `Output` can be pickled.
    """

    def __init__(
        self,
        files: Files,
        generation: int,
        region: Box,
        classes: tuple[str, ...],
        attributes: dict[str, Any],
        levels: tuple[Level, ...],
    ) -> None:
        self.files = files
        """Files of the output."""
        self.generation = generation
        """Number of times that the output was started; the arrays of each generation have different names."""
        self.region = region
        """Region that the output covers, in the volume's coordinates."""
        self.classes = classes
        """Name of each class, in the order of the label values from 0."""
        self.attributes = attributes
        """Attributes of the `OutputLayout` that it was created with, as JSON values."""
        self.levels = levels
        """Arrays of each level, the finest level first: probabilities if the output keeps them, then labels."""
        *probabilities, self._labels = levels[0].arrays
        self._probabilities = probabilities[0] if probabilities else None
        self.unit: Triple = self._labels.unit
        """Shape (z, y, x) of a write unit, in voxels; the same on each level."""
        self.chunk: Triple = self._labels.chunk
        """Shape (z, y, x) of the chunks inside a write unit, in voxels."""

    def __repr__(self) -> str:
        return f"Output({str(self.path)!r})"

    @property
    def path(self) -> Place:
        """Path or address of the output."""
        return self.files.place

    @property
    def records(self) -> Records:
        """Leases and records of runs."""
        return Records(self.files)

    @property
    def outside(self) -> NDArray[np.bool_]:
        """Blocks that a mask excludes, ``(z, y, x) bool`` on the grid of write units."""
        found = self.levels[0].outside
        return np.zeros(self._labels.grid, bool) if found is None else found

    @property
    def keeps_probabilities(self) -> bool:
        """Whether probabilities are stored as well as labels."""
        return self._probabilities is not None

    def write(self, box: Box, labels: NDArray[np.uint8], probabilities: NDArray[np.uint8] | None) -> None:
        """Store a block.

        Labels are written last, so where labels exist, the probabilities do too.

        Parameters
        ----------
        box
            Whole write units.
        labels
            Class of each voxel, ``(z, y, x) uint8``.
        probabilities
            ``(class, z, y, x) uint8``, 0 to 254 for 0 to 1; None if the output does not keep them.

        Raises
        ------
        BlockError
            If the block cannot be written.
        OrphanError
            If another run has taken over the output.
        ValueError
            If `box` does not consist of whole write units, or an array has another shape, dtype or range of values than the
            output; 255 is reserved.
        """
        inside = box.relative_to(self.region.start)
        self._refuse_partial(box)
        self._check(box, labels, probabilities)
        with translate_errors(f"the block {box} of {self.path} cannot be written", "check the disk"):
            if self._probabilities is not None and probabilities is not None:
                self._probabilities.write(inside, probabilities)
            self._labels.write(inside, labels)

    def is_done(self, box: Box) -> bool:
        """Check whether each write unit of `box` exists in each array of the output.

        Parameters
        ----------
        box
            Whole write units, in the volume's coordinates.

        Returns
        -------
        bool
            True if all of them exist.

        Raises
        ------
        ValueError
            If `box` does not consist of whole write units.
        """
        self._refuse_partial(box)
        return self.levels[0].is_done(box.relative_to(self.region.start))

    def done_units(self, *, tidy: bool = False) -> NDArray[np.bool_]:
        """Find the write units that exist in each array or lie outside.

        Each folder is listed once, which is far quicker than to look up one unit after another.

        Parameters
        ----------
        tidy
            Whether to remove partial files that killed writers have left; only the holder of the lease may do that.

        Returns
        -------
        ndarray
            ``(z, y, x) bool`` on the grid of write units.

        Raises
        ------
        OutputError
            If the output no longer exists, which says nothing about its units.
        """
        return self.levels[0].done(tidy=tidy)

    def read_labels(self, box: Box) -> NDArray[np.uint8]:
        """Read the labels of `box`.

        Parameters
        ----------
        box
            A box within the region, in the volume's coordinates.

        Returns
        -------
        ndarray
            ``(z, y, x) uint8``, 255 where not computed.

        Raises
        ------
        BlockError
            If the labels cannot be read.
        ValueError
            If `box` is not within the region.
        """
        return self._read(self._labels, box)

    def read_probabilities(self, box: Box) -> NDArray[np.uint8]:
        """Read the probabilities of `box`.

        Parameters
        ----------
        box
            A box within the region, in the volume's coordinates.

        Returns
        -------
        ndarray
            ``(class, z, y, x) uint8``, 0 to 254 for 0 to 1, 255 where not computed.

        Raises
        ------
        BlockError
            If the probabilities cannot be read.
        ValueError
            If `box` is not within the region, or the output keeps no probabilities.
        """
        if self._probabilities is None:
            raise ValueError(f"{self.path} keeps labels only, not probabilities")
        return self._read(self._probabilities, box)

    def _refuse_partial(self, box: Box) -> None:
        """Refuse a box that is not whole write units."""
        try:
            self._labels.indices(box.relative_to(self.region.start))
        except ValueError as error:
            raise ValueError(f"{box} is not whole write units of {self.unit} within the region {self.region}") from error

    def _check(self, box: Box, labels: NDArray[np.uint8], probabilities: NDArray[np.uint8] | None) -> None:
        """Refuse arrays that do not belong into `box`."""
        if labels.dtype != np.uint8 or labels.shape != box.shape:
            raise ValueError(f"labels are {labels.dtype} {labels.shape}, not uint8 {box.shape}")
        if (highest := int(labels.max())) >= len(self.classes):
            raise ValueError(f"labels reach {highest}, but there are {len(self.classes)} classes")
        if (probabilities is None) == self.keeps_probabilities:
            raise ValueError(
                f"probabilities kept: {self.keeps_probabilities}, probabilities given: {probabilities is not None}"
            )
        if probabilities is None:
            return
        shape = (len(self.classes), *box.shape)
        if probabilities.dtype != np.uint8 or probabilities.shape != shape:
            raise ValueError(f"probabilities are {probabilities.dtype} {probabilities.shape}, not uint8 {shape}")
        if int(probabilities.max()) == NOT_COMPUTED:
            raise ValueError(f"probabilities reach {NOT_COMPUTED}, which means not computed")

    def _read(self, array: Shards, box: Box) -> NDArray[np.uint8]:
        """Read a box of an array, in the volume's coordinates."""
        if not self.region.contains(box):
            raise ValueError(f"the box {box} is not within the region {self.region}")
        with translate_errors(f"the block {box} of {self.path} cannot be read", "compute it again"):
            return array.read(box.relative_to(self.region.start))
