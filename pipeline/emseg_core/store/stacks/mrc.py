"""Read a stack of slices from an MRC file, with mrcfile, an optional dependency.

Format: https://www.ccpem.ac.uk/mrc-format/mrc2014/.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import AXES, three, triple
from emseg_core.errors import VolumeError
from emseg_core.specs.volume import DTYPES, check_dtype
from emseg_core.store.files.extras import load_extra
from emseg_core.store.files.faults import translate_damage
from emseg_core.store.stacks.stack import Stack, StatedVoxelSize

MRC_SUFFIXES = (".mrc", ".map", ".rec", ".st", ".ali")
UNITS = ("angstrom", "angstrom", "angstrom")


@contextmanager
def open_mrc(path: Path) -> Iterator[Stack]:
    """Open the stack in an MRC file, for as long as the ``with`` block lasts.

    The voxel size and origin are those of the header, in angstroms; a size of 0 means that none is stated.

    Parameters
    ----------
    path
        Path of the file.

    Yields
    ------
    Stack
        The open stack.

    Raises
    ------
    VolumeError
        If mrcfile is not installed, there is no such stack, or emseg cannot read it.
    """
    mrcfile = load_extra("mrcfile", "mrc", path)
    with (
        translate_damage(f"{path} cannot be opened as MRC", "give an MRC file, or copy it again"),
        mrcfile.open(path, mode="r", header_only=True) as opened,
    ):
        header, size = opened.header, opened.voxel_size
        stored = mrcfile.utils.dtype_from_mode(header.mode).newbyteorder(header.mode.dtype.byteorder)
    yield _Mrc(path, header, size, stored)


class _Mrc:
    """A file whose voxels (z, y, x) follow a header and an extended header."""

    missing: tuple[int, ...] = ()

    def __init__(self, path: Path, header: np.recarray[Any, Any], size: np.recarray[Any, Any], stored: np.dtype[Any]) -> None:
        self._path, self._stored = path, stored
        self._offset = header.nbytes + int(header.nsymbt)
        self.dtype = stored.newbyteorder("=").name
        check_dtype(path, self.dtype, DTYPES, "convert it first, for example to mode 6")
        self.shape = triple(int(length) for length in (header.nz, header.ny, header.nx))
        held, said = path.stat().st_size - self._offset, math.prod(self.shape) * stored.itemsize
        if min(self.shape) < 1 or held < said:
            raise VolumeError(f"{path} should hold {self.shape} voxels, {said} bytes, but holds {held}: copy it again")
        scale = (float(size.z), float(size.y), float(size.x))
        first = three(float(header.origin[axis]) for axis in AXES)
        self.stated = StatedVoxelSize(scale, UNITS, "the header", first) if min(scale) > 0 else None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        plane, count = self.shape[1] * self.shape[2], stop - start
        offset = self._offset + start * plane * self._stored.itemsize
        # no memory map: if the file is truncated meanwhile, or the disk fails, that would kill the process
        found = np.fromfile(self._path, self._stored, count * plane, offset=offset)
        if len(found) < count * plane:
            raise VolumeError(f"slices {start} to {stop - 1} of {self._path} no longer exist: copy it again")
        return found.astype(self.dtype, copy=False).reshape(count, *self.shape[1:])
