"""Reading a stack of slices from TIFF: a file of many pages, or a folder of files with one page each."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffFrame, TiffPage

from emseg.box import Triple, triple
from emseg.errors import VolumeError
from emseg.specs.volume import DTYPES, LONGEST_AXIS
from emseg.store.blame import reason
from emseg.store.decompress import TooLargeError
from emseg.store.place import local
from emseg.store.slices import slice_files
from emseg.store.stack import Known, Stack
from emseg.store.tiff_chain import chain_length
from emseg.store.tiff_decoders import bound_decoder
from emseg.store.tiff_ome import refuse_claims
from emseg.store.tiff_size import stated_size

STACK_AXES = "ZTIQ"
"""What tifffile calls an axis of slices: z, time, sequence, unknown."""

BLACK_IS_ZERO = 1
"""Value of the tag PhotometricInterpretation for plain grey."""


@contextmanager
def open_tiff(
    source: str | Path, dtypes: tuple[str, ...] = DTYPES, *, allow_missing: bool = False, known: Known | None = None
) -> Iterator[Stack]:
    """The stack in a TIFF file or in a folder of TIFF slices, for as long as the ``with`` lasts.

    All headers are read at once, of a folder that is known with its slices; voxels only when they are asked for.

    Parameters
    ----------
    dtypes
        Names of the NumPy types that will do.
    allow_missing
        Whether slices of a folder may be missing; they are 0.
    known
        What a folder was found to be before; None to look into all of its files.

    Raises
    ------
    VolumeError
        If there is no such stack, or one that emseg cannot read; the message says why and what helps.
    """
    path = local(source)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise VolumeError(f"{str(source)!r} cannot be read ({reason(error)}): check the spelling of the path") from error
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
        with _damage(f"the TIFF file {path}"):
            refuse_claims(path, tif)
            series = tif.series[0]
            self._pages: Sequence[TiffPage | TiffFrame | None] = series.pages
            self._offset, axes, shape = series.dataoffset, series.axes, series.shape
            if len(tif.series) > 1:  # pages that differ, if only in how they are compressed
                self._pages, self._offset = _alike(path, tif), None
                axes, shape = "IYX", (len(self._pages), *series.keyframe.shape)
            self.dtype = _grey(path, series.keyframe, dtypes)
            self._stored = np.dtype(self.dtype).newbyteorder(tif.byteorder)
            self.shape = _stack_shape(path, axes, shape)
            _refuse_gaps(series.keyframe)
            self.stated = stated_size(tif, self.shape[0])
            held, said = len(self._pages), self.shape[0]
            if self._offset is not None:
                held = (path.stat().st_size - self._offset) // (self.shape[1] * self.shape[2] * self._stored.itemsize)
            if series.kind != "imagej" and tif.imagej_metadata:  # tifffile ignores this header if the file is too short for it
                said = max(said, int(tif.imagej_metadata.get("images", 1)))
            if held < said:
                raise VolumeError(
                    f"{path} should hold {reprlib.repr(said)} slices, but holds {held}: it is cut short, so copy it again"
                )

    def read(self, start: int, stop: int) -> NDArray[Any]:
        height, width = self.shape[1:]
        voxels = _room((stop - start, height, width), self.dtype)
        with _damage(f"slices {start} to {stop - 1} of {self._path}"):
            if self._offset is not None:
                # not np.memmap: a file cut short meanwhile, or a failing disk, would end the process
                plane = height * width
                offset = self._offset + start * plane * self._stored.itemsize
                voxels[:] = np.fromfile(self._path, self._stored, plane * len(voxels), offset=offset).reshape(voxels.shape)
                return voxels
            for voxel_slice, page in zip(voxels, self._pages[start:stop], strict=True):
                voxel_slice[:] = _whole(page, voxel_slice.shape)
        return voxels


class _Folder:
    """A folder of files with one page each."""

    def __init__(self, path: Path, dtypes: tuple[str, ...], allow_missing: bool, known: Known | None) -> None:
        self._slices, self._dtypes = slice_files(path, allow_missing=allow_missing), dtypes
        self._kind: tuple[tuple[int, ...], str] | None = None if known is None else (known.shape[1:], known.dtype)
        stated = set()
        for file in self._slices.files if known is None else ():
            with _open(file) as tif, _damage(f"the TIFF file {file}"):
                self._kind = self._kind or self._kind_of(file, tif)
                self._refuse_other(file, tif)
                stated.add(stated_size(tif, self._slices.depth))
        assert self._kind is not None
        shape, self.dtype = self._kind
        self.shape = _checked(path, (self._slices.depth, *shape))
        self.missing = self._slices.missing
        self.stated = stated.pop() if len(stated) == 1 else None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        voxels = _room((stop - start, *self.shape[1:]), self.dtype)
        voxels[[place - start for place in self.missing if start <= place < stop]] = 0
        for place, file in self._slices.within(start, stop):
            with _open(file) as tif, _damage(f"the TIFF file {file}"):
                self._refuse_other(file, tif)
                voxels[place] = _whole(tif.pages.first, self.shape[1:])
        return voxels

    def _kind_of(self, file: Path, tif: TiffFile) -> tuple[tuple[int, ...], str]:
        """Shape (y, x) and type of the slice in a file."""
        if len(tif.pages) != 1:
            raise VolumeError(f"{file} has {len(tif.pages)} pages, but files in a folder have one: name that file alone")
        return tif.pages.first.shape, _grey(file, tif.pages.first, self._dtypes)

    def _refuse_other(self, file: Path, tif: TiffFile) -> None:
        """Refuses a slice of another size or type than the first."""
        assert self._kind is not None
        if (found := self._kind_of(file, tif)) != self._kind:
            raise VolumeError(
                f"{self._slices.files[0].name} is {self._kind[0]} {self._kind[1]}, but {file.name} is {found[0]} {found[1]}: "
                f"give all slices in {file.parent} one size and type"
            )


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Turns whatever a damaged file makes tifffile raise into a `VolumeError`."""
    try:
        yield
    except VolumeError:
        raise
    except Exception as error:
        missing = isinstance(error, ImportError) or "imagecodecs" in str(error)
        remedy = "install imagecodecs, or save it without compression" if missing else "copy it again"
        raise VolumeError(f"{what} cannot be read ({reason(error)}): {remedy}") from error


