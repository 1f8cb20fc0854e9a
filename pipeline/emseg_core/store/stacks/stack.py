"""Interface of an open stack of slices, its stated voxel size, and the error for a dataset that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from emseg_core.box import Box, Triple
from emseg_core.errors import VolumeError

MAX_LISTED = 8
"""Most names that an error message lists."""


@dataclass(frozen=True, slots=True)
class StatedVoxelSize:
    """Voxel size and position that a file states."""

    scale: tuple[float, float, float]
    """Size (z, y, x) of a voxel, in `units`."""
    units: tuple[str | None, str | None, str | None]
    """Unit of each axis as in OME-Zarr; None where the file states nothing, and the size is 1."""
    source: str
    """Where the file states it, in words."""
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Position (z, y, x) of the first voxel, in `units`."""


@dataclass(frozen=True, slots=True)
class KnownStack:
    """Facts about a stack that was opened before, so that reopening it need not check each slice."""

    shape: Triple
    """Shape (z, y, x) in voxels."""
    dtype: str
    """Name of the NumPy dtype."""
    missing: tuple[int, ...] = ()
    """z of each missing slice."""


class SliceSource(Protocol):
    """An open volume that is read slice by slice."""

    shape: Triple
    """Shape (z, y, x) in voxels."""
    dtype: str
    """Name of the NumPy dtype, one of `emseg_core.specs.volume.TRUTH_DTYPES`."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read slices from `start` to before `stop`.

        Parameters
        ----------
        start, stop
            First slice, and the one after the last.

        Returns
        -------
        ndarray
            ``(z, y, x)`` in the dtype of the volume, in native byte order.

        Raises
        ------
        EmsegError
            If a slice is damaged, or cannot be read.
        """


class Stack(SliceSource, Protocol):
    """An open stack of slices, of one of `emseg_core.specs.volume.DTYPES`."""

    stated: StatedVoxelSize | None
    """Voxel size that the files state; None if they do not."""
    missing: tuple[int, ...]
    """z of each missing slice; it reads as 0."""


@runtime_checkable
class ChunkedStack(Stack, Protocol):
    """A stack stored in chunks of many slices: reading box by box decompresses each chunk once."""

    def read_box(self, box: Box) -> NDArray[Any]:
        """Read the voxels of a box.

        Parameters
        ----------
        box
            A box within the stack, in voxels.

        Returns
        -------
        ndarray
            ``(z, y, x)`` in native byte order.

        Raises
        ------
        VolumeError
            If a chunk is damaged or, unless that is allowed, missing.
        """


def dataset_error(path: Path, dataset: str | None, there: Sequence[str]) -> VolumeError:
    """Return the error for a container where no dataset has the given name, or none is given and there is not just one."""
    listed = ", ".join(there[:MAX_LISTED]) + (", ..." if len(there) > MAX_LISTED else "") or "none"
    said = f"no dataset {dataset!r}" if dataset is not None else f"{len(there)} datasets"
    return VolumeError(f"{path} has {said}: choose one with --dataset (available: {listed})")
