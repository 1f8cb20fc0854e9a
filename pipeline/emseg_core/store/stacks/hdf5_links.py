"""Resolve names in HDF5 files, which may refer to other files: no file outside the folder of the first one is opened.

A dataset can be reached through links: *hard* and *soft* links lead to an object of the same file, *external* links to
another file. A virtual dataset is assembled from others, also from other files, which must lie in the folder of the first.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from emseg_core.errors import VolumeError
from emseg_core.store.files.extras import load_extra
from emseg_core.store.files.faults import translate_damage

if TYPE_CHECKING:
    import h5py

MAX_SOFT_LINKS = 32
"""Most soft links that are followed to a dataset: a chain that leads back to itself never ends."""
COPY_HINT = "copy all voxels into one dataset"
MAX_OPEN_FILES = 64
"""Most files that are open at once."""


class OpenFiles:
    """The HDF5 file of a stack and files in its folder; those used most recently stay open."""

    def __init__(self, path: Path) -> None:
        """Open the first file.

        Raises
        ------
        VolumeError
            If the file cannot be opened, or h5py is not installed.
        """
        self.h5py = load_extra("h5py", "hdf5", path)
        self.path = path
        self._folder = path.resolve().parent
        self._first = self._opened(path)
        self._others: OrderedDict[Path, h5py.File] = OrderedDict()

    def close(self) -> None:
        """Close all files."""
        for file in (self._first, *self._others.values()):
            file.close()

    def open(self, path: Path) -> h5py.File:
        """Return the file at a path, opening it if necessary.

        Parameters
        ----------
        path
            Path of the file.

        Returns
        -------
        h5py.File
            The open file.

        Raises
        ------
        VolumeError
            If the file cannot be opened.
        """
        if path == self.path:
            return self._first
        file = self._others.get(path) or self._opened(path)
        self._others[path] = file
        self._others.move_to_end(path)
        if len(self._others) > MAX_OPEN_FILES:
            self._others.popitem(last=False)[1].close()
        return file

    def resolve_beside(self, path: Path, name: str, what: str) -> Path:
        """Find the file that another file refers to by name.

        HDF5 looks at the name itself and, if an absolute one does not exist, next to the referring file, as folders get moved.

        Parameters
        ----------
        path
            Path of the referring file.
        name
            Name of the file as stored; ``.`` is the referring file itself.
        what
            What needs the file, for error messages.

        Returns
        -------
        Path
            Path of the file.

        Raises
        ------
        VolumeError
            If the file does not exist, or is not in the folder of the first file.
        """
        if name == ".":
            return path
        folder = path.resolve().parent
        moved = [folder / Path(name).name] if Path(name).is_absolute() else []
        for place in (folder / name, *moved):
            try:
                found = place.resolve(strict=True)
                regular = found.is_file()
            except (OSError, RuntimeError, ValueError):  # missing, a circular link, or an invalid name
                continue
            if not found.is_relative_to(self._folder):
                raise VolumeError(
                    f"{what} reads voxels from the file {name!r}, which is outside {self._folder}, where emseg opens no files: "
                    f"copy it into that folder and refer to it there, or {COPY_HINT}"
                )
            if not regular:
                raise VolumeError(f"{what} reads voxels from {name!r}, which is not a regular file: {COPY_HINT}")
            return self.path if found == self.path.resolve() else found
        raise VolumeError(f"{what} reads voxels from the file {name!r}, which does not exist: copy it into {folder}")

    def dataset(self, path: Path, name: str) -> h5py.Dataset | None:
        """Find a dataset by name in the file at a path, link by link.

        Parameters
        ----------
        path
            Path of the file.
        name
            Name of the dataset, with slashes between the groups.

        Returns
        -------
        h5py.Dataset or None
            None if there is no dataset of that name.

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
                raise external_link_error(path, f"{found.name.rstrip('/')}/{part}", link)
            if isinstance(link, self.h5py.SoftLink):
                hops += 1
                if hops > MAX_SOFT_LINKS:
                    raise VolumeError(
                        f"the soft links to {name!r} in {path} lead back to themselves: give the path of the dataset itself"
                    )
                found = file["/"] if link.path.startswith("/") else found
                left = _parts(link.path) + left
            else:
                found = found[part]
        return found if isinstance(found, self.h5py.Dataset) else None

    def _opened(self, path: Path) -> h5py.File:
        """Open a file for reading."""
        with translate_damage(f"{path} cannot be opened as HDF5", "give an HDF5 file, or copy it again"):
            return self.h5py.File(path, "r")


def external_link_error(path: Path, name: str, link: h5py.ExternalLink) -> VolumeError:
    """Return the error for a link that leads out of a file.

    Parameters
    ----------
    path
        Path of the file that the link is in.
    name
        Name of the link.
    link
        The link.

    Returns
    -------
    VolumeError
        To be raised by the caller.
    """
    return VolumeError(
        f"{name!r} in {path} is a link to {link.path!r} in another file, {link.filename!r}, which emseg does not follow: "
        "give that file instead"
    )


def _parts(name: str) -> list[str]:
    """Split a path of HDF5 into names."""
    return [part for part in name.split("/") if part not in ("", ".")]
