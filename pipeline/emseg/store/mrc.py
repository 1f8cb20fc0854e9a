"""Reading a stack of slices from an MRC file, with mrcfile, an extra: https://www.ccpem.ac.uk/mrc-format/mrc2014/."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import AXES, triple
from emseg.errors import VolumeError
from emseg.specs.volume import DTYPES
from emseg.store.blame import reason
from emseg.store.extras import load_extra
from emseg.store.stack import Stack, Stated

MRC_SUFFIXES = (".mrc", ".map", ".rec", ".st", ".ali")
UNITS = ("angstrom", "angstrom", "angstrom")


@contextmanager
def open_mrc(path: Path) -> Iterator[Stack]:
    """The stack in an MRC file, for as long as the ``with`` lasts.

    Its voxel size and origin are those of the header, in Angstrom; a size of 0 is none.

    Raises
    ------
    VolumeError
        If mrcfile is not installed, or there is no such stack, or one that emseg cannot read.
    """
    mrcfile = load_extra("mrcfile", "mrc", path)
    try:
        with mrcfile.open(path, mode="r", header_only=True) as opened:
            header, size = opened.header, opened.voxel_size
            stored = mrcfile.utils.dtype_from_mode(header.mode).newbyteorder(header.mode.dtype.byteorder)
    except Exception as error:  # whatever a damaged header leads to
        raise VolumeError(f"{path} cannot be opened as MRC ({reason(error)}): name an MRC file, or copy it again") from error
    yield _Mrc(path, header, size, stored)


class _Mrc:
    """A file whose voxels are (z, y, x), behind a header and an extension of it."""

    missing: tuple[int, ...] = ()

    def __init__(self, path: Path, header: np.recarray[Any, Any], size: np.recarray[Any, Any], stored: np.dtype[Any]) -> None:
        self._path, self._stored = path, stored
        self._offset = header.nbytes + int(header.nsymbt)
        self.dtype = stored.newbyteorder("=").name
        if self.dtype not in DTYPES:
            raise VolumeError(f"{path} is {self.dtype}, but emseg reads {', '.join(DTYPES)}: convert it first, to mode 6 say")
        self.shape = triple(int(length) for length in (header.nz, header.ny, header.nx))
        held, said = path.stat().st_size - self._offset, math.prod(self.shape) * stored.itemsize
        if min(self.shape) < 1 or held < said:
            raise VolumeError(f"{path} should hold {self.shape} voxels, {said} bytes, but holds {held}: copy it again")
        scale = (float(size.z), float(size.y), float(size.x))
        first = tuple(float(header.origin[axis]) for axis in AXES)
        self.stated = Stated(scale, UNITS, "the header", (first[0], first[1], first[2])) if min(scale) > 0 else None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        plane, count = self.shape[1] * self.shape[2], stop - start
        offset = self._offset + start * plane * self._stored.itemsize
        # not mapped into memory: a file cut short meanwhile, or a failing disk, would end the process
        found = np.fromfile(self._path, self._stored, count * plane, offset=offset)
        if len(found) < count * plane:
            raise VolumeError(f"slices {start} to {stop - 1} of {self._path} are not there any more: copy it again")
        return found.astype(self.dtype, copy=False).reshape(count, *self.shape[1:])
