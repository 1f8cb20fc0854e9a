"""Choose the reader of a stack by the name of its file or by the contents of its folder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from emseg_core.errors import VolumeError
from emseg_core.store.files.place import local_path
from emseg_core.store.stacks.array_stack import Array, ArrayStack
from emseg_core.store.stacks.hdf5 import HDF5_SUFFIXES, open_hdf5
from emseg_core.store.stacks.mrc import MRC_SUFFIXES, open_mrc
from emseg_core.store.stacks.n5 import is_n5, open_n5
from emseg_core.store.stacks.png import PngFolder
from emseg_core.store.stacks.precomputed import is_precomputed, open_precomputed
from emseg_core.store.stacks.stack import KnownStack, Stack
from emseg_core.store.stacks.tiff import open_tiff
from emseg_core.store.zarrs.nodes import PNG_SUFFIXES, TIFF_SUFFIXES


def open_stack(
    source: str | Path | Array, dataset: str | None = None, *, allow_missing: bool = False, known: KnownStack | None = None
) -> AbstractContextManager[Stack]:
    """Open a stack of slices: an array, a file, a folder of slices, an N5 container or a precomputed volume.

    The stack is open for as long as the ``with`` block lasts.

    Parameters
    ----------
    source
        Path of the stack, or an array.
    dataset
        Path of the dataset in an HDF5 file or an N5 container; None if there is only one.
    allow_missing
        Whether slices of a folder, or chunks of HDF5, N5 and precomputed, may be missing; they read as 0, or as the fill value
        of the HDF5 dataset.
    known
        What the stack was found to be when it was opened before; None to check all slices of a folder.

    Returns
    -------
    context manager of Stack
        The open stack.

    Raises
    ------
    VolumeError
        If there is no such stack, or emseg cannot read it; the message says why and how to fix it.
    """
    if not isinstance(source, str | Path):
        return nullcontext(ArrayStack(source))
    path = local_path(source)
    suffix = path.suffix.lower() if path.is_file() else ""
    if suffix in HDF5_SUFFIXES:
        return open_hdf5(path, dataset, allow_missing=allow_missing, known=known)
    if is_n5(path):
        return nullcontext(open_n5(path, dataset, allow_missing=allow_missing))
    if dataset is not None:
        raise VolumeError(f"{path} has no datasets, as it is neither HDF5 ({', '.join(HDF5_SUFFIXES)}) nor N5: omit --dataset")
    if is_precomputed(path):
        return nullcontext(open_precomputed(path, allow_missing=allow_missing))
    if suffix in MRC_SUFFIXES:
        return open_mrc(path)
    if path.is_dir() and _of_png(path):
        return nullcontext(PngFolder(path, allow_missing=allow_missing, known=known))
    return open_tiff(source, allow_missing=allow_missing, known=known)


def _of_png(folder: Path) -> bool:
    """Check whether the slices in a folder are PNG files.

    Raises
    ------
    VolumeError
        If there are TIFF files as well.
    """
    found = {file.suffix.lower() for file in folder.iterdir() if not file.name.startswith(".")}
    if found & set(PNG_SUFFIXES) and found & set(TIFF_SUFFIXES):
        raise VolumeError(f"{folder} contains both PNG and TIFF files: keep only one kind")
    return bool(found & set(PNG_SUFFIXES))
