"""Small named documents beside the voxels, kept with what an object store can do as well: create, put, get, list, remove.

There is no renaming of folders and no lock here, so leases and run records that need nothing else work wherever
voxels can be kept.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Protocol

from emseg.store.staging import output_error, write_bytes


class Records(Protocol):
    """Documents by name; a name may have ``/`` in it."""

    def create(self, name: str, document: bytes) -> bool:
        """Keep a document unless there is one of this name; whether this caller, and nobody else, has made it."""
        ...

    def put(self, name: str, document: bytes) -> None:
        """Keep a document in the place of any older one: readers see the one or the other."""
        ...

    def get(self, name: str) -> bytes | None:
        """The document of this name, if there is one."""
        ...

    def age(self, name: str) -> float | None:
        """Seconds since a document was last put, by the clock of the store, which all hosts share; None if there is none."""
        ...

    def names(self, prefix: str = "") -> list[str]:
        """All names that begin with `prefix`, sorted."""
        ...

    def remove(self, name: str) -> None:
        """Forget a document, if there is one."""
        ...


class FolderRecords:
    """Records as files below a folder, of one host or of many that share its file system.

    All raise `OutputError` if the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, name: str, document: bytes) -> bool:
        """Keep a document unless there is one of this name; whether this caller, and nobody else, has made it."""
        file = self._folder / name
        try:
            file.parent.mkdir(exist_ok=True)
            handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        except OSError as error:
            raise output_error(file, error) from error
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(document)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            file.unlink(missing_ok=True)
            raise output_error(file, error) from error
        return True

    def put(self, name: str, document: bytes) -> None:
        """Keep a document in the place of any older one: readers see the one or the other."""
        file = self._folder / name
        try:
            file.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise output_error(file, error) from error
        write_bytes(file, document)

    def get(self, name: str) -> bytes | None:
        """The document of this name, if there is one."""
        file = self._folder / name
        try:
            return file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise output_error(file, error) from error

    def age(self, name: str) -> float | None:
        """Seconds since a document was last put, by the clock of the file system, which all hosts share."""
        file = self._folder / name
        probe = file.parent / f".emseg-{secrets.token_hex(6)}"
        try:
            then = file.stat().st_mtime
            probe.touch()
            try:
                return max(0.0, probe.stat().st_mtime - then)
            finally:
                probe.unlink(missing_ok=True)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise output_error(file, error) from error

    def names(self, prefix: str = "") -> list[str]:
        """All names that begin with `prefix`, sorted."""
        found = (path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file())
        return sorted(name for name in found if name.startswith(prefix) and not Path(name).name.startswith("."))

    def remove(self, name: str) -> None:
        """Forget a document, if there is one, and its folder, if nothing else is there."""
        file = self._folder / name
        try:
            file.unlink(missing_ok=True)
            if file.parent != self._folder and file.parent.is_dir() and not any(file.parent.iterdir()):
                file.parent.rmdir()
        except OSError as error:
            raise output_error(file, error) from error
