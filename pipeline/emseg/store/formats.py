"""Which library reads a stack of slices: by the end of its name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from emseg.errors import VolumeError
from emseg.store.hdf5 import HDF5_SUFFIXES, open_hdf5
from emseg.store.mrc import MRC_SUFFIXES, open_mrc
from emseg.store.nodes import PNG_SUFFIXES, TIFF_SUFFIXES
from emseg.store.place import local
from emseg.store.png import PngFolder
from emseg.store.stack import Stack
from emseg.store.tiff import open_tiff


def open_stack(source: str | Path, dataset: str | None = None) -> AbstractContextManager[Stack]:
    """The stack in a TIFF, MRC or HDF5 file, or in a folder of TIFF or PNG slices, for as long as the ``with`` lasts.

    Parameters
    ----------
    dataset
        Path of the dataset in an HDF5 file; None if there is only one.

    Raises
    ------
    VolumeError
        If there is no such stack, or one that emseg cannot read; the message says why and what helps.
    """
    path = local(source)
    suffix = path.suffix.lower() if path.is_file() else ""
    if suffix in HDF5_SUFFIXES:
        return open_hdf5(path, dataset)
    if dataset is not None:
        raise VolumeError(f"{path} has no datasets, as it is no HDF5 file ({', '.join(HDF5_SUFFIXES)}): leave --dataset out")
    if suffix in MRC_SUFFIXES:
        return open_mrc(path)
    return nullcontext(PngFolder(path)) if path.is_dir() and _of_png(path) else open_tiff(source)


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
