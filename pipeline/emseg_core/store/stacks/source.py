"""Read z slices of a volume in a TIFF file, a folder of TIFF slices, or Zarr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, triple
from emseg_core.errors import InputError
from emseg_core.grid.reading import CACHE_BYTES
from emseg_core.ports import VolumeReader
from emseg_core.specs.volume import TRUTH_DTYPES, VolumeSpec
from emseg_core.store.files.place import Address, parse_place
from emseg_core.store.stacks.stack import SliceSource
from emseg_core.store.stacks.tiff import open_tiff
from emseg_core.store.volumes.volume import ZarrVolume, open_volume
from emseg_core.store.zarrs.nodes import METADATA_FILES, TIFF_SUFFIXES

Name = TypeVar("Name", bound=str)


class _Slices:
    """Slices of a Zarr volume."""

    def __init__(self, volume: ZarrVolume) -> None:
        self._volume = volume
        self.shape = volume.spec.shape
        self.dtype = volume.spec.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return self._volume.read(Box((start, 0, 0), (stop, *self.shape[1:])))


@contextmanager
def open_slices(path: str | Path | Address) -> Iterator[SliceSource]:
    """Open the volume at a path or an address, for as long as the ``with`` block lasts.

    Parameters
    ----------
    path
        TIFF file, folder of TIFF slices, or Zarr volume.

    Yields
    ------
    SliceSource
        The open volume.

    Raises
    ------
    VolumeError
        If there is no such volume, or emseg cannot read it; the message says why and how to fix it.
    """
    place = parse_place(path)
    if isinstance(place, Path) and is_tiff(place):
        with open_tiff(place, TRUTH_DTYPES) as stack:
            yield stack
    else:
        kept = _two_layer_bytes(open_volume(place, 0, TRUTH_DTYPES).spec)
        yield _Slices(open_volume(place, kept, TRUTH_DTYPES))


def _two_layer_bytes(spec: VolumeSpec) -> int:
    """Return the bytes of two layers of chunks: a reader of slices and their neighbours decompresses each chunk once."""
    rows, columns = (-(-length // chunk) * chunk for length, chunk in zip(spec.shape[1:], spec.chunk[1:], strict=True))
    return 2 * spec.chunk[0] * rows * columns * np.dtype(spec.dtype).itemsize


def is_tiff(path: Path) -> bool:
    """Check whether a path is a TIFF file, by its name, or a folder that contains TIFF files and is not Zarr.

    Parameters
    ----------
    path
        Any path.

    Returns
    -------
    bool
        True for TIFF.
    """
    if not path.is_dir():
        return path.suffix.lower() in TIFF_SUFFIXES
    if any((path / name).exists() for name in METADATA_FILES):
        return False
    return any(file.suffix.lower() in TIFF_SUFFIXES for file in path.iterdir())


@dataclass(frozen=True, slots=True)
class LoadedVolume:
    """A volume in memory; implements `emseg_core.ports.VolumeReader`."""

    voxels: NDArray[Any]
    """``(z, y, x)``, of a dtype that emseg reads."""

    @property
    def spec(self) -> VolumeSpec:
        """Description of the volume."""
        shape = triple(self.voxels.shape)
        return VolumeSpec(shape, self.voxels.dtype.name, chunk=shape)

    def read(self, box: Box) -> NDArray[Any]:
        """Return a copy of the voxels of `box`.

        Parameters
        ----------
        box
            A box within the volume, in voxels.

        Returns
        -------
        ndarray
            ``(z, y, x)``.
        """
        return self.voxels[box.slices()].copy()


@dataclass(frozen=True, slots=True)
class Section:
    """A range of z slices of a volume, as a volume of its own; implements `emseg_core.ports.VolumeReader`."""

    volume: VolumeReader
    slices: tuple[int, int]
    """First slice, and last slice plus one."""

    @property
    def spec(self) -> VolumeSpec:
        """Description of the section."""
        first, stop = self.slices
        whole = self.volume.spec
        return VolumeSpec((stop - first, *whole.shape[1:]), whole.dtype, chunk=whole.chunk)

    def read(self, box: Box) -> NDArray[Any]:
        """Read the voxels of `box`.

        Parameters
        ----------
        box
            A box within the section, in voxels.

        Returns
        -------
        ndarray
            ``(z, y, x)``.
        """
        return self.volume.read(box.shift((self.slices[0], 0, 0)))


def open_sections(path: Path, parts: Mapping[Name, tuple[int, int]], dtypes: tuple[str, ...]) -> dict[Name, VolumeReader]:
    """Open ranges of z slices of a volume, each as a volume of its own.

    Sections of a TIFF stack are loaded into memory, those of a Zarr volume are read on demand.

    Parameters
    ----------
    path
        TIFF file, folder of TIFF slices, or Zarr volume.
    parts
        First slice, and last slice plus one, by the name of the section.
    dtypes
        Names of the accepted NumPy dtypes.

    Returns
    -------
    dict
        Section by name.

    Raises
    ------
    InputError
        If there is no such volume, or it has too few slices.
    """
    if is_tiff(path):
        with open_tiff(path, dtypes) as stack:
            _check_slices(path, parts, stack.shape[0])
            return {name: LoadedVolume(stack.read(*slices)) for name, slices in parts.items()}
    volume = open_volume(path, CACHE_BYTES, dtypes)
    _check_slices(path, parts, volume.spec.shape[0])
    return {name: Section(volume, slices) for name, slices in parts.items()}


def _check_slices(path: Path, parts: Mapping[Name, tuple[int, int]], depth: int) -> None:
    """Raise an `InputError` if a section ends beyond the volume."""
    for name, slices in parts.items():
        if slices[1] > depth:
            raise InputError(f"data.{name} is {list(slices)}, but {path} has {depth} slices: choose slices within the volume")
