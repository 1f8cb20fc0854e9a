"""An open output: a block is done when its files exist, and that is the only ledger there is.

One write unit is one shard: one file in each array. Boxes are in the volume's coordinates; the grid of write units
starts at the corner of the region that the output covers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.store.arrays import Shards
from emseg.store.blame import blamed
from emseg.store.files import Files
from emseg.store.level import Level
from emseg.store.place import Place
from emseg.store.records import Records

NOT_COMPUTED = 255
"""Value of labels and probabilities where nothing has been computed yet."""


class Output:
    """An open output; fulfils `emseg.ports.LabelWriter`.

    Threads and processes may write different write units at the same time; it can be pickled.
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
        """What it is made of."""
        self.generation = generation
        """How often the output was begun; other generations' arrays have other names."""
        self.region = region
        """What the output covers, in the volume's coordinates."""
        self.classes = classes
        """Name of each class, in the order of the label values from 0."""
        self.attributes = attributes
        """The attributes that `create_output` was given, as JSON values."""
        self.levels = levels
        """The arrays, the finest level first: probabilities where the output keeps them, then labels."""
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
        """Where it is."""
        return self.files.place

    @property
    def records(self) -> Records:
        """Leases and run records."""
        return Records(self.files)

    @property
    def outside(self) -> NDArray[np.bool_]:
        """Blocks that a mask leaves out, ``(z, y, x) bool`` on the grid of write units."""
        found = self.levels[0].outside
        return np.zeros(self._labels.grid, bool) if found is None else found

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
        with blamed(f"the block {box} of {self.path} cannot be written", "check the disk"):
            if self._probabilities is not None and probabilities is not None:
                self._probabilities.write(inside, probabilities)
            self._labels.write(inside, labels)

    def is_done(self, box: Box) -> bool:
        """Whether each write unit of `box` exists in each array of the output.

        Raises
        ------
        ValueError
            If `box` is not whole write units.
        """
        self._indices(box)
        return self.levels[0].is_done(box.relative_to(self.region.start))

    def done_units(self, *, tidy: bool = False) -> NDArray[np.bool_]:
        """Whether each write unit exists in each array or lies outside, ``(z, y, x) bool`` on the grid of write units.

        It lists each folder once, which is far quicker than to ask for one unit after the other. With `tidy`, files
        that a killed writer has left half-written are removed; only who holds the lease may ask for that.

        Raises
        ------
        OutputError
            If the output is not there any more, which says nothing about its units.
        """
        return self.levels[0].done(tidy=tidy)

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
        with blamed(f"the block {box} of {self.path} cannot be read", "compute it again"):
            return array.read(box.relative_to(self.region.start))
