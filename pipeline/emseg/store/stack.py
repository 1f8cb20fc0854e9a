"""A stack of slices, whatever holds it, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from emseg.box import Box, Triple


@dataclass(frozen=True, slots=True)
class Stated:
    """A voxel size that a file states."""

    scale: tuple[float, float, float]
    """Size (z, y, x) of a voxel, in `units`."""
    units: tuple[str | None, str | None, str | None]
    """Unit of each axis as in OME-Zarr; None where the file says nothing, and the size is 1."""
    source: str
    """Where it says so, in words."""
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where the first voxel (z, y, x) lies, in `units`."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a stack was found to be: who opens it again need not look into each slice first."""

    shape: Triple
    """Shape (z, y, x) in voxels."""
    dtype: str
    missing: tuple[int, ...] = ()
    """z of each slice that is missing."""


class Stack(Protocol):
    """An open stack of slices."""

    shape: Triple
    """Shape (z, y, x) in voxels."""
    dtype: str
    """Name of the NumPy type, one of `emseg.specs.volume.DTYPES`."""
    stated: Stated | None
    """The voxel size that the files state."""
    missing: tuple[int, ...]
    """z of each slice that is missing, and reads as 0."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Slices from `start` to before `stop`, ``(z, y, x)`` in the machine's byte order.

        Raises
        ------
        VolumeError
            If a slice is damaged.
        """
        ...


@runtime_checkable
class ChunkedStack(Stack, Protocol):
    """A stack whose slices are stored in chunks, many slices deep: box by box, each is decompressed once."""

    def read_box(self, box: Box) -> NDArray[Any]:
        """The voxels of a box, ``(z, y, x)`` in the machine's byte order.

        Raises
        ------
        VolumeError
            If a chunk is damaged or, unless that is allowed, missing.
        """
        ...
