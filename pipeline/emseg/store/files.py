"""The files below a place, a disk or an object store: Zarr reads them, and outputs, leases and records are written to them.

Both kinds can do the same: read a file, put one whole, create one that must not exist, list and remove. A disk can also
rename folders at once and lock; nothing here depends on that.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, TypeAlias

from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

from emseg.store.blame import away
from emseg.store.ownership import Owned
from emseg.store.place import Address, Place
from emseg.store.remote import MOST_METADATA, RemoteFiles, open_remote, refuse_long
from emseg.store.staging import PARTIAL, commit, make_folders, sync_folder


class LocalFiles(Owned, LocalStore):
    """Files below a folder, by names with ``/`` in them. All raise `OSError` if the disk refuses.

    Whatever changes them raises `OrphanError` if they have an owner who has lost them.

    To Zarr, none of them is empty or ends within what is read of it: a power cut may leave a file empty, and zarr 3.1 takes
    an empty shard for one that was never written, in silence. It also takes memory for as many bytes as metadata say that
    there are.
    """

    @property
    def place(self) -> Path:
        """The folder."""
        return self.root

    def read(self, name: str) -> bytes | None:
        """A whole file; None if it is not there."""
        file = self.root / name
        return file.read_bytes() if file.is_file() else None

    def read_metadata(self, name: str) -> bytes | None:
        """A whole file of metadata; None if it is not there.

        Raises
        ------
        TooLongError
            If it has more than `MOST_METADATA` bytes.
        """
        refuse_long(name, self.size(name) or 0, MOST_METADATA)
        return self.read(name)

    def lacks(self, name: str, beside: str) -> bool:
        """Whether a file or folder is not there while the file `beside` is.

        Both are looked for from one open folder, whatever lies at its path a moment before or after: the place of a disk
        that is away does not hold `beside`.

        Raises
        ------
        StoreError
            If `beside` is not there, which says nothing about the other.
        """
        try:
            with _open_folder(self.root) as folder:
                if not _is_in(folder, beside):
                    raise away()
                return not _is_in(folder, name)
        except (FileNotFoundError, NotADirectoryError):
            raise away() from None

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """A file to be read piece by piece.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        """
        with (self.root / name).open("rb") as stream:
            yield stream

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is not there."""
        try:
            return (self.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, document: bytes | memoryview, permit: Callable[[], None] | None = None) -> str:
        """Put a file in its place whole, and on the disk; `permit` is asked at the last moment and may raise.

        Always an empty text: nothing that was sent before arrives later.
        """

        def allowed() -> None:
            self.check_owner()
            if permit is not None:
                permit()

        allowed()  # first, so that an orphan does not even make a folder
        file = self.root / name
        make_folders(file.parent, self.root)
        commit(file, document, allowed)
        return ""

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file to be written piece by piece; it is in its place, whole, when the ``with`` has ended."""
        self.check_owner()
        file = self.root / name
        make_folders(file.parent, self.root)
        work = file.with_name(f"{file.name}{PARTIAL}")
        with work.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        self.check_owner()
        work.replace(file)
        sync_folder(file.parent)

    def create(self, name: str, document: bytes) -> bool:
        """Put a file unless there is one of this name; whether this caller, and nobody else, has made it."""
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
        """When a file was put, in seconds by the clock of the file system, which all hosts share; None if it is not there.

        Of a folder it is when a name in it was last made or removed.
        """
        try:
            return (self.root / name).stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None

    def clock(self, folder: str) -> float:
        """What that clock says now; a file is made in a folder to find out."""
        probe = self.root / folder / f".emseg-{secrets.token_hex(6)}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def entries(self, folder: str = "") -> list[str]:
        """Names of the files and folders in a folder, sorted; none if it is not there."""
        try:
            return sorted(entry.name for entry in (self.root / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def names(self, prefix: str = "") -> list[str]:
        """Names of all files that begin with `prefix`, sorted, but for hidden ones."""
        folder, slash, start = prefix.rpartition("/")
        found: list[str] = []
        for entry in self.entries(folder):
            if entry.startswith(start):
                name = f"{folder}{slash}{entry}"
                found += [name] if (self.root / name).is_file() else [f"{name}/{inside}" for inside, _ in self.sizes(name)]
        return sorted(name for name in found if not Path(name).name.startswith("."))

    def sizes(self, folder: str, *, tidy: bool = False) -> Iterator[tuple[str, int]]:
        """Name, within a folder, and bytes of each file below it; each folder is listed once.

        With `tidy`, files that a killed writer has left half-written are removed.

        Raises
        ------
        StoreError
            If a folder vanishes that was listed.
        """
        if tidy:
            self.check_owner()
        left = [(os.fspath(self.root / folder), "")]
        while left:
            path, inside = left.pop()
            try:
                with _open_folder(path) as opened, os.scandir(opened) as found:
                    for entry in found:
                        if tidy and entry.name.endswith(PARTIAL):
                            Path(path, entry.name).unlink(missing_ok=True)
                        elif entry.is_dir():
                            left.append((f"{path}/{entry.name}", f"{inside}{entry.name}/"))
                        elif (size := _size(entry)) is not None:
                            yield f"{inside}{entry.name}", size
            except (FileNotFoundError, NotADirectoryError):
                if inside:  # it was listed a moment ago
                    raise away() from None

    def tidy(self, folder: str = "", *, deep: bool = True) -> None:
        """Remove files that a killed writer has left half-written below a folder, or only right in it."""
        self.check_owner()
        root = self.root / folder
        for left in list(root.rglob(f"*{PARTIAL}") if deep else root.glob(f"*{PARTIAL}")):
            left.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        self.check_owner()
        with suppress(NotADirectoryError):
            (self.root / name).unlink(missing_ok=True)

    def remove_all(self, folder: str) -> None:
        """Remove a folder, if there is one."""
        self.check_owner()
        while (self.root / folder).exists():
            with suppress(FileNotFoundError):  # of a file that somebody else has taken away meanwhile
                shutil.rmtree(self.root / folder)

    def rename(self, name: str, to: str) -> None:
        """Give a file another name, also one that a file had until then."""
        self.check_owner()
        (self.root / name).replace(self.root / to)

    def rename_all(self, folder: str, to: str) -> None:
        """Give a Zarr node with all that is in it another name, which none has."""
        self.check_owner()
        (self.root / folder).rename(self.root / to)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        file = self.root / key
        if isinstance(byte_range, RangeByteRequest) and file.is_file() and (size := file.stat().st_size) < byte_range.end:
            raise ValueError(f"the file {key} has {size} bytes, but should have at least {byte_range.end}")
        found = await super().get(key, prototype, byte_range)
        if found is not None and len(found) == 0:
            raise ValueError(f"the file {key} is empty")
        return found


class HeldFiles(LocalFiles):
    """Files below a folder that is opened once: whatever comes to lie at its path later takes no file of them.

    A folder that was removed takes none, either; one that was moved takes them where it is now. Whoever gets these files in
    another process opens the folder there, at the first use.
    """

    def __init__(self, place: Path, owner: bytes | None = None) -> None:
        super().__init__(place, read_only=True)
        self._place = place
        self.owner = owner

    def __reduce__(self) -> tuple[type[HeldFiles], tuple[Path, bytes | None]]:
        return type(self), (self._place, self.owner)

    @property
    def place(self) -> Path:
        """Where the folder was."""
        return self._place

    @property
    def root(self) -> Path:
        """A path that leads to the open folder; its own where the system has no such paths."""
        return Path(f"/proc/self/fd/{self._opened}") if _HAS_PATHS_OF_OPEN_FOLDERS else self._place

    @root.setter
    def root(self, path: Path) -> None:
        """What is below a path is reached through the open folder."""

    @cached_property
    def _opened(self) -> int:
        try:
            opened = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            raise away() from None
        weakref.finalize(self, os.close, opened)
        return opened

    def check_owner(self) -> None:
        """As for all files; where the disk was away the folder is opened anew, but only if it still is the owner's."""
        try:
            super().check_owner()
        except OSError:
            anew = HeldFiles(self._place, self.owner)
            Owned.check_owner(anew)
            os.dup2(anew._opened, self._opened, inheritable=False)


