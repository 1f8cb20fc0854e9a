"""Reading a folder of PNG slices, with Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emseg.box import triple
from emseg.errors import VolumeError
from emseg.store.blame import reason
from emseg.store.nodes import PNG_SUFFIXES
from emseg.store.slices import slice_files
from emseg.store.stack import Known, Stated

GREY = {"L": "uint8", "I;16": "uint16"}
"""Types of plain grey, by what Pillow calls them."""
# Pillow refuses what is larger than a photograph, as it might fill the memory; slices of tissue are.
Image.MAX_IMAGE_PIXELS = None


class PngFolder:
    """An open folder of slices; fulfils `emseg.store.stack.Stack`. Of one that is known, no file is opened before it is read.

    Raises
    ------
    VolumeError
        If there are no slices, some are missing, or they are not plain grey of one size and type.
    """

    stated: Stated | None = None
    """PNG states a resolution for paper at most."""

    def __init__(self, folder: Path, *, allow_missing: bool = False, known: Known | None = None) -> None:
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
        """Slices from `start` to before `stop`, ``(z, y, x)``, 0 where one is missing."""
        voxels = np.zeros((stop - start, *self.shape[1:]), self.dtype)
        for place, file in self._slices.within(start, stop):
            with _opened(file) as image:
                self._refuse_other(file, image)
                voxels[place] = np.asarray(image)
        return voxels

    def _refuse_other(self, file: Path, image: Image.Image) -> None:
        """Refuses a slice of another size or type than the first."""
        if (kind := _kind(image)) != self._kind:
            one, other = (f"{height} x {width} {dtype}" for height, width, dtype in (self._kind, kind))
            raise VolumeError(
                f"{self._slices.files[0].name} is {one}, but {file.name} is {other}: "
                f"give all slices in {file.parent} one size and type"
            )


def _kind(image: Image.Image) -> tuple[int, int, str]:
    """Height, width and type of a slice."""
    return image.height, image.width, GREY[image.mode]


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """An image of plain grey; whatever a damaged one makes Pillow raise becomes a `VolumeError`."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            if image.mode not in GREY:
                raise VolumeError(
                    f"{file} has the colours {image.mode!r}, but emseg reads plain grey of 8 or 16 bits: save it so"
                )
            yield image
    except VolumeError:
        raise
    except Exception as error:
        raise VolumeError(f"{file} cannot be read as PNG ({reason(error)}): copy it again") from error
