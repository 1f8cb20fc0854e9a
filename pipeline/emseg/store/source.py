"""Reading some z slices of whatever holds a volume: a TIFF file, a folder of TIFF slices, or a Zarr volume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple, triple
from emseg.errors import InputError
from emseg.grid.reading import CACHE_BYTES
from emseg.ports import VolumeReader
from emseg.specs.volume import TRUTH_DTYPES, VolumeSpec
from emseg.store.nodes import METADATA, TIFF_SUFFIXES
from emseg.store.place import Address, place_of
from emseg.store.tiff import open_tiff
from emseg.store.volume import ZarrVolume, open_volume

Part = TypeVar("Part", bound=str)


class SliceSource(Protocol):
    """An open volume, read slice by slice."""

    shape: Triple
    """Shape (z, y, x) in voxels."""
    dtype: str
    """Name of the NumPy type, one of `emseg.specs.volume.TRUTH_DTYPES`."""

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
def open_slices(path: str | Path | Address) -> Iterator[SliceSource]:
    """The volume at a path or an address, for as long as the ``with`` lasts.

    Raises
    ------
    VolumeError
        If there is no such volume, or one that emseg cannot read; the message says why and what helps.
    """
    place = place_of(path)
    if isinstance(place, Path) and is_tiff(place):
        with open_tiff(place, TRUTH_DTYPES) as stack:
            yield stack
    else:
        kept = _two_layers(open_volume(place, 0, TRUTH_DTYPES).spec)
        yield _Slices(open_volume(place, kept, TRUTH_DTYPES))


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


@dataclass(frozen=True, slots=True)
class LoadedVolume:
    """A volume in memory; fulfils `emseg.ports.VolumeReader`."""

    voxels: NDArray[Any]
    """``(z, y, x)``, of a type that emseg reads."""

    @property
    def spec(self) -> VolumeSpec:
        """What the volume is."""
        shape = triple(self.voxels.shape)
        return VolumeSpec(shape, self.voxels.dtype.name, chunk=shape)

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of `box`."""
        return self.voxels[box.slices()].copy()


@dataclass(frozen=True, slots=True)
class Section:
    """Some z slices of a volume, as a volume of its own; fulfils `emseg.ports.VolumeReader`."""

    volume: VolumeReader
    slices: tuple[int, int]
    """The first one, and the one after the last."""

    @property
    def spec(self) -> VolumeSpec:
        """What the section is."""
        first, stop = self.slices
        whole = self.volume.spec
        return VolumeSpec((stop - first, *whole.shape[1:]), whole.dtype, chunk=whole.chunk)

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of `box`."""
        return self.volume.read(box.shift((self.slices[0], 0, 0)))


def open_sections(path: Path, parts: Mapping[Part, tuple[int, int]], dtypes: tuple[str, ...]) -> dict[Part, VolumeReader]:
    """Each part of a volume, as a volume of its own: of a TIFF stack in memory, of a Zarr volume read when it is asked for.

    Parameters
    ----------
    parts
        First z slice and the one after the last, by the name of the part.
    dtypes
        Names of the NumPy types that will do.

    Raises
    ------
    InputError
        If there is no such volume, or it has not as many slices.
    """
    if is_tiff(path):
        with open_tiff(path, dtypes) as stack:
            _check_slices(path, parts, stack.shape[0])
            return {name: LoadedVolume(stack.read(*slices)) for name, slices in parts.items()}
    volume = open_volume(path, CACHE_BYTES, dtypes)
    _check_slices(path, parts, volume.spec.shape[0])
    return {name: Section(volume, slices) for name, slices in parts.items()}


def _check_slices(path: Path, parts: Mapping[Part, tuple[int, int]], depth: int) -> None:
    for name, slices in parts.items():
        if slices[1] > depth:
            raise InputError(f"data.{name} is {list(slices)}, but {path} has {depth} slices: choose others")
