"""Files on a disk or objects in a store: Zarr reads them, and outputs, leases and records are written to them.

Both kinds offer the same: read a file, write one atomically, create one that must not exist, list and remove. A disk can
also lock files and rename folders atomically; nothing here depends on that.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, TypeAlias

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.storage import LocalStore

from emseg_core.store.files.atomic_write import PARTIAL_SUFFIX, commit, make_folders, sync_folder
from emseg_core.store.files.faults import store_unavailable
from emseg_core.store.files.ownership import OwnedFiles
from emseg_core.store.files.place import Address, Place
from emseg_core.store.files.remote import MAX_METADATA_BYTES, RemoteFiles, open_remote, refuse_too_long


class LocalFiles(OwnedFiles, LocalStore):
    """Files below a folder, by names that may contain ``/``.

    All methods raise `OSError` if the disk refuses. Those that change files raise `OrphanError` if the files have an owner
    that has lost them.

    For Zarr's reads, an empty or truncated file is an error: a power cut may leave a file empty, and zarr 3.1 silently
    treats an empty shard as one that was never written. Metadata beyond a size limit are refused as well, as zarr allocates
    as much memory as metadata declare.
    """

    @property
    def place(self) -> Path:
        """The folder."""
        return self.root

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is no such file.

        Parameters
        ----------
        name
            Path relative to the folder.

        Returns
        -------
        bytes or None
            The content.
        """
        file = self.root / name
        return file.read_bytes() if file.is_file() else None

    def read_metadata(self, name: str) -> bytes | None:
        """Return the content of a metadata file; None if there is no such file.

        Parameters
        ----------
        name
            Path relative to the folder.

        Returns
        -------
        bytes or None
            The content.

        Raises
        ------
        TooLongError
            If it has more than `MAX_METADATA_BYTES` bytes.
        """
        refuse_too_long(name, self.size(name) or 0, MAX_METADATA_BYTES)
        return self.read(name)

    def is_missing(self, name: str, beside: str) -> bool:
        """Return whether a file or folder is missing although the file `beside` exists.

        Both are looked up in one open folder, so it does not matter what is at its path a moment before or after. Where a
        disk is unavailable, `beside` does not exist either.

        Parameters
        ----------
        name
            Path of the file or folder, relative to the folder.
        beside
            Path of a file that always exists, relative to the folder.

        Returns
        -------
        bool
            True if only `beside` exists.

        Raises
        ------
        StoreError
            If `beside` does not exist, which says nothing about the other.
        """
        try:
            with _open_folder(self.root) as folder:
                if not _is_in(folder, beside):
                    raise store_unavailable()
                return not _is_in(folder, name)
        except (FileNotFoundError, NotADirectoryError):
            raise store_unavailable() from None

    def reading(self, name: str) -> IO[bytes]:
        """Open a file to be read piece by piece.

        Returns
        -------
        binary file
            The open file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        """
        return (self.root / name).open("rb")

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if there is no such file.

        Parameters
        ----------
        name
            Path relative to the folder.

        Returns
        -------
        int or None
            Bytes.
        """
        with suppress(FileNotFoundError, NotADirectoryError):
            return (self.root / name).stat().st_size
        return None

    def put(self, name: str, document: bytes | memoryview, permit: Callable[[], None] | None = None) -> str:
        """Write a file atomically, and flush it to the disk.

        Parameters
        ----------
        permit
            Called at the last moment; may raise to prevent the writing.

        Returns
        -------
        str
            Always empty: on a disk, no earlier version can arrive late, so there is no tag to compare.

        Raises
        ------
        OrphanError
            If the files belong to another run by now.
        OSError
            If the disk refuses.
        """

        def allowed() -> None:
            self.check_owner()
            if permit is not None:
                permit()

        allowed()  # first, so that an orphan does not even create a folder
        file = self.root / name
        make_folders(file.parent, self.root)
        commit(file, document, allowed)
        return ""

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file to be written piece by piece; it appears, complete, when the ``with`` ends.

        Parameters
        ----------
        name
            Path relative to the folder.

        Yields
        ------
        binary file
            The open temporary file.

        Raises
        ------
        OrphanError
            If the files belong to another run by now.
        OSError
            If the disk refuses.
        """
        self.check_owner()
        file = self.root / name
        make_folders(file.parent, self.root)
        work = file.with_name(f"{file.name}{PARTIAL_SUFFIX}")
        with work.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        self.check_owner()
        work.replace(file)
        sync_folder(file.parent)

    def create(self, name: str, document: bytes) -> bool:
        """Create a file unless one of this name exists.

        Parameters
        ----------
        name
            Path relative to the folder.
        document
            Content of the file.

        Returns
        -------
        bool
            Whether this caller has created it.

        Raises
        ------
        OrphanError
            If the files belong to another run by now.
        OSError
            If the disk refuses.
        """
        self.check_owner()
        file = self.root / name
        make_folders(file.parent, self.root)
        try:
            handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(document)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            file.unlink(missing_ok=True)
            raise
        return True

    def modified(self, name: str) -> float | None:
        """Return when a file was last written, or when a name in a folder was last created or removed.

        Parameters
        ----------
        name
            Path relative to the folder.

        Returns
        -------
        float or None
            Seconds by the clock of the file system, which all hosts share; None if there is no such file.
        """
        with suppress(FileNotFoundError, NotADirectoryError):
            return (self.root / name).stat().st_mtime
        return None

    def clock(self, folder: str) -> float:
        """Return the current time of that clock, by creating a file in a folder for a moment.

        Parameters
        ----------
        folder
            Path relative to the folder of these files; it must exist.

        Returns
        -------
        float
            Seconds.
        """
        probe = self.root / folder / f".emseg-{secrets.token_hex(6)}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def entries(self, folder: str = "") -> list[str]:
        """Return the names of the files and folders in a folder, sorted; none if there is no such folder.

        Parameters
        ----------
        folder
            Path relative to the folder of these files; empty for that folder itself.

        Returns
        -------
        list of str
            Names without the path.
        """
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(entry.name for entry in (self.root / folder).iterdir())
        return []

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all files that begin with `prefix`, sorted, except hidden ones.

        Parameters
        ----------
        prefix
            Prefix of the paths.

        Returns
        -------
        list of str
            Paths relative to the folder.
        """
        folder, slash, start = prefix.rpartition("/")
        found: list[str] = []
        for entry in self.entries(folder):
            if entry.startswith(start):
                name = f"{folder}{slash}{entry}"
                found += [name] if (self.root / name).is_file() else [f"{name}/{inside}" for inside, _ in self.sizes(name)]
        return sorted(name for name in found if not Path(name).name.startswith("."))

    def sizes(self, folder: str, *, tidy: bool = False) -> Iterator[tuple[str, int]]:
        """List the files below a folder with their sizes; each folder is listed once.

        Parameters
        ----------
        tidy
            Remove files that a killed writer has left half-written.

        Yields
        ------
        tuple of str and int
            Name within the folder, and size in bytes.

        Raises
        ------
        StoreError
            If a folder that was just listed vanishes.
        """
        if tidy:
            self.check_owner()
        pending = [(os.fspath(self.root / folder), "")]
        while pending:
            path, inside = pending.pop()
            try:
                with _open_folder(path) as opened, os.scandir(opened) as found:
                    for entry in found:
                        if tidy and entry.name.endswith(PARTIAL_SUFFIX):
                            Path(path, entry.name).unlink(missing_ok=True)
                        elif entry.is_dir():
                            pending.append((f"{path}/{entry.name}", f"{inside}{entry.name}/"))
                        elif (size := _size(entry)) is not None:
                            yield f"{inside}{entry.name}", size
            except (FileNotFoundError, NotADirectoryError):
                if inside:  # it was listed a moment ago
                    raise store_unavailable() from None

    def tidy(self, folder: str = "", *, deep: bool = True) -> None:
        """Remove files that a killed writer has left half-written in a folder and, if `deep`, below it.

        Parameters
        ----------
        folder
            Path relative to the folder of these files; empty for that folder itself.
        deep
            Whether the folders below it are tidied, too.
        """
        self.check_owner()
        root = self.root / folder
        for left in list(root.rglob(f"*{PARTIAL_SUFFIX}") if deep else root.glob(f"*{PARTIAL_SUFFIX}")):
            left.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file, if it exists.

        Parameters
        ----------
        name
            Path relative to the folder.
        """
        self.check_owner()
        with suppress(NotADirectoryError):
            (self.root / name).unlink(missing_ok=True)

    def remove_all(self, folder: str) -> None:
        """Remove a folder with its content, if it exists.

        Parameters
        ----------
        folder
            Path relative to the folder of these files.
        """
        self.check_owner()
        while (self.root / folder).exists():
            with suppress(FileNotFoundError):  # another process has removed a file in the meantime
                shutil.rmtree(self.root / folder)

    def rename(self, name: str, to: str) -> None:
        """Rename a file, replacing any file of the new name.

        Parameters
        ----------
        name
            Path relative to the folder.
        to
            New path relative to the folder.
        """
        self.check_owner()
        (self.root / name).replace(self.root / to)

    def rename_all(self, folder: str, to: str) -> None:
        """Rename a Zarr node with its content. The new name must not exist.

        Parameters
        ----------
        folder
            Path of the node, relative to the folder of these files.
        to
            New path of the node.
        """
        self.check_owner()
        (self.root / folder).rename(self.root / to)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a file for Zarr; None if there is no such file.

        Raises
        ------
        ValueError
            If the file is empty, or ends before the bytes that are asked for.
        """
        file = self.root / key
        if isinstance(byte_range, RangeByteRequest) and file.is_file() and (size := file.stat().st_size) < byte_range.end:
            raise ValueError(f"the file {key} has {size} bytes, but should have at least {byte_range.end}")
        found = await super().get(key, prototype, byte_range)
        if found is not None and len(found) == 0:
            raise ValueError(f"the file {key} is empty")
        return found


class HeldFiles(LocalFiles):
    """Files below a folder that is opened once and kept open.

    Another folder that later appears at the same path never receives any file. Writing to a folder that was removed fails;
    one that was moved is still written to, at its new path. Unpickled in another process, the folder is opened there at the
    first use.
    """

    def __init__(self, place: Path, owner: bytes | None = None) -> None:
        super().__init__(place, read_only=True)
        self._place = place
        self.owner = owner

    def __reduce__(self) -> tuple[type[HeldFiles], tuple[Path, bytes | None]]:
        return type(self), (self._place, self.owner)

    @property
    def place(self) -> Path:
        """Path of the folder when it was opened."""
        return self._place

    @property
    def root(self) -> Path:
        """Path that leads to the open folder; on systems without such paths, its own."""
        return Path(f"/proc/self/fd/{self._opened}") if _HAS_PATHS_OF_OPEN_FOLDERS else self._place

    @root.setter
    def root(self, path: Path) -> None:
        """Ignore the path that the base class sets: files are reached through the open folder."""

    @cached_property
    def _opened(self) -> int:
        """Descriptor of the open folder."""
        try:
            opened = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            raise store_unavailable() from None
        weakref.finalize(self, os.close, opened)
        return opened

    def check_owner(self) -> None:
        """Check that the files still belong to their owner.

        If the disk was unavailable the folder is opened again, but only if it still belongs to the owner.

        Raises
        ------
        OrphanError
            If the files belong to another run by now.
        OSError
            If the disk refuses.
        """
        try:
            super().check_owner()
        except OSError:
            reopened = HeldFiles(self._place, self.owner)
            OwnedFiles.check_owner(reopened)
            os.dup2(reopened._opened, self._opened, inheritable=False)


_HAS_PATHS_OF_OPEN_FOLDERS = Path("/proc/self/fd").is_dir()


@contextmanager
def _open_folder(path: str | Path) -> Iterator[int]:
    """Yield the descriptor of an open folder, which stays the same whatever appears at its path."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield opened
    finally:
        os.close(opened)


