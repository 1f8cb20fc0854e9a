"""Small named documents beside the voxels: leases and the records of runs.

They need only what each kind of store can do (see `emseg_core.store.files.files`): no locks and no renaming of folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from emseg_core.store.files.atomic_write import translate_oserror
from emseg_core.store.files.files import Files

RECORDS_FOLDER = "emseg"
"""Folder of the records, within an output."""


class Records:
    """The documents of an output, by names that may contain ``/``.

    All methods raise `OutputError` if the store refuses.
    """

    def __init__(self, files: Files) -> None:
        """Use the records of the output with these files."""
        self.files = files
        """Files of the output."""

    def create(self, name: str, document: bytes) -> bool:
        """Store a document unless one of this name exists.

        Parameters
        ----------
        name
            Name of the document.
        document
            Content of the document.

        Returns
        -------
        bool
            Whether this caller has created it.

        Raises
        ------
        OutputError
            If the store refuses.
        """
        with self._translating_errors(name) as file:
            return self.files.create(file, document)

    def put(self, name: str, document: bytes) -> None:
        """Store a document, replacing any older one atomically: readers see either.

        Parameters
        ----------
        name
            Name of the document.
        document
            Content of the document.

        Raises
        ------
        OutputError
            If the store refuses.
        """
        with self._translating_errors(name) as file:
            self.files.put(file, document)

    def get(self, name: str) -> bytes | None:
        """Return a document; None if there is none of this name.

        Parameters
        ----------
        name
            Name of the document.

        Returns
        -------
        bytes or None
            The content.

        Raises
        ------
        OutputError
            If the store refuses.
        """
        with self._translating_errors(name) as file:
            return self.files.read(file)

    def has(self, name: str) -> bool:
        """Return whether there is a document of this name.

        Parameters
        ----------
        name
            Name of the document.

        Returns
        -------
        bool
            True if it exists.

        Raises
        ------
        OutputError
            If the store refuses.
        """
        with self._translating_errors(name) as file:
            return self.files.size(file) is not None

    def age(self, name: str) -> float | None:
        """Return how long ago a document was last stored, or a folder last changed.

        Parameters
        ----------
        name
            Name of the document or folder.

        Returns
        -------
        float or None
            Seconds by the clock of the store, which all hosts share; negative if that clock has been put back since. None if
            there is no such document.

        Raises
        ------
        OutputError
            If the store refuses.
        """
        with self._translating_errors(name) as file:
            then = self.files.modified(file)
            return None if then is None else self.files.clock(file.rpartition("/")[0]) - then

    def modified(self, name: str) -> float | None:
        """Return when a document was last stored, in seconds by the clock of the store; None if there is none.

        Parameters
        ----------
        name
            Name of the document.

        Returns
        -------
        float or None
            Seconds.

        Raises
        ------
        OutputError
            If the store refuses.
        """
        with self._translating_errors(name) as file:
            return self.files.modified(file)

    def names(self, prefix: str = "") -> list[str]:
        """Return all names that begin with `prefix`, sorted.

        Parameters
        ----------
        prefix
            Prefix of the names.

        Returns
        -------
        list of str
            Names of documents.

        Raises
        ------
        OutputError
            If the store refuses.
        """
        with self._translating_errors(prefix) as file:
            return [name.removeprefix(f"{RECORDS_FOLDER}/") for name in self.files.names(file)]

    def runs(self) -> list[int]:
        """Return the number of each run that has left anything, even only an empty folder; sorted.

        Returns
        -------
        list of int
            Numbers of runs.

        Raises
        ------
        OutputError
            If the store refuses.
        """
        with self._translating_errors("") as folder:
            found = (re.fullmatch(r"run-([0-9]{4,9})", name) for name in self.files.entries(folder.rstrip("/")))
            return sorted(int(match[1]) for match in found if match)

    def remove(self, name: str) -> None:
        """Remove a document, if there is one, and its folder if that is empty then.

        Parameters
        ----------
        name
            Name of the document.

        Raises
        ------
        OutputError
            If the store refuses.
        """
        with self._translating_errors(name) as file:
            self.files.remove(file)
            folder = file.rpartition("/")[0]
            if folder != RECORDS_FOLDER and not self.files.entries(folder):
                self.files.remove_all(folder)

    @contextmanager
    def _translating_errors(self, name: str) -> Iterator[str]:
        """Yield the file of a document, and turn an `OSError` within the ``with`` into an `OutputError`."""
        file = f"{RECORDS_FOLDER}/{name}"
        with translate_oserror(self.files.place / file):
            yield file
