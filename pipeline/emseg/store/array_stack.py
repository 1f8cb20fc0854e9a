"""Arrays in memory, of Dask or of Zarr, in the place of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from emseg.box import Triple, triple
from emseg.errors import VolumeError
from emseg.specs.volume import DTYPES
from emseg.store.stack import Stated


@runtime_checkable
class Array(Protocol):
    """What NumPy, Dask and Zarr have in common."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of its voxels."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """Part of it."""
        ...


class ArrayStack:
    """An array ``(z, y, x)`` or ``(y, x)`` as a stack of slices, which are computed or read as they are asked for.

    Raises
    ------
    VolumeError
        If it has other axes, no voxel, or voxels of a type that emseg does not read.
    """

    def __init__(self, array: Array) -> None:
        if len(array.shape) not in (2, 3) or 0 in array.shape:
            raise VolumeError(f"the array has shape {array.shape}, but a volume has axes (z, y, x) or (y, x): take part of it")
        self.dtype = np.dtype(array.dtype).newbyteorder("=").name
        if self.dtype not in DTYPES:
            raise VolumeError(f"the array is {self.dtype}, but emseg reads {', '.join(DTYPES)}: convert it with astype")
        self.shape: Triple = triple((1,) * (3 - len(array.shape)) + tuple(map(int, array.shape)))
        self.stated: Stated | None = None
        self.missing: tuple[int, ...] = ()
        self._array = array

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Slices from `start` to before `stop`, ``(z, y, x)``."""
        part = self._array[start:stop] if len(self._array.shape) == 3 else self._array[:, :]
        values: NDArray[Any] = np.asarray(part, self.dtype)
        return values.reshape(stop - start, *self.shape[1:])


def place_of_array(array: Array) -> Path | None:
    """Where an array of Zarr lies on a local file system; None if it does not."""
    store = getattr(array, "store", None)
    return Path(store.root) / array.path if isinstance(array, zarr.Array) and isinstance(store, LocalStore) else None
