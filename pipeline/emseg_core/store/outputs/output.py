"""An open output: a block is done when its files exist, and nothing else records that.

One write unit is one shard: one file in each array. Boxes are in the volume's coordinates; the grid of write units
starts at the corner of the region that the output covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple
from emseg_core.errors import OutputError
from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.specs.heads import CLASSES, PROBABILITIES, Head, classes_of, images_of
from emseg_core.store.files.faults import translate_errors
from emseg_core.store.files.files import Files
from emseg_core.store.files.place import Place
from emseg_core.store.files.records import Records
from emseg_core.store.outputs.level import Level


class Output:
    """An open output; implements `emseg_core.ports.BlockWriter`.

    Threads and processes may write different write units at the same time; an `Output` can be pickled.
    """

    def __init__(
        self,
        files: Files,
        generation: int,
        region: Box,
        heads: tuple[Head, ...],
        probabilities: bool,
        attributes: dict[str, Any],
        levels: tuple[Level, ...],
    ) -> None:
        self.files = files
        """Files of the output."""
        self.generation = generation
        """Number of times that the output was started; the arrays of each generation have different names."""
        self.region = region
        """Region that the output covers, in the volume's coordinates."""
        self.heads = heads
        """Heads of the network that are stored."""
        self.images = images_of(heads, probabilities)
        """The images, in the order of writing."""
        self.classes = classes_of(heads)
        """Name of each class that excludes the others, in the order of the label values from 0; empty if there are none."""
        self.attributes = attributes
        """Attributes of the `OutputLayout` that it was created with, as JSON values."""
        self.levels = levels
        """Arrays of each level, the finest level first: one for each image, in the order of writing."""
        self._arrays = {image.name: array for image, array in zip(self.images, levels[0].arrays, strict=True)}
        self._last = levels[0].arrays[-1]
        self.unit: Triple = self._last.unit
        """Shape (z, y, x) of a write unit, in voxels; the same on each level."""
        self.chunk: Triple = self._last.chunk
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
        return np.zeros(self._last.grid, bool) if found is None else found

    @property
    def keeps_probabilities(self) -> bool:
        """Whether probabilities of classes are stored as well as labels."""
        return PROBABILITIES in self._arrays

    def write(self, box: Box, values: Sequence[NDArray[Any]]) -> None:
        """Store a block.

        Images are written in their order, so where the last one exists, all others do.

        Parameters
        ----------
        box
            Whole write units.
        values
            Voxels of each image: labels ``(z, y, x)``, probabilities and values ``(channel, z, y, x)``, in the image's type.

        Raises
        ------
        BlockError
            If the block cannot be written.
        OrphanError
            If another run has taken over the output.
        ValueError
            If `box` does not consist of whole write units, or an array has another shape, dtype or range of values than its
            image; 255 and NaN are reserved.
        """
        inside = box.relative_to(self.region.start)
        self._refuse_partial(box)
        self._check(box, values)
        with translate_errors(f"the block {box} of {self.path} cannot be written", "check the disk"):
            for array, voxels in zip(self._arrays.values(), values, strict=True):
                array.write(inside, voxels)

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
        """Read the labels of the classes in `box`.

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
            If `box` is not within the region, or the output has no classes.
        """
        return self.read(CLASSES, box)

    def read_probabilities(self, box: Box) -> NDArray[np.uint8]:
        """Read the probabilities of the classes in `box`.

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
        return self.read(PROBABILITIES, box)

    def read(self, name: str, box: Box) -> NDArray[Any]:
        """Read a box of an image.

        Parameters
        ----------
        name
            Name of one of `images`.
        box
            A box within the region, in the volume's coordinates.

        Returns
        -------
        ndarray
            Labels ``(z, y, x)``, or probabilities or values ``(channel, z, y, x)``, in the type of the image.

        Raises
        ------
        BlockError
            If the image cannot be read.
        ValueError
            If `box` is not within the region, or there is no such image.
        """
        if name not in self._arrays:
            raise ValueError(f"{self.path} has no {name}, but {', '.join(self._arrays)}")
        if not self.region.contains(box):
            raise ValueError(f"the box {box} is not within the region {self.region}")
        with translate_errors(f"the block {box} of {self.path} cannot be read", "compute it again"):
            return self._arrays[name].read(box.relative_to(self.region.start))

    def require_classes(self) -> None:
        """Refuse an output without classes that exclude one another.

        Raises
        ------
        OutputError
            If there are none.
        """
        if not self.classes:
            heads = ", ".join(f"{head.name} ({head.kind})" for head in self.heads)
            raise OutputError(
                f"{self.path} stores no classes that exclude one another, but {heads}: read these images with other tools, or "
                "run a network that has such classes"
            )

    def _refuse_partial(self, box: Box) -> None:
        """Refuse a box that is not whole write units."""
        try:
            self._last.indices(box.relative_to(self.region.start))
        except ValueError as error:
            raise ValueError(f"{box} is not whole write units of {self.unit} within the region {self.region}") from error

    def _check(self, box: Box, values: Sequence[NDArray[Any]]) -> None:
        """Refuse arrays that do not belong into `box`."""
        if len(values) != len(self.images):
            raise ValueError(f"{len(values)} images are given for {', '.join(self._arrays)}")
        for image, voxels in zip(self.images, values, strict=True):
            shape = (image.channels, *box.shape) if image.channels else box.shape
            if voxels.dtype != image.dtype or voxels.shape != shape:
                raise ValueError(f"{image.name} are {voxels.dtype} {voxels.shape}, not {image.dtype} {shape}")
            highest = voxels.max()
            if image.content == "labels" and highest >= len(image.names):
                raise ValueError(f"{image.name} reach {highest}, but there are {len(image.names)} classes")
            if np.isnan(highest) if image.dtype == "float16" else highest == NOT_COMPUTED:
                raise ValueError(f"{image.name} reach {highest}, which means not computed")