@contextmanager
def _open(path: Path) -> Iterator[TiffFile]:
    """A TIFF file all of whose pages can be found."""
    try:
        said = chain_length(path)
        tif = TiffFile(path)
    except Exception as error:
        raise VolumeError(f"{path} cannot be opened as TIFF ({reason(error)}): name a TIFF file, or copy it again") from error
    with tif:
        with _damage(f"the TIFF file {path}"):
            if said != (found := len(tif.pages)):
                raise VolumeError(f"{path} should hold {said} pages, but {found} can be read: copy it again")
        yield tif


def _stack_shape(path: Path, axes: str, shape: tuple[int, ...]) -> Triple:
    """Shape (z, y, x) of a series that is one stack of slices."""
    long = "".join(axis for axis, length in zip(axes, shape, strict=True) if length > 1 or axis in "YX")
    if long not in ("YX", *(f"{axis}YX" for axis in STACK_AXES)):
        raise VolumeError(
            f"{path} has axes {reprlib.repr(axes)[1:-1]} of lengths {reprlib.repr(shape)}, "
            "but emseg reads one stack of slices: save it as a z stack"
        )
    return _checked(path, (math.prod(shape[:-2]), *shape[-2:]))


def _checked(path: Path, shape: tuple[int, ...]) -> Triple:
    """The shape of a stack, if a volume can have it."""
    found = triple(map(index, shape))
    if min(found) < 1 or max(found) > LONGEST_AXIS:
        raise VolumeError(
            f"{path} has {reprlib.repr(found[0])} slices of {reprlib.repr(found[1:])} voxels, "
            f"but an axis has 1 to {LONGEST_AXIS}: it is damaged, so copy it again"
        )
    return found


def _room(shape: Triple, dtype: str) -> NDArray[Any]:
    """Memory for slices."""
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise VolumeError(
            f"{shape[0]} slices of {shape[1:]} voxels do not fit into memory ({reason(error)}): if they should be smaller, "
            "copy them again, else use a machine with more memory"
        ) from error


def _alike(path: Path, tif: TiffFile) -> list[TiffPage | TiffFrame | None]:
    """All pages of a file, if they have one size and type."""
    pages = list(tif.pages)
    first = pages[0]
    for number, page in enumerate(pages):
        if (page.shape, page.dtype) != (first.shape, first.dtype):
            one, other = (f"{reprlib.repr(found.shape)} {found.dtype}" for found in (first, page))
            raise VolumeError(f"page 0 of {path} is {one}, but page {number} is {other}: keep pages of one size and type")
    return list(pages)


def _grey(path: Path, page: TiffPage, dtypes: tuple[str, ...]) -> str:
    """Name of the type of a page of plain grey that emseg can read."""
    tag = page.tags.valueof("PhotometricInterpretation", default=BLACK_IS_ZERO)
    if page.samplesperpixel != 1 or tag != BLACK_IS_ZERO or page.imagedepth != 1 or len(page.shape) != 2:
        name = getattr(tag, "name", reprlib.repr(tag))
        raise VolumeError(
            f"{path} has pages of shape {reprlib.repr(page.shape)} and colours {name}, "
            "but emseg reads plain grey where black is zero: save it as grey"
        )
    dtype = "of an unknown type" if page.dtype is None else page.dtype.name
    if dtype not in dtypes:
        raise VolumeError(f"{path} is {dtype}, but emseg reads {', '.join(dtypes)}: convert it first, to uint8 say")
    return dtype


def _whole(page: TiffPage | TiffFrame | None, shape: tuple[int, ...]) -> NDArray[Any]:
    """The pixels ``(y, x)`` of a page."""
    if page is None:
        raise VolumeError("the OME-TIFF lacks a page that its OME-XML describes: copy all its files again")
    _refuse_gaps(page)
    if (
        max(start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True))
        > page.parent.filehandle.size
    ):
        raise VolumeError(f"page {page.index} of {page.parent.filehandle.path} is cut short: copy the file again")
    bound_decoder(page)
    try:
        pixels = page.asarray()
    except TooLargeError as error:
        where = f"a strip or tile of page {page.index} of {page.parent.filehandle.path}"
        raise VolumeError(f"{where} is damaged, {error}: copy the file again") from error
    if pixels.shape != shape:
        raise VolumeError(
            f"page {page.index} of {page.parent.filehandle.path} is {pixels.shape}, the first is {shape}: copy it again"
        )
    return pixels


def _refuse_gaps(page: TiffPage | TiffFrame) -> None:
    """Refuses a page some of whose strips or tiles are not in the file; tifffile would make up what is missing."""
    path, parts = page.parent.filehandle.path, math.prod(page.chunked)
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) != parts or len(counts) != parts:
        raise VolumeError(
            f"page {page.index} of {path} should have {parts} strips or tiles, but states the places of {len(offsets)} "
            f"and the lengths of {len(counts)}: copy the file again"
        )
    if 0 in offsets or (0 in counts and not page.is_contiguous):
        raise VolumeError(f"page {page.index} of {path} lacks strips or tiles: copy the file again, or save it without gaps")
