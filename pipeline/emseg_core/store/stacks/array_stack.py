"""Stacks made from arrays: NumPy, Dask or Zarr arrays instead of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from emseg_core.box import Triple, triple
from emseg_core.errors import VolumeError
from emseg_core.specs.volume import DTYPES, check_dtype
from emseg_core.store.stacks.stack import StatedVoxelSize


@runtime_checkable
class Array(Protocol):
    """The common interface of NumPy, Dask and Zarr arrays."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""

    @property
    def dtype(self) -> Any:
        """Data type of the voxels."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return a part of the array."""


class ArrayStack:
    """An array ``(z, y, x)`` or ``(y, x)`` as a stack of slices, which are computed or read on demand.

    Raises
    ------
    VolumeError
        If the array has other axes, no voxel, or a dtype that emseg does not read.
    """

    def __init__(self, array: Array) -> None:
        if len(array.shape) not in (2, 3) or 0 in array.shape:
            raise VolumeError(
                f"the array has shape {array.shape}, but a volume has axes (z, y, x) or (y, x): select one volume of it"
            )
        self.dtype = np.dtype(array.dtype).newbyteorder("=").name
        check_dtype("the array", self.dtype, DTYPES, "convert it with astype")
        self.shape: Triple = triple((1,) * (3 - len(array.shape)) + tuple(map(int, array.shape)))
        self.stated: StatedVoxelSize | None = None
        self.missing: tuple[int, ...] = ()
        self._array = array

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read slices from `start` to before `stop`.

        Parameters
        ----------
        start, stop
            First slice, and the one after the last.

        Returns
        -------
        ndarray
            ``(z, y, x)`` in the dtype of the stack.
        """
        part = self._array[start:stop] if len(self._array.shape) == 3 else self._array[:, :]
        values: NDArray[Any] = np.asarray(part, self.dtype)
        return values.reshape(stop - start, *self.shape[1:])


def path_of_array(array: Array) -> Path | None:
    """Return the path of a Zarr array on a local file system.

    Parameters
    ----------
    array
        Any array.

    Returns
    -------
    Path or None
        None for any other array.
    """
    store = getattr(array, "store", None)
    return Path(store.root) / array.path if isinstance(array, zarr.Array) and isinstance(store, LocalStore) else None
