"""Read a folder of PNG slices, with Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emseg_core.box import triple
from emseg_core.errors import VolumeError
from emseg_core.store.files.faults import translate_damage
from emseg_core.store.stacks.slices import slice_files
from emseg_core.store.stacks.stack import KnownStack, StatedVoxelSize
from emseg_core.store.zarrs.nodes import PNG_SUFFIXES

GREY = {"L": "uint8", "I;16": "uint16"}
"""dtype of each greyscale mode of Pillow."""
# Pillow rejects images larger than photographs, in case they fill the memory; slices of tissue are that large.
Image.MAX_IMAGE_PIXELS = None


class PngFolder:
    """An open folder of slices; implements `emseg_core.store.stacks.stack.Stack`.

    With `known`, no file is opened before it is read.

    Raises
    ------
    VolumeError
        If there are no slices, some are missing, or they are not greyscale images of one size and dtype.
    """

    stated: StatedVoxelSize | None = None
    """None: PNG can only state a resolution for print."""

    def __init__(self, folder: Path, *, allow_missing: bool = False, known: KnownStack | None = None) -> None:
        self._slices = slice_files(folder, PNG_SUFFIXES, allow_missing=allow_missing)
        if known is not None:
            self._kind = (*known.shape[1:], known.dtype)
        else:
            with _opened(self._slices.files[0]) as image:
                self._kind = _kind(image)
            for file in self._slices.files[1:]:
                with _opened(file) as image:
                    self._refuse_other(file, image)
        height, width, self.dtype = self._kind
        self.shape = triple((self._slices.depth, height, width))
        self.missing = self._slices.missing

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read slices from `start` to before `stop`.

        Parameters
        ----------
        start, stop
            First slice, and the one after the last.

        Returns
        -------
        ndarray
            ``(z, y, x)``, 0 where a slice is missing.

        Raises
        ------
        VolumeError
            If a slice is damaged, or no longer has the size and dtype of the stack.
        """
        voxels = np.zeros((stop - start, *self.shape[1:]), self.dtype)
        for place, file in self._slices.within(start, stop):
            with _opened(file) as image:
                self._refuse_other(file, image)
                voxels[place] = np.asarray(image)
        return voxels

    def _refuse_other(self, file: Path, image: Image.Image) -> None:
        """Raise a `VolumeError` if a slice has another size or dtype than the first."""
        if (kind := _kind(image)) != self._kind:
            one, other = (f"{height} x {width} {dtype}" for height, width, dtype in (self._kind, kind))
            raise VolumeError(
                f"{self._slices.files[0].name} is {one}, but {file.name} is {other}: "
                f"give all slices in {file.parent} the same size and type"
            )


def _kind(image: Image.Image) -> tuple[int, int, str]:
    """Return height, width and dtype of a slice."""
    return image.height, image.width, GREY[image.mode]


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Open a greyscale image. Any error of Pillow for a damaged one becomes a `VolumeError`."""
    with translate_damage(f"{file} cannot be read as PNG"), Image.open(file, formats=["PNG"]) as image:
        if image.mode not in GREY:
            raise VolumeError(
                f"{file} has colour mode {image.mode!r}, but emseg reads greyscale of 8 or 16 bits: convert it to greyscale"
            )
        yield image
