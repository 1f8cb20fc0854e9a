"""Read arrays with x first, as in N5 and Neuroglancer precomputed, with tensorstore, an optional dependency."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import AXES, Box, triple
from emseg_core.errors import VolumeError
from emseg_core.specs.volume import check_dtype
from emseg_core.store.files.extras import load_extra
from emseg_core.store.files.faults import describe_error
from emseg_core.store.stacks.stack import StatedVoxelSize

LIBRARY = "tensorstore"
"""Name of the library, and of the extra that installs it."""
MISSING_CHUNK_STATUS = "NOT_FOUND"
"""How a message of tensorstore starts if a chunk has no file."""

CHUNK_OVERHEAD_BYTES = 2**16
"""Most bytes that headers add to a chunk, besides compression that at most doubles its length."""
HEADER_BYTES = 256
"""Bytes at the start of a chunk file that contain its headers."""
MAX_CHUNK_BYTES = 2**31
"""Most bytes of a chunk: tensorstore allocates as many as the metadata state, and aborts the process if that fails."""


def open_tensor(driver: str, path: Path, *, allow_missing: bool, **spec: Any) -> Any:
    """Open the array in a folder with tensorstore.

    Parameters
    ----------
    driver
        Driver of tensorstore.
    path
        Folder of the array.
    allow_missing
        Whether chunks without a file read as 0.
    spec
        Further fields of the tensorstore spec.

    Returns
    -------
    tensorstore.TensorStore
        The open array.

    Raises
    ------
    VolumeError
        If tensorstore is not installed, or cannot open the array.
    """
    tensorstore = load_extra(LIBRARY, LIBRARY, path)
    store = {"driver": "file", "path": f"{path}/"}
    try:
        return tensorstore.open({"driver": driver, "kvstore": store, "fill_missing_data_reads": allow_missing, **spec}).result()
    except Exception as error:
        raise VolumeError(
            f"{path} cannot be opened ({describe_tensorstore_error(error)}): copy it again, or convert it first"
        ) from error


def describe_tensorstore_error(error: Exception) -> str:
    """Describe why tensorstore failed, without its source location.

    Parameters
    ----------
    error
        What tensorstore raised.

    Returns
    -------
    str
        The reason, for an error message.
    """
    return describe_error(error).partition(" [")[0]


class TensorStack:
    """An open array; implements `emseg_core.store.stacks.stack.ChunkedStack`."""

    missing: tuple[int, ...] = ()

    def __init__(
        self,
        path: Path,
        array: Any,
        axes: tuple[str, ...],
        dtypes: tuple[str, ...],
        stated: StatedVoxelSize | None,
        file_of: Callable[[Box], Path] | None = None,
    ) -> None:
        """Check that an array is one volume.

        Parameters
        ----------
        path
            Folder of the array.
        array
            Open array of tensorstore.
        axes
            Name of each axis, in the order of the array.
        dtypes
            Names of the accepted NumPy dtypes.
        stated
            Voxel size that the metadata state.
        file_of
            Returns the path of the chunk with these voxels; None if a file holds several chunks.

        Raises
        ------
        VolumeError
            If the axes are not those of one volume, the dtype is not accepted, or chunks are too large.
        """
        self._file_of = file_of
        self._path, self.stated = path, stated
        lengths = dict(zip(axes, array.shape, strict=True))
        spatial = [axis for axis in AXES if axis in lengths]
        rest = [axis for axis in axes if axis not in AXES]
        if spatial[-2:] != ["y", "x"] or len(lengths) < len(axes) or any(lengths[axis] != 1 for axis in rest):
            said = ", ".join(f"{axis}: {length}" for axis, length in zip(axes, array.shape, strict=True))
            raise VolumeError(
                f"{path} has axes ({said}), but emseg reads one volume of x, y and z: copy that part to a new array"
            )
        self.dtype = array.dtype.name
        check_dtype(path, self.dtype, dtypes)
        self.shape = triple(lengths.get(axis, 1) for axis in AXES)
        if min(self.shape) < 1:
            raise VolumeError(f"{path} has shape {self.shape}, which contains no voxels: copy it again")
        chunk = array.chunk_layout.read_chunk.shape or ()
        if math.prod(map(int, chunk)) * array.dtype.numpy_dtype.itemsize > MAX_CHUNK_BYTES:
            raise VolumeError(
                f"{path} states the chunk shape {chunk}, more than {MAX_CHUNK_BYTES} bytes: it is damaged, copy it again"
            )
        self._blosc = "blosc" in str(array.codec)
        self._array = array.transpose([axes.index(axis) for axis in (*rest, *spatial)])
        self._axes = len(spatial)
        inner = self._array.chunk_layout.read_chunk.shape or self._array.shape
        self._chunk = triple((1,) * (3 - self._axes) + tuple(map(int, inner[-self._axes :])))

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read slices from `start` to before `stop`.

        Parameters
        ----------
        start, stop
            First slice, and the one after the last.

        Returns
        -------
        ndarray
            ``(z, y, x)``.

        Raises
        ------
        VolumeError
            If a chunk is damaged or, unless that is allowed, missing.
        """
        return self.read_box(Box((start, 0, 0), (stop, *self.shape[1:])))

    def read_box(self, box: Box) -> NDArray[Any]:
        """Read the voxels of a box.

        Parameters
        ----------
        box
            A box within the stack, in voxels.

        Returns
        -------
        ndarray
            ``(z, y, x)``.

        Raises
        ------
        VolumeError
            If a chunk is damaged or, unless that is allowed, missing.
        """
        found = self._read(box)
        if not self._path.is_dir():  # its chunks would read as 0
            raise VolumeError(f"{self._path} no longer exists: mount or restore it")
        for place in box.cells(self._chunk):
            part = Box.at(place, self._chunk).intersect(box)
            if not found[part.relative_to(box.start).slices()].any() and self._read(part).any():
                raise VolumeError(f"{self._path} was unavailable for a moment: mount or restore it, and run again")
        return found

    def _refuse_long(self, box: Box) -> None:
        """Raise a `VolumeError` for chunks that are, or claim to decompress to, too many bytes: tensorstore would read all."""
        most = math.prod(self._chunk) * np.dtype(self.dtype).itemsize
        if self._file_of is None:
            return
        for place in box.cells(self._chunk):
            file = self._file_of(Box.at(place, self._chunk))
            try:
                size = file.stat().st_size
                with file.open("rb") as stored:
                    head = stored.read(HEADER_BYTES)
            except OSError:
                continue  # reading it reports a missing chunk
            said = self._claimed_bytes(head)
            for what, found in (("has", size), ("claims to decompress to", said)):
                if found > 2 * most + CHUNK_OVERHEAD_BYTES:
                    raise VolumeError(f"the chunk {file} {what} {found} bytes, but should have {most}: copy it again")

    def _claimed_bytes(self, head: bytes) -> int:
        """Return the decompressed length that the Blosc header of an N5 chunk states; 0 if it has none."""
        start = 4 + 4 * self._array.ndim
        return int.from_bytes(head[start + 4 : start + 8], "little") if self._blosc else 0

    def _read(self, box: Box) -> NDArray[Any]:
        """Read a box, whatever the state of the store."""
        self._refuse_long(box)
        origin = self._array.domain.origin  # a precomputed volume may start at any voxel
        front = self._array.ndim - self._axes
        spans = zip(origin[front:], box.slices()[-self._axes :], strict=True)
        where = tuple(slice(first + part.start, first + part.stop) for first, part in spans)
        try:
            found = np.asarray(self._array[(*origin[:front], *where)].read().result())
        except Exception as error:  # a damaged chunk may raise anything
            cause = describe_tensorstore_error(error)
            more = ", or read missing chunks as 0 with --allow-missing" if MISSING_CHUNK_STATUS in cause else ""
            raise VolumeError(f"the voxels {box} of {self._path} cannot be read ({cause}): copy it again{more}") from error
        return np.ascontiguousarray(found, self.dtype).reshape(box.shape)