def _size(entry: os.DirEntry[str]) -> int | None:
    """Return the size of a listed file in bytes; None if it has been removed or renamed since the listing."""
    with suppress(FileNotFoundError):
        return entry.stat().st_size
    return None


def _is_in(folder: int, name: str) -> bool:
    """Return whether there is a file or folder of this name below an open folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        os.stat(name, dir_fd=folder)
        return True
    return False


Files: TypeAlias = LocalFiles | RemoteFiles
"""Files on either kind of store."""


class ArrayFiles(Store):
    """The files of an array for Zarr's reads: a chunk counts as missing only if the array's own metadata exist.

    Zarr treats a missing chunk as one that was never written, and returns the fill value, even while a disk or a store is
    unavailable. So every read that Zarr makes goes through `get`: the other methods of `zarr.abc.store.Store` call `get`, and
    none is forwarded to the store below. For this reason it is not a `zarr.storage.WrapperStore`, which forwards every method
    of reading that Zarr adds.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, files: Files, node: str) -> None:
        """Read from `files`, where the array's metadata are the file `node`."""
        super().__init__(read_only=True)
        self.files = files
        self.max_bytes = MAX_METADATA_BYTES
        """Most bytes of a file on a disk; to be raised once the metadata have been read and the size of a chunk is known."""
        self._node = node

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArrayFiles) and (self.files, self._node) == (other.files, other._node)

    __hash__ = None  # type: ignore[assignment]  # as of each store of Zarr

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the bytes of a file for Zarr; None if it was never written.

        Raises
        ------
        TooLongError
            If a file on a disk is longer than it can be.
        StoreError
            If the array's metadata are missing too, or the file exists after all: the store is, or was, unavailable.
        """
        if byte_range is None and isinstance(self.files, LocalFiles):
            refuse_too_long(key, self.files.size(key) or 0, self.max_bytes)
        found = await self.files.get(key, prototype, byte_range)
        if found is None and key != self._node and not await asyncio.to_thread(self.files.is_missing, key, self._node):
            raise store_unavailable(recovered=True)
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of files for Zarr, as `get` does."""
        return await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))

    async def exists(self, key: str) -> bool:
        """Return whether a file was written.

        Raises
        ------
        StoreError
            If the store is unavailable.
        """
        return not await asyncio.to_thread(self.files.is_missing, key, self._node)

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse to write."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Refuse to delete."""
        raise NotImplementedError

    def list(self) -> AsyncIterator[str]:
        """Refuse to list: files missing from a list would count as never written."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError


def find_metadata(files: Files, name: str, beside: str) -> bytes | None:
    """Return the content of a metadata file; None if it does not exist although the file `beside` does.

    Parameters
    ----------
    files
        Files of a Zarr.
    name
        Path of the metadata file.
    beside
        Path of a file that exists wherever the metadata file could.

    Returns
    -------
    bytes or None
        The content.

    Raises
    ------
    TooLongError
        If it has more than `MAX_METADATA_BYTES` bytes.
    StoreError
        If `beside` does not exist either, or the file exists after all: the disk or store is, or was, unavailable.
    """
    found = files.read_metadata(name)
    if found is None and not files.is_missing(name, beside):
        raise store_unavailable(recovered=True)
    return found


def open_files(place: Place) -> Files:
    """Open the files below a place for reading.

    Returns
    -------
    LocalFiles or RemoteFiles
        The files; no request has been made yet.

    Raises
    ------
    VolumeError
        If it is an address, and obstore is not installed or does not accept a setting in the environment.
    """
    return open_remote(place) if isinstance(place, Address) else LocalFiles(place, read_only=True)


def open_writable_files(place: Place, owner: bytes | None = None, *, patient: bool = False) -> Files:
    """Open the files below a place for reading and writing.

    On a disk, they stay those of the folder that is at `place` when it is first used.

    Parameters
    ----------
    owner
        Content that the identity file must have before anything is changed; None to skip the check.
    patient
        Retry for a minute, not only for seconds, if an object store does not answer.

    Returns
    -------
    HeldFiles or RemoteFiles
        The files; no request has been made yet.

    Raises
    ------
    VolumeError
        If it is an address, and obstore is not installed or does not accept a setting in the environment.
    """
    return open_remote(place, patient=patient, owner=owner) if isinstance(place, Address) else HeldFiles(place, owner)
