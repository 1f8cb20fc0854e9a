"""Which library reads a stack of slices: by the end of its name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from emseg.errors import VolumeError
from emseg.store.array_stack import Array, ArrayStack
from emseg.store.hdf5 import HDF5_SUFFIXES, open_hdf5
from emseg.store.mrc import MRC_SUFFIXES, open_mrc
from emseg.store.n5 import is_n5, open_n5
from emseg.store.nodes import PNG_SUFFIXES, TIFF_SUFFIXES
from emseg.store.place import local
from emseg.store.png import PngFolder
from emseg.store.precomputed import is_precomputed, open_precomputed
from emseg.store.stack import Known, Stack
from emseg.store.tiff import open_tiff


def open_stack(
    source: str | Path | Array, dataset: str | None = None, *, allow_missing: bool = False, known: Known | None = None
) -> AbstractContextManager[Stack]:
    """The stack that an array is, or one in a file, a folder of slices, an N5 container or a precomputed volume.

    It is open for as long as the ``with`` lasts.

    Parameters
    ----------
    dataset
        Path of the dataset in an HDF5 file or an N5 container; None if there is only one.
    allow_missing
        Whether slices of a folder, or chunks of N5 and precomputed, may be missing; they are 0.
    known
        What the stack was found to be before; None to look into all slices of a folder.

    Raises
    ------
    VolumeError
        If there is no such stack, or one that emseg cannot read; the message says why and what helps.
    """
    if not isinstance(source, str | Path):
        return nullcontext(ArrayStack(source))
    path = local(source)
    suffix = path.suffix.lower() if path.is_file() else ""
    if suffix in HDF5_SUFFIXES:
        return open_hdf5(path, dataset, allow_missing=allow_missing, known=known)
    if is_n5(path):
        return nullcontext(open_n5(path, dataset, allow_missing=allow_missing))
    if dataset is not None:
        raise VolumeError(
            f"{path} has no datasets, as it is no HDF5 file ({', '.join(HDF5_SUFFIXES)}) and no N5: leave --dataset out"
        )
    if is_precomputed(path):
        return nullcontext(open_precomputed(path, allow_missing=allow_missing))
    if suffix in MRC_SUFFIXES:
        return open_mrc(path)
    if path.is_dir() and _of_png(path):
        return nullcontext(PngFolder(path, allow_missing=allow_missing, known=known))
    return open_tiff(source, allow_missing=allow_missing, known=known)


def _of_png(folder: Path) -> bool:
    """Whether the slices in a folder are PNG files.

    Raises
    ------
    VolumeError
        If there are TIFF files as well.
    """
    found = {file.suffix.lower() for file in folder.iterdir() if not file.name.startswith(".")}
    if found & set(PNG_SUFFIXES) and found & set(TIFF_SUFFIXES):
        raise VolumeError(f"{folder} holds PNG and TIFF files: keep one kind there")
    return bool(found & set(PNG_SUFFIXES))
