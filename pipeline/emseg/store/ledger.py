"""An open output: a block is done when its files exist, and that is the only ledger there is.

One write unit is one shard: one file in each array. Boxes are in the volume's coordinates; the grid of write units
starts at the corner of the region that the output covers.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.errors import BlockError, OrphanError, OutputError
from emseg.store.arrays import Shards
from emseg.store.nodes import fault_of, reason
from emseg.store.staging import output_error

NOT_COMPUTED = 255
"""Value of labels and probabilities where nothing has been computed yet."""


class Output:
    """An open output; fulfils `emseg.ports.LabelWriter`.

    Threads and processes may write different write units at the same time; it can be pickled.
    """

    def __init__(
        self,
        path: Path,
        generation: int,
        region: Box,
        classes: tuple[str, ...],
        attributes: dict[str, Any],
        labels: Shards,
        probabilities: Shards | None,
    ) -> None:
        self.path = path
        self.generation = generation
        """How often the output was begun; other generations' arrays have other names."""
        self.region = region
        """What the output covers, in the volume's coordinates."""
        self.classes = classes
        """Name of each class, in the order of the label values from 0."""
        self.attributes = attributes
        """The attributes that `create_output` was given, as JSON values."""
        self._labels = labels
        self._probabilities = probabilities
        self._arrays = [array for array in (labels, probabilities) if array is not None]
        self.unit: Triple = labels.unit
        """Shape (z, y, x) of a write unit, in voxels."""
        self.chunk: Triple = labels.chunk
        """Shape (z, y, x) of the chunks inside a write unit, in voxels."""

    def __repr__(self) -> str:
        return f"Output({str(self.path)!r})"

    @property
    def records(self) -> Path:
        """Folder of leases and run records."""
        return self.path / "emseg"

    @property
    def keeps_probabilities(self) -> bool:
        """Whether probabilities are stored beside the labels."""
        return self._probabilities is not None

    def write(self, box: Box, labels: NDArray[np.uint8], probabilities: NDArray[np.uint8] | None) -> None:
        """Store a block: labels ``(z, y, x) uint8`` and, if the output keeps them, probabilities ``(class, z, y, x) uint8``.

        Labels are written last: where there are labels, the probabilities belong to them.

        Raises
        ------
        BlockError
            If the disk refuses.
        OrphanError
            If another run has taken over the output.
        ValueError
            If `box` is not whole write units, or an array is not what belongs there; nothing computed is ever 255.
        """
        inside = box.relative_to(self.region.start)
        self._indices(box)
        self._check(box, labels, probabilities)
        try:
            if self._probabilities is not None and probabilities is not None:
                self._probabilities.write(inside, probabilities)
            self._labels.write(inside, labels)
        except OrphanError:
            raise
        except Exception as error:  # the disk's errors come through Zarr, which adds its own
            raise BlockError(
                f"the block {box} of {self.path} cannot be written ({reason(error)}): check the disk", fault_of(error)
            ) from error

    def is_done(self, box: Box) -> bool:
        """Whether each write unit of `box` exists in each array of the output.

        Raises
        ------
        ValueError
            If `box` is not whole write units.
        """
        return all(array.has(index) for array, index in itertools.product(self._arrays, self._indices(box)))

    def done_units(self, *, tidy: bool = False) -> NDArray[np.bool_]:
        """Whether each write unit exists in each array, ``(z, y, x) bool`` on the grid of write units.

        It lists each folder once, which is far quicker than to ask for one unit after the other. With `tidy`, files
        that a killed writer has left half-written are removed; only who holds the lease may ask for that.

        Raises
        ------
        OutputError
            If the output is not there any more, which says nothing about its units.
        """
        done = np.ones(self._labels.grid, dtype=bool)
        for array in self._arrays:
            done &= array.stored(tidy=tidy)
        if not all(array.exists for array in self._arrays):
            raise OutputError(f"the output {self.path} is not there any more: mount or restore it, and run again to go on")
        return done

    def check_unit(self, box: Box) -> None:
        """Reads every byte of a block in each array, so that each checksum is proven.

        Raises
        ------
        BlockError
            If a shard is missing, damaged, or holds a voxel that was never computed.
        """
        for array in self._arrays:
            if int(self._read(array, box).max()) == NOT_COMPUTED:
                raise BlockError(f"the block {box} of {self.path} has voxels that were not computed: compute it again")

    def remove_unit(self, box: Box) -> None:
        """Makes a block *not computed* again; only who holds the lease may ask for that.

        Labels are removed first, so that there are never labels whose probabilities are gone.

        Raises
        ------
        OutputError
            If the disk refuses.
        ValueError
            If `box` is not whole write units.
        """
        for array, index in itertools.product(self._arrays, self._indices(box)):
            file = array.file(index)
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise output_error(file, error) from error

    def read_labels(self, box: Box) -> NDArray[np.uint8]:
        """The labels of `box`, ``(z, y, x) uint8``, 255 where not computed.

        Raises
        ------
        BlockError
            If what is stored there cannot be read.
        ValueError
            If `box` is not within the region.
        """
        return self._read(self._labels, box)

    def read_probabilities(self, box: Box) -> NDArray[np.uint8]:
        """The probabilities of `box`, ``(class, z, y, x) uint8``, 0 to 254 for 0 to 1, 255 where not computed.

        Raises
        ------
        BlockError
            If what is stored there cannot be read.
        ValueError
            If `box` is not within the region, or the output keeps no probabilities.
        """
        if self._probabilities is None:
            raise ValueError(f"{self.path} keeps labels only, not probabilities")
        return self._read(self._probabilities, box)

    def _indices(self, box: Box) -> list[Triple]:
        """Index of each write unit of `box` in the grid."""
        try:
            return list(self._labels.indices(box.relative_to(self.region.start)))
        except ValueError as error:
            raise ValueError(f"{box} is not whole write units of {self.unit} within the region {self.region}") from error

    def _check(self, box: Box, labels: NDArray[np.uint8], probabilities: NDArray[np.uint8] | None) -> None:
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
        if not self.region.contains(box):
            raise ValueError(f"the box {box} is not within the region {self.region}")
        try:
            return array.read(box.relative_to(self.region.start))
        except Exception as error:  # a damaged shard may raise anything, according to the codec that meets it
            cause = f"the block {box} of {self.path} cannot be read ({reason(error)}): compute it again"
            raise BlockError(cause, fault_of(error)) from error
