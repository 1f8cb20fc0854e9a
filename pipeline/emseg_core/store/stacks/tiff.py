"""Read a stack of slices from TIFF: a file of many pages, or a folder of files with one page each."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffFrame, TiffPage

from emseg_core.box import Triple, triple
from emseg_core.errors import VolumeError
from emseg_core.specs.volume import DTYPES, MAX_AXIS_LENGTH, check_dtype
from emseg_core.store.files.decompress import TooLargeError
from emseg_core.store.files.faults import describe_error, translate_damage
from emseg_core.store.files.place import local_path
from emseg_core.store.stacks.slices import slice_files
from emseg_core.store.stacks.stack import KnownStack, Stack
from emseg_core.store.stacks.tiff_chain import chain_length
from emseg_core.store.stacks.tiff_decoders import limit_decoder
from emseg_core.store.stacks.tiff_ome import check_ome_claims
from emseg_core.store.stacks.tiff_size import stated_size

STACK_AXES = "ZTIQ"
"""Names that tifffile gives to an axis of slices: z, time, sequence, unknown."""

BLACK_IS_ZERO = 1
"""Value of the tag PhotometricInterpretation for greyscale."""


@contextmanager
def open_tiff(
    source: str | Path, dtypes: tuple[str, ...] = DTYPES, *, allow_missing: bool = False, known: KnownStack | None = None
) -> Iterator[Stack]:
    """Open the stack in a TIFF file or in a folder of TIFF slices, for as long as the ``with`` block lasts.

    All headers are read at once, except those of a folder with `known`, which are read with its slices. Voxels are read on
    demand.

    Parameters
    ----------
    source
        Path of the file or folder.
    dtypes
        Names of the accepted NumPy dtypes.
    allow_missing
        Whether slices of a folder may be missing; they read as 0.
    known
        What a folder was found to be when it was opened before; None to check all of its files.

    Yields
    ------
    Stack
        The open stack.

    Raises
    ------
    VolumeError
        If there is no such stack, or emseg cannot read it; the message says why and how to fix it.
    """
    path = local_path(source)
    with translate_damage(f"{str(source)!r} cannot be read", "check the spelling of the path"):
        path.stat()
    if path.is_dir():
        yield _Folder(path, dtypes, allow_missing, known)
    else:
        with _open(path) as tif:
            yield _File(path, tif, dtypes)


class _File:
    """A file of many pages."""

    missing: tuple[int, ...] = ()

    def __init__(self, path: Path, tif: TiffFile, dtypes: tuple[str, ...]) -> None:
        self._path = path
        with _unreadable(f"the TIFF file {path}"):
            check_ome_claims(path, tif)
            series = tif.series[0]
            self._pages: Sequence[TiffPage | TiffFrame | None] = series.pages
            self._offset, axes, shape = series.dataoffset, series.axes, series.shape
            if len(tif.series) > 1:  # pages differ, at least in their compression
                self._pages, self._offset = _uniform_pages(path, tif), None
                axes, shape = "IYX", (len(self._pages), *series.keyframe.shape)
            self.dtype = _grey_dtype(path, series.keyframe, dtypes)
            self._stored = np.dtype(self.dtype).newbyteorder(tif.byteorder)
            self.shape = _stack_shape(path, axes, shape)
            _refuse_gaps(series.keyframe)
            self.stated = stated_size(tif, self.shape[0])
            held, said = len(self._pages), self.shape[0]
            if self._offset is not None:
                held = (path.stat().st_size - self._offset) // (self.shape[1] * self.shape[2] * self._stored.itemsize)
            if series.kind != "imagej" and tif.imagej_metadata:  # tifffile ignores the header if the file is too short
                said = max(said, int(tif.imagej_metadata.get("images", 1)))
            if held < said:
                raise VolumeError(
                    f"{path} should hold {reprlib.repr(said)} slices, but holds {held}: it is truncated, copy it again"
                )

    def read(self, start: int, stop: int) -> NDArray[Any]:
        height, width = self.shape[1:]
        voxels = _allocate((stop - start, height, width), self.dtype)
        with _unreadable(f"slices {start} to {stop - 1} of {self._path}"):
            if self._offset is not None:
                # not np.memmap: if the file is truncated meanwhile, or the disk fails, that would kill the process
                plane = height * width
                offset = self._offset + start * plane * self._stored.itemsize
                voxels[:] = np.fromfile(self._path, self._stored, plane * len(voxels), offset=offset).reshape(voxels.shape)
                return voxels
            for voxel_slice, page in zip(voxels, self._pages[start:stop], strict=True):
                voxel_slice[:] = _read_page(page, voxel_slice.shape)
        return voxels


class _Folder:
    """A folder of files with one page each."""

    def __init__(self, path: Path, dtypes: tuple[str, ...], allow_missing: bool, known: KnownStack | None) -> None:
        self._slices, self._dtypes = slice_files(path, allow_missing=allow_missing), dtypes
        self._kind: tuple[tuple[int, ...], str] | None = None if known is None else (known.shape[1:], known.dtype)
        stated = set()
        for file in self._slices.files if known is None else ():
            with _open(file) as tif, _unreadable(f"the TIFF file {file}"):
                self._kind = self._kind or self._kind_of(file, tif)
                self._refuse_other(file, tif)
                stated.add(stated_size(tif, self._slices.depth))
        assert self._kind is not None
        shape, self.dtype = self._kind
        self.shape = _checked(path, (self._slices.depth, *shape))
        self.missing = self._slices.missing
        self.stated = stated.pop() if len(stated) == 1 else None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        voxels = _allocate((stop - start, *self.shape[1:]), self.dtype)
        voxels[[place - start for place in self.missing if start <= place < stop]] = 0
        for place, file in self._slices.within(start, stop):
            with _open(file) as tif, _unreadable(f"the TIFF file {file}"):
                self._refuse_other(file, tif)
                voxels[place] = _read_page(tif.pages.first, self.shape[1:])
        return voxels

    def _kind_of(self, file: Path, tif: TiffFile) -> tuple[tuple[int, ...], str]:
        """Return shape (y, x) and dtype of the slice in a file."""
        if len(tif.pages) != 1:
            raise VolumeError(
                f"{file} has {len(tif.pages)} pages, but files in a folder of slices have one: give that file alone"
            )
        return tif.pages.first.shape, _grey_dtype(file, tif.pages.first, self._dtypes)

    def _refuse_other(self, file: Path, tif: TiffFile) -> None:
        """Raise a `VolumeError` if a slice has another size or dtype than the first."""
        assert self._kind is not None
        if (found := self._kind_of(file, tif)) != self._kind:
            raise VolumeError(
                f"{self._slices.files[0].name} is {self._kind[0]} {self._kind[1]}, but {file.name} is {found[0]} {found[1]}: "
                f"give all slices in {file.parent} the same size and type"
            )


def _unreadable(what: str) -> AbstractContextManager[None]:
    """Turn any error of tifffile for a damaged file within the ``with`` block into a `VolumeError`."""

    def remedy(error: Exception) -> str:
        missing = isinstance(error, ImportError) or "imagecodecs" in str(error)
        return "install imagecodecs, or save the file without compression" if missing else "copy it again"

    return translate_damage(f"{what} cannot be read", remedy)


@contextmanager
def _open(path: Path) -> Iterator[TiffFile]:
    """Open a TIFF file after checking that all of its pages can be found."""
    with translate_damage(f"{path} cannot be opened as TIFF", "give a TIFF file, or copy it again"):
        said = chain_length(path)
        tif = TiffFile(path)
    with tif:
        with _unreadable(f"the TIFF file {path}"):
            if said != (found := len(tif.pages)):
                raise VolumeError(f"{path} should hold {said} pages, but {found} can be read: copy it again")
        yield tif


def _stack_shape(path: Path, axes: str, shape: tuple[int, ...]) -> Triple:
    """Return the shape (z, y, x) of a series that is one stack of slices."""
    long = "".join(axis for axis, length in zip(axes, shape, strict=True) if length > 1 or axis in "YX")
    if long not in ("YX", *(f"{axis}YX" for axis in STACK_AXES)):
        raise VolumeError(
            f"{path} has axes {reprlib.repr(axes)[1:-1]} of lengths {reprlib.repr(shape)}, "
            "but emseg reads one stack of slices: save it as a z stack"
        )
    return _checked(path, (math.prod(shape[:-2]), *shape[-2:]))


def _checked(path: Path, shape: tuple[int, ...]) -> Triple:
    """Return the shape of a stack, if a volume can have it."""
    found = triple(map(index, shape))
    if min(found) < 1 or max(found) > MAX_AXIS_LENGTH:
        raise VolumeError(
            f"{path} has {reprlib.repr(found[0])} slices of {reprlib.repr(found[1:])} voxels, "
            f"but an axis has 1 to {MAX_AXIS_LENGTH}: it is damaged, copy it again"
        )
    return found


def _allocate(shape: Triple, dtype: str) -> NDArray[Any]:
    """Allocate memory for slices."""
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise VolumeError(
            f"{shape[0]} slices of {shape[1:]} voxels do not fit into memory ({describe_error(error)}): copy the file again if "
            "that size is wrong, or use a machine with more memory"
        ) from error


def _uniform_pages(path: Path, tif: TiffFile) -> list[TiffPage | TiffFrame | None]:
    """Return all pages of a file, if they have one size and dtype."""
    pages = list(tif.pages)
    first = pages[0]
    for number, page in enumerate(pages):
        if (page.shape, page.dtype) != (first.shape, first.dtype):
            one, other = (f"{reprlib.repr(found.shape)} {found.dtype}" for found in (first, page))
            raise VolumeError(
                f"page 0 of {path} is {one}, but page {number} is {other}: keep only pages of the same size and type"
            )
    return list(pages)


def _grey_dtype(path: Path, page: TiffPage, dtypes: tuple[str, ...]) -> str:
    """Return the dtype of a greyscale page, if it is accepted."""
    tag = page.tags.valueof("PhotometricInterpretation", default=BLACK_IS_ZERO)
    if page.samplesperpixel != 1 or tag != BLACK_IS_ZERO or page.imagedepth != 1 or len(page.shape) != 2:
        name = getattr(tag, "name", reprlib.repr(tag))
        raise VolumeError(
            f"{path} has pages of shape {reprlib.repr(page.shape)} and photometric interpretation {name}, "
            "but emseg reads greyscale where black is zero: convert it to greyscale"
        )
    dtype = "of an unknown type" if page.dtype is None else page.dtype.name
    check_dtype(path, dtype, dtypes, "convert it first, for example to uint8")
    return dtype


def _read_page(page: TiffPage | TiffFrame | None, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read the pixels ``(y, x)`` of a page."""
    if page is None:
        raise VolumeError("a page that the OME-XML describes is missing in the OME-TIFF: copy all its files again")
    _refuse_gaps(page)
    name = f"page {page.index} of {page.parent.filehandle.path}"
    end = max(start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    if end > page.parent.filehandle.size:
        raise VolumeError(f"{name} is truncated: copy the file again")
    limit_decoder(page)
    try:
        pixels = page.asarray()
    except TooLargeError as error:
        raise VolumeError(f"a strip or tile of {name} is damaged, {error}: copy the file again") from error
    if pixels.shape != shape:
        raise VolumeError(f"{name} is {pixels.shape}, but the first is {shape}: copy it again")
    return pixels


def _refuse_gaps(page: TiffPage | TiffFrame) -> None:
    """Raise a `VolumeError` for a page with strips or tiles that are not in the file; tifffile would make them up."""
    name, parts = f"page {page.index} of {page.parent.filehandle.path}", math.prod(page.chunked)
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) != parts or len(counts) != parts:
        raise VolumeError(
            f"{name} should have {parts} strips or tiles, but states {len(offsets)} offsets "
            f"and {len(counts)} lengths: copy the file again"
        )
    if 0 in offsets or (0 in counts and not page.is_contiguous):
        raise VolumeError(f"{name} has missing strips or tiles: copy the file again, or save it without gaps")
