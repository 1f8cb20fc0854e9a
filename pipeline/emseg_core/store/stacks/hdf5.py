"""Read a stack of slices from a dataset of an HDF5 file, with h5py, an optional dependency."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from emseg_core.box import three, triple
from emseg_core.errors import VolumeError
from emseg_core.store.files.faults import translate_damage
from emseg_core.store.stacks.hdf5_links import OpenFiles, external_link_error
from emseg_core.store.stacks.hdf5_voxels import Voxels
from emseg_core.store.stacks.stack import KnownStack, Stack, StatedVoxelSize, dataset_error
from emseg_core.store.volumes.plain_attributes import plain_space

if TYPE_CHECKING:
    import h5py

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
MICROMETRE_ATTRIBUTE = "element_size_um"
"""Attribute in which ImageJ and ilastik store the size (z, y, x) of a voxel, in micrometres."""


@contextmanager
def open_hdf5(
    path: Path, dataset: str | None, *, allow_missing: bool = False, known: KnownStack | None = None
) -> Iterator[Stack]:
    """Open the stack in a dataset, for as long as the ``with`` block lasts.

    The voxel size is read from the attributes ``voxel_size`` or ``resolution``, ``offset`` and ``units``, or from
    ``element_size_um``. Without a unit, nanometres are assumed, as in the files of CREMI.

    Parameters
    ----------
    path
        Path of the file.
    dataset
        Path of the dataset in the file; None if there is only one.
    allow_missing
        Whether less than half of the chunks may never have been written; they read as the fill value of the dataset.
    known
        What the stack was found to be when it was opened before; None to check all sources of a virtual dataset.

    Yields
    ------
    Stack
        The open stack.

    Raises
    ------
    VolumeError
        If h5py is not installed, there is no such stack, emseg cannot read it, or voxels are missing or lie outside the folder
        of the file.
    """
    with closing(OpenFiles(path)) as files:
        with translate_damage(f"the HDF5 file {path} cannot be read"):
            stored = _chosen(files, dataset)
            voxels = Voxels(files, path, stored, allow_missing, set() if known is None else None)
            stack = _Dataset(stored, voxels)
        yield stack


class _Dataset:
    """A dataset of an open file."""

    missing: tuple[int, ...] = ()

    def __init__(self, stored: h5py.Dataset, voxels: Voxels) -> None:
        self._name, self._stored, self._voxels = voxels.name, stored, voxels
        lengths = voxels.shape
        if len(lengths) < 2 or any(length != 1 for length in lengths[:-3]):
            raise VolumeError(f"{self._name} has shape {lengths}, but emseg reads (z, y, x) or (y, x): choose another dataset")
        self.dtype = voxels.dtype.name
        self.shape = triple((1,) * (3 - len(lengths)) + lengths[-3:])
        self.stated = self._size()

    def read(self, start: int, stop: int) -> NDArray[Any]:
        region = tuple(slice(0, length) for length in self._voxels.shape)
        if len(region) > 2:
            region = (*region[:-3], slice(start, stop), *region[-2:])
        with translate_damage(f"slices {start} to {stop - 1} of {self._name} cannot be read"):
            return self._voxels.read(region).reshape(stop - start, *self.shape[1:])

    def _size(self) -> StatedVoxelSize | None:
        """Return the voxel size that the attributes state, or None unless it is complete."""
        attributes = {name: _plain(value) for name, value in self._stored.attrs.items()}
        if MICROMETRE_ATTRIBUTE in attributes:
            attributes |= {"voxel_size": attributes[MICROMETRE_ATTRIBUTE], "units": "um"}
        elif "units" not in attributes:
            attributes["units"] = "nm"
        if "voxel_size" not in attributes and "resolution" not in attributes:
            return None
        try:
            space = plain_space(attributes, 3, None)
        except ValueError as error:
            raise VolumeError(f"the attributes of {self._name} are wrong, {error}: repair them") from error
        source = "the attributes of the dataset"
        return StatedVoxelSize(three(space.scale), three(space.units), source, three(space.translation))


def _chosen(files: OpenFiles, dataset: str | None) -> h5py.Dataset:
    """Return the dataset of that name, or the only one in the file."""
    path = files.path
    if dataset is not None and (found := files.dataset(path, dataset)) is not None:
        return found
    there: list[str] = []
    leading: list[VolumeError] = []

    def note(name: str, item: object) -> None:
        if getattr(item, "ndim", 0) >= 2:  # groups have no ndim
            there.append(name)

    def note_link(name: str, link: object) -> None:
        if isinstance(link, files.h5py.ExternalLink):
            leading.append(external_link_error(path, name, link))

    files.open(path).visititems(note)
    if dataset is None and len(there) == 1:
        return files.open(path)[there[0]]
    if dataset is None and not there:
        files.open(path).visititems_links(note_link)
        if leading:
            raise leading[0]
    raise dataset_error(path, dataset, there)


def _plain(value: Any) -> Any:
    """Convert an attribute to plain Python values."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value
