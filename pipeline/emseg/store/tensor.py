"""Reading arrays whose x comes first, of N5 and Neuroglancer precomputed, with tensorstore, an extra."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import AXES, Box, triple
from emseg.errors import VolumeError
from emseg.store.blame import reason
from emseg.store.chunk_cache import places_of
from emseg.store.extras import load_extra
from emseg.store.stack import Stated

LIBRARY = "tensorstore"
"""Name of the library, and of the extra that installs it."""
MISSING_DATA = "NOT_FOUND"
"""How tensorstore begins where a chunk has no file."""

ROOM = 2**16
"""What headers may add to a chunk, which compressing in vain makes twice as long at most."""
MOST_HEADER = 256
"""Bytes in which the headers of a chunk are."""
MOST_BYTES = 2**31
"""Most bytes of a chunk: tensorstore takes memory for as many as metadata say, and ends the process where there are none."""


def open_tensor(driver: str, path: Path, *, allow_missing: bool, **spec: Any) -> Any:
    """The array in a folder, opened by tensorstore; with `allow_missing`, chunks that have no file read as 0.

    Raises
    ------
    VolumeError
        If tensorstore is not installed, or cannot open it.
    """
    tensorstore = load_extra(LIBRARY, LIBRARY, path)
    store = {"driver": "file", "path": f"{path}/"}
    try:
        return tensorstore.open({"driver": driver, "kvstore": store, "fill_missing_data_reads": allow_missing, **spec}).result()
    except Exception as error:
        raise VolumeError(f"{path} cannot be opened ({why(error)}): copy it again, or convert it first") from error


def why(error: Exception) -> str:
    """Why tensorstore failed, without where in its source that was."""
    return reason(error).partition(" [")[0]


class Tensor:
    """An open array; fulfils `emseg.store.stack.ChunkedStack`."""

    missing: tuple[int, ...] = ()

    def __init__(
        self,
        path: Path,
        array: Any,
        axes: tuple[str, ...],
        dtypes: tuple[str, ...],
        stated: Stated | None,
        file_of: Callable[[Box], Path] | None = None,
    ) -> None:
        """Raises `VolumeError` unless its axes, named in the order of the array, are one volume of one of the types.

        Parameters
        ----------
        array
            As tensorstore has it.
        dtypes
            Names of the NumPy types that will do.
        file_of
            Where a chunk is stored, by its voxels; None if several are in one file.
        """
        self._file_of = file_of
        self._path, self.stated = path, stated
        lengths = dict(zip(axes, array.shape, strict=True))
        spatial = [axis for axis in AXES if axis in lengths]
        rest = [axis for axis in axes if axis not in AXES]
        if spatial[-2:] != ["y", "x"] or len(lengths) < len(axes) or any(lengths[axis] != 1 for axis in rest):
            said = ", ".join(f"{axis}: {length}" for axis, length in zip(axes, array.shape, strict=True))
            raise VolumeError(f"{path} has axes ({said}), but emseg reads one volume of x, y and z: copy that part of it")
        self.dtype = array.dtype.name
        if self.dtype not in dtypes:
            raise VolumeError(f"{path} is {self.dtype}, but emseg reads {', '.join(dtypes)}: convert it first")
        self.shape = triple(lengths.get(axis, 1) for axis in AXES)
        if min(self.shape) < 1:
            raise VolumeError(f"{path} has shape {self.shape}, which holds no voxel: copy it again")
        chunk = array.chunk_layout.read_chunk.shape or ()
        if math.prod(map(int, chunk)) * array.dtype.numpy_dtype.itemsize > MOST_BYTES:
            raise VolumeError(
                f"{path} says that its chunks have shape {chunk}, which no memory holds: it is damaged, copy it again"
            )
        self._blosc = "blosc" in str(array.codec)
        self._array = array.transpose([axes.index(axis) for axis in (*rest, *spatial)])
        self._axes = len(spatial)
        inner = self._array.chunk_layout.read_chunk.shape or self._array.shape
        self._chunk = triple((1,) * (3 - self._axes) + tuple(map(int, inner[-self._axes :])))

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Slices from `start` to before `stop`, ``(z, y, x)``."""
        return self.read_box(Box((start, 0, 0), (stop, *self.shape[1:])))

    def read_box(self, box: Box) -> NDArray[Any]:
        """The voxels of a box, ``(z, y, x)``."""
        found = self._read(box)
        if not self._path.is_dir():  # what is missing may read as 0
            raise VolumeError(f"{self._path} is not there any more: mount or restore it")
        for place in places_of(box, self._chunk):
            part = Box.at(place, self._chunk).intersect(box)
            if not found[part.relative_to(box.start).slices()].any() and self._read(part).any():
                raise VolumeError(f"{self._path} was away for a moment: mount or restore it, and run again")
        return found

    def _refuse_long(self, box: Box) -> None:
        """Refuses chunks whose files, or what these say to decompress to, are too long: tensorstore reads all of it."""
        most = math.prod(self._chunk) * np.dtype(self.dtype).itemsize
        if self._file_of is None:
            return
        for place in places_of(box, self._chunk):
            file = self._file_of(Box.at(place, self._chunk))
            try:
                size = file.stat().st_size
                with file.open("rb") as stored:
                    head = stored.read(MOST_HEADER)
            except OSError:
                continue  # a chunk that is missing is told of as such
            said = self._says(head)
            for what, found in (("has", size), ("says that it decompresses to", said)):
                if found > 2 * most + ROOM:
                    raise VolumeError(f"the chunk {file} {what} {found} bytes, but should have {most}: copy it again")

    def _says(self, head: bytes) -> int:
        """Bytes that a chunk of N5 says to decompress to, by its first bytes, where that is in a header of Blosc; else 0."""
        start = 4 + 4 * self._array.ndim
        return int.from_bytes(head[start + 4 : start + 8], "little") if self._blosc else 0

    def _read(self, box: Box) -> NDArray[Any]:
        self._refuse_long(box)
        origin = self._array.domain.origin  # a precomputed volume may begin anywhere
        front = self._array.ndim - self._axes
        where = tuple(
            slice(first + part.start, first + part.stop)
            for first, part in zip(origin[front:], box.slices()[-self._axes :], strict=True)
        )
        try:
            found = np.asarray(self._array[(*origin[:front], *where)].read().result())
        except Exception as error:  # a damaged chunk may raise anything
            cause = why(error)
            remedy = "copy it again" + (", or read what is missing as 0 with --allow-missing" if MISSING_DATA in cause else "")
            raise VolumeError(f"the voxels {box} of {self._path} cannot be read ({cause}): {remedy}") from error
        return np.ascontiguousarray(found, self.dtype).reshape(box.shape)
