"""Reading a stack of slices from a dataset of an HDF5 file, with h5py, an extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from emseg.box import triple
from emseg.errors import VolumeError
from emseg.store.blame import reason
from emseg.store.hdf5_links import OpenFiles, external
from emseg.store.hdf5_voxels import Voxels
from emseg.store.plain import plain_space
from emseg.store.stack import Known, Stack, Stated

if TYPE_CHECKING:
    import h5py

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
MICROMETRES = "element_size_um"
"""The attribute in which ImageJ and ilastik keep the size (z, y, x) of a voxel."""
LISTED = 8
"""Most names that an error message lists."""


@contextmanager
def open_hdf5(path: Path, dataset: str | None, *, allow_missing: bool = False, known: Known | None = None) -> Iterator[Stack]:
    """The stack in a dataset, for as long as the ``with`` lasts; a file that holds a single one need not say which.

    Its voxel size is that of the attributes ``voxel_size`` or ``resolution``, ``offset`` and ``units``, where nothing is said
    of the unit taken for nanometres, as CREMI's files mean it, or of ``element_size_um``.

    Parameters
    ----------
    allow_missing
        Whether chunks may never have been written, as long as more were; they are what the dataset is filled with.
    known
        What the stack was found to be before; None to look into all datasets that a virtual one is made of.

    Raises
    ------
    VolumeError
        If h5py is not installed, or there is no such stack, or one that emseg cannot read, or voxels of it are missing or lie
        outside of the file's folder.
    """
    with closing(OpenFiles(path)) as files:
        with _damage(f"the HDF5 file {path}"):
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
        with _damage(f"slices {start} to {stop - 1} of {self._name}"):
            return self._voxels.read(region).reshape(stop - start, *self.shape[1:])

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


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Turns whatever a damaged file makes h5py, or a filter, raise into a `VolumeError`."""
    try:
        yield
    except VolumeError:
        raise
    except Exception as error:
        where = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        raise VolumeError(f"{what} cannot be read ({where}{reason(error)}): copy it again") from error


def _chosen(files: OpenFiles, dataset: str | None) -> h5py.Dataset:
    """The dataset of that name, or the only one there is."""
    path = files.path
    if dataset is not None and (found := files.dataset(path, dataset)) is not None:
        return found
    there: list[str] = []
    leading: list[VolumeError] = []

    def note(name: str, item: object) -> None:
        if getattr(item, "ndim", 0) >= 2:  # a group has none
            there.append(name)

    def note_link(name: str, link: object) -> None:
        if isinstance(link, files.h5py.ExternalLink):
            leading.append(external(path, name, link))

    files.open(path).visititems(note)
    if dataset is None and len(there) == 1:
        return files.open(path)[there[0]]
    if dataset is None and not there:
        files.open(path).visititems_links(note_link)
        if leading:
            raise leading[0]
    listed = ", ".join(there[:LISTED]) + (", ..." if len(there) > LISTED else "") or "none"
    said = f"no dataset {dataset!r}" if dataset is not None else f"{len(there)} datasets"
    raise VolumeError(f"{path} has {said}: choose with --dataset; there are {listed}")


def _plain(value: Any) -> Any:
    """An attribute as plain Python values."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value
