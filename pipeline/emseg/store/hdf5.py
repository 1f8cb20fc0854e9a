"""Reading a stack of slices from a dataset of an HDF5 file, with h5py, an extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import triple
from emseg.errors import VolumeError
from emseg.specs.volume import DTYPES
from emseg.store.blame import reason
from emseg.store.extras import load_extra
from emseg.store.plain import plain_space
from emseg.store.stack import Stack, Stated

if TYPE_CHECKING:
    import h5py

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
MICROMETRES = "element_size_um"
"""The attribute in which ImageJ and ilastik keep the size (z, y, x) of a voxel."""
LISTED = 8
"""Most names that an error message lists."""


@contextmanager
def open_hdf5(path: Path, dataset: str | None) -> Iterator[Stack]:
    """The stack in a dataset, for as long as the ``with`` lasts; a file that holds a single one need not say which.

    Its voxel size is that of the attributes ``voxel_size`` or ``resolution``, ``offset`` and ``units``, where nothing is said
    of the unit taken for nanometres, as CREMI's files mean it, or of ``element_size_um``.

    Raises
    ------
    VolumeError
        If h5py is not installed, or there is no such stack, or one that emseg cannot read.
    """
    h5py = load_extra("h5py", "hdf5", path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise VolumeError(f"{path} cannot be opened as HDF5 ({reason(error)}): name an HDF5 file, or copy it again") from error
    with file:
        yield _Dataset(path, _chosen(path, file, dataset))


class _Dataset:
    """A dataset of an open file."""

    missing: tuple[int, ...] = ()

    def __init__(self, path: Path, stored: h5py.Dataset) -> None:
        self._name = f"{stored.name} of {path}"
        self._stored = stored
        lengths = stored.shape
        if len(lengths) < 2 or any(length != 1 for length in lengths[:-3]) or 0 in lengths:
            raise VolumeError(f"{self._name} has shape {lengths}, but emseg reads (z, y, x) or (y, x): choose another dataset")
        self.dtype = stored.dtype.newbyteorder("=").name
        if self.dtype not in DTYPES:
            raise VolumeError(f"{self._name} is {self.dtype}, but emseg reads {', '.join(DTYPES)}: convert it first")
        self.shape = triple((1,) * (3 - len(lengths)) + lengths[-3:])
        self.stated = self._size()

    def read(self, start: int, stop: int) -> NDArray[Any]:
        where = (0,) * (self._stored.ndim - 3) + ((slice(start, stop),) if self._stored.ndim > 2 else ())
        try:
            found = np.asarray(self._stored[where])
        except OSError as error:
            raise VolumeError(
                f"slices {start} to {stop - 1} of {self._name} cannot be read ({reason(error)}): copy it again"
            ) from error
        return found.astype(self.dtype, copy=False).reshape(stop - start, *self.shape[1:])

    def _size(self) -> Stated | None:
        """The voxel size that the attributes state, all of it or none."""
        attributes = {name: _plain(value) for name, value in self._stored.attrs.items()}
        if MICROMETRES in attributes:
            attributes |= {"voxel_size": attributes[MICROMETRES], "units": "um"}
        elif "units" not in attributes:
            attributes["units"] = "nm"
        if "voxel_size" not in attributes and "resolution" not in attributes:
            return None
        try:
            space = plain_space(attributes, 3, None)
        except ValueError as error:
            raise VolumeError(f"the attributes of {self._name} are wrong, {error}: repair them") from error
        (z, y, x), (a, b, c), (one, two, three) = space.scale, space.translation, space.units
        return Stated((z, y, x), (one, two, three), "the attributes of the dataset", (a, b, c))


def _chosen(path: Path, file: h5py.File, dataset: str | None) -> h5py.Dataset:
    """The dataset of that name, or the only one there is."""
    there: list[str] = []

    def note(name: str, item: object) -> None:
        if getattr(item, "ndim", 0) >= 2:  # a group has none
            there.append(name)

    file.visititems(note)
    asked = there if dataset is None else [name for name in there if name == dataset.strip("/")]
    if len(asked) == 1:
        return file[asked[0]]
    listed = ", ".join(there[:LISTED]) + (", ..." if len(there) > LISTED else "") or "none"
    said = f"no dataset {dataset!r}" if dataset is not None else f"{len(there)} datasets"
    raise VolumeError(f"{path} has {said}: choose with --dataset; there are {listed}")


def _plain(value: Any) -> Any:
    """An attribute as plain Python values."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value
