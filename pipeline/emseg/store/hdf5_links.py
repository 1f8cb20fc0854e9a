"""From a name to what it leads to in HDF5 files, which may lead to other files: nothing outside is opened.

A dataset can lie behind links: *hard* and *soft* ones lead to an object of the same file, *external* ones to another file.
A virtual dataset is put together of others, also of other files, which have to lie in the folder of the first one.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from emseg.errors import VolumeError
from emseg.store.blame import reason
from emseg.store.extras import load_extra

if TYPE_CHECKING:
    import h5py

MOST_HOPS = 32
"""Most soft links on the way to a dataset: those that lead back to themselves never end."""
MOST_OPEN = 64
"""Most files that are open at once."""


class OpenFiles:
    """The HDF5 file of a stack, and files that lie beside it; those that were used last are open."""

    def __init__(self, path: Path) -> None:
        """Raises `VolumeError` if the file cannot be opened, or h5py is not installed."""
        self.h5py = load_extra("h5py", "hdf5", path)
        self.path = path
        self._folder = path.resolve().parent
        self._first = self._opened(path)
        self._others: OrderedDict[Path, h5py.File] = OrderedDict()

    def close(self) -> None:
        """Close all of them."""
        for file in (self._first, *self._others.values()):
            file.close()

    def open(self, path: Path) -> h5py.File:
        """The file at a path, the first one or another one."""
        if path == self.path:
            return self._first
        file = self._others.get(path) or self._opened(path)
        self._others[path] = file
        self._others.move_to_end(path)
        if len(self._others) > MOST_OPEN:
            self._others.popitem(last=False)[1].close()
        return file

    def beside(self, path: Path, name: str, what: str) -> Path:
        """Where the file is that the one at `path` calls `name`, ``.`` itself, for `what`.

        HDF5 looks where the name says and, for an absolute one where nothing is, beside the file: folders get moved.

        Raises
        ------
        VolumeError
            If it is not there, or not in the folder of the first file.
        """
        if name == ".":
            return path
        folder = path.resolve().parent
        moved = [folder / Path(name).name] if Path(name).is_absolute() else []
        for place in (folder / name, *moved):
            try:
                found = place.resolve(strict=True)
                regular = found.is_file()
            except (OSError, RuntimeError, ValueError):  # it is not there, goes round in a circle, or can be no name
                continue
            if not found.is_relative_to(self._folder):
                raise VolumeError(
                    f"{what} takes voxels from the file {name!r}, which is outside of {self._folder}: nothing outside of its "
                    "own folder is opened, so copy the file there and name it so, or copy all voxels into one dataset"
                )
            if not regular:
                raise VolumeError(f"{what} takes voxels from {name!r}, which is no file: copy all voxels into one dataset")
            return self.path if found == self.path.resolve() else found
        raise VolumeError(f"{what} takes voxels from the file {name!r}, which is not there: copy it into {folder}")

    def dataset(self, path: Path, name: str) -> h5py.Dataset | None:
        """The dataset of that name in the file at a path, found link by link; None if there is none.

        Raises
        ------
        VolumeError
            If a link on the way leads to another file, or back to itself.
        """
        file, hops = self.open(path), 0
        found: h5py.Group | h5py.Dataset = file["/"]
        left = _parts(name)
        while left:
            part = left.pop(0)
            if not isinstance(found, self.h5py.Group) or part not in found.keys():  # noqa: SIM118  `in` follows links
                return None
            link = found.get(part, getlink=True)
            if isinstance(link, self.h5py.ExternalLink):
                raise external(path, f"{found.name.rstrip('/')}/{part}", link)
            if isinstance(link, self.h5py.SoftLink):
                hops += 1
                if hops > MOST_HOPS:
                    raise VolumeError(
                        f"the soft links on the way to {name!r} in {path} lead back to themselves: name the dataset"
                    )
                found = file["/"] if link.path.startswith("/") else found
                left = _parts(link.path) + left
            else:
                found = found[part]
        return found if isinstance(found, self.h5py.Dataset) else None

    def _opened(self, path: Path) -> h5py.File:
        try:
            return self.h5py.File(path, "r")
        except OSError as error:
            raise VolumeError(
                f"{path} cannot be opened as HDF5 ({reason(error)}): name an HDF5 file, or copy it again"
            ) from error


def external(path: Path, name: str, link: h5py.ExternalLink) -> VolumeError:
    """The error for a link that leads out of a file."""
    return VolumeError(
        f"{name!r} in {path} is a link to {link.path!r} of another file, {link.filename!r}: links out of a file are not "
        "followed, so name that file"
    )


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]