_HAS_PATHS_OF_OPEN_FOLDERS = Path("/proc/self/fd").is_dir()


@contextmanager
def _open_folder(path: str | Path) -> Iterator[int]:
    """A folder that stays the same one, whatever comes to lie at its path."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield opened
    finally:
        os.close(opened)


def _size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of a file of an open folder; None if it has been removed, or given its final name, since that was listed."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return None


def _is_in(folder: int, name: str) -> bool:
    """Whether there is a file or folder of this name below an open folder."""
    try:
        os.stat(name, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


Files: TypeAlias = LocalFiles | RemoteFiles


class ArrayFiles(WrapperStore[Files]):
    """The files of an array as Zarr reads them: none is missing unless the array's own metadata are there.

    Zarr takes what is missing for what was never written, and gives the fill value, also while a disk or a store is away.
    """

    def __init__(self, store: Files, node: str) -> None:
        """The metadata are the file `node`."""
        super().__init__(store)
        self.files = store
        self.most = MOST_METADATA
        """Most bytes of a file on a disk; more once the metadata have told how large a chunk is."""
        self._node = node

    def _with_store(self, store: Files) -> ArrayFiles:
        return ArrayFiles(store, self._node)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if byte_range is None and isinstance(self.files, LocalFiles):
            refuse_long(key, self.files.size(key) or 0, self.most)
        found = await self.files.get(key, prototype, byte_range)
        if found is None and key != self._node and not await asyncio.to_thread(self.files.lacks, key, self._node):
            raise away(back=True)
        return found


def find(files: Files, name: str, beside: str) -> bytes | None:
    """A whole file of metadata; None if it is not there while the file `beside` is.

    Raises
    ------
    TooLongError
        If it has more than `MOST_METADATA` bytes.
    StoreError
        If that is not there either, or the file is there after all: a disk or a store is away, or was for a moment.
    """
    found = files.read_metadata(name)
    if found is None and not files.lacks(name, beside):
        raise away(back=True)
    return found


def open_files(place: Place, *, patient: bool = False) -> Files:
    """What is below a place, to read.

    Parameters
    ----------
    patient
        Whether an object store that does not answer is asked for a minute, not only for seconds.

    Raises
    ------
    VolumeError
        If it is an address, and obstore is not installed, or the environment says something that it does not take.
    """
    if isinstance(place, Address):
        return open_remote(place, patient=patient)
    return LocalFiles(place, read_only=True)


def hold_files(place: Place, owner: bytes | None = None, *, patient: bool = False) -> Files:
    """What is below a place, to read and to write: on a disk below the folder that lies there when it is first used.

    Parameters
    ----------
    owner
        What the file that names the owner must hold before anything is changed; None for anything.
    patient
        As for `open_files`.

    Raises
    ------
    VolumeError
        As `open_files`.
    """
    if isinstance(place, Address):
        return open_remote(place, patient=patient, owner=owner)
    return HeldFiles(place, owner)
