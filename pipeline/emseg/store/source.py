"""Reading some z slices of whatever holds a volume: a TIFF file, a folder of TIFF slices, or a Zarr volume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.specs.volume import VolumeSpec
from emseg.store.nodes import METADATA, TIFF_SUFFIXES
from emseg.store.tiff import open_tiff
from emseg.store.volume import ZarrVolume, open_volume


class SliceSource(Protocol):
    """An open volume, read slice by slice."""

    shape: Triple
    """Shape (z, y, x) in voxels."""
    dtype: str
    """Name of the NumPy type, one of `emseg.specs.volume.DTYPES`."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Slices from `start` to before `stop`, ``(z, y, x)``.

        Raises
        ------
        EmsegError
            If what is stored there cannot be read.
        """
        ...


class _Slices:
    """The slices of a Zarr volume."""

    def __init__(self, volume: ZarrVolume) -> None:
        self._volume = volume
        self.shape = volume.spec.shape
        self.dtype = volume.spec.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return self._volume.read(Box((start, 0, 0), (stop, *self.shape[1:])))


@contextmanager
def open_slices(path: str | Path) -> Iterator[SliceSource]:
    """The volume at a path, for as long as the ``with`` lasts.

    Raises
    ------
    VolumeError
        If there is no such volume, or one that emseg cannot read; the message says why and what helps.
    """
    if is_tiff(Path(path)):
        with open_tiff(path) as stack:
            yield stack
    else:
        kept = _two_layers(open_volume(path).spec)
        yield _Slices(open_volume(path, kept))


def _two_layers(spec: VolumeSpec) -> int:
    """Bytes of two layers of chunks: whoever reads on slice by slice, with a neighbour, then decompresses each chunk once."""
    rows, columns = (-(-length // chunk) * chunk for length, chunk in zip(spec.shape[1:], spec.chunk[1:], strict=True))
    return 2 * spec.chunk[0] * rows * columns * np.dtype(spec.dtype).itemsize


def is_tiff(path: Path) -> bool:
    """Whether a path names a TIFF file, by its name, or a folder that holds TIFF files and is no Zarr."""
    if not path.is_dir():
        return path.suffix.lower() in TIFF_SUFFIXES
    if any((path / name).exists() for name in METADATA):
        return False
    return any(file.suffix.lower() in TIFF_SUFFIXES for file in path.iterdir())
