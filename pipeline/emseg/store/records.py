"""Small named documents beside the voxels: leases and what the runs tell.

They are kept with what each kind of store can do (see `emseg.store.files`), without any locking or renaming of folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from emseg.store.files import Files
from emseg.store.staging import output_error

FOLDER = "emseg"
"""Where they are, in an output."""


class Records:
    """The documents of an output, by names with ``/`` in them.

    All raise `OutputError` if the store refuses.
    """

    def __init__(self, files: Files) -> None:
        """Of the output with these files."""
        self.files = files
        """Those of the output."""

    def create(self, name: str, document: bytes) -> bool:
        """Keep a document unless there is one of this name; whether this caller, and nobody else, has made it."""
        with self._blamed(name) as file:
            return self.files.create(file, document)

    def put(self, name: str, document: bytes) -> None:
        """Keep a document in the place of any older one: readers see the one or the other."""
        with self._blamed(name) as file:
            self.files.put(file, document)

    def get(self, name: str) -> bytes | None:
        """The document of this name, if there is one."""
        with self._blamed(name) as file:
            return self.files.read(file)

    def has(self, name: str) -> bool:
        """Whether there is a document of this name."""
        with self._blamed(name) as file:
            return self.files.size(file) is not None

    def age(self, name: str) -> float | None:
        """Seconds since a document was last put, or a name in a folder, by the clock of the store; None if there is none.

        All hosts share that clock. It is below 0 where the clock has been put back meanwhile.
        """
        with self._blamed(name) as file:
            then = self.files.modified(file)
            return None if then is None else self.files.clock(file.rpartition("/")[0]) - then

    def put_at(self, name: str) -> float | None:
        """When a document was last put, in seconds by the clock of the store; None if there is none."""
        with self._blamed(name) as file:
            return self.files.modified(file)

    def names(self, prefix: str = "") -> list[str]:
        """All names that begin with `prefix`, sorted."""
        with self._blamed(prefix) as file:
            return [name.removeprefix(f"{FOLDER}/") for name in self.files.names(file)]

    def runs(self) -> list[int]:
        """Number of each run that has left anything, if only an empty folder; sorted."""
        with self._blamed("") as folder:
            found = (re.fullmatch(r"run-([0-9]{4,9})", name) for name in self.files.entries(folder.rstrip("/")))
            return sorted(int(match[1]) for match in found if match)

    def remove(self, name: str) -> None:
        """Forget a document, if there is one, and its folder, if nothing else is there."""
        with self._blamed(name) as file:
            self.files.remove(file)
            folder = file.rpartition("/")[0]
            if folder != FOLDER and not self.files.entries(folder):
                self.files.remove_all(folder)

    @contextmanager
    def _blamed(self, name: str) -> Iterator[str]:
        """The file of a document; what the store refuses within the ``with`` is an `OutputError`."""
        file = f"{FOLDER}/{name}"
        try:
            yield file
        except OSError as error:
            raise output_error(self.files.place / file, error) from error
