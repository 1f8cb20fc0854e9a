"""Atomic writes: a file or folder gets its final name only when it is complete."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emseg_core.errors import OutputError, VolumeError
from emseg_core.store.files.faults import StoreError, describe_error
from emseg_core.store.files.place import Place, local_path

REMEDIES = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some of your quota, or choose another disk",
    errno.EROFS: "choose a folder on a disk that is not read-only",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""How to fix an error of the disk, by its number."""

PARTIAL_SUFFIX = ".partial"
"""Suffix of the temporary name of a file that is still being written."""


def output_error(path: Place, error: OSError) -> OutputError:
    """Return the error to raise for a place that cannot be written, with the cause and the remedy.

    Parameters
    ----------
    path
        The place.
    error
        The system's error.

    Returns
    -------
    OutputError
        One line.
    """
    if isinstance(error, StoreError):
        return OutputError(f"{path} cannot be written ({error.strerror}): {error.remedy}")
    remedy = REMEDIES.get(error.errno or 0, "check the disk and the folder's permissions")
    return OutputError(f"{path} cannot be written ({describe_error(error)}): {remedy}")


@contextmanager
def translate_oserror(place: Place) -> Iterator[None]:
    """Turn an `OSError` within the ``with`` into an `OutputError` that names `place`.

    Raises
    ------
    OutputError
        If the disk or the store refuses something.
    """
    try:
        yield
    except OSError as error:
        raise output_error(place, error) from error


def output_path(path: str | Path) -> Path:
    """Return the absolute path of a file or folder to be written.

    Parameters
    ----------
    path
        Path as a user gives it.

    Returns
    -------
    Path
        An absolute path.

    Raises
    ------
    OutputError
        If it is not on a local file system, or not in a folder that exists.
    """
    with translate_oserror(Path(path)):
        try:
            target = local_path(path)
        except VolumeError as error:
            raise OutputError(str(error)) from error
        if not target.parent.is_dir():
            raise OutputError(f"{target} cannot be created, as {target.parent} is not a folder: create that first")
    return target


def refuse_existing(path: Path) -> None:
    """Check that nothing exists at a path.

    Parameters
    ----------
    path
        File or folder to be written.

    Raises
    ------
    OutputError
        If something does.
    """
    if os.path.lexists(path):
        raise OutputError(f"{path} already exists: choose another name, or remove it first")


def publish(work: Path, path: Path, aside: Path, *, replace: bool = False) -> None:
    """Rename a complete file or folder to its final name.

    Parameters
    ----------
    work
        The complete file or folder.
    path
        Its final name.
    aside
        Temporary name of an existing folder at `path` that is being replaced; it is deleted in the end.
    replace
        Whether to replace what exists at `path`.

    Raises
    ------
    OutputError
        If that fails: `work` is still where it was.
    """
    try:
        if not replace and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "the name exists", str(path))
        if replace and work.is_dir() and path.is_dir():
            _exchange(work, path, aside)
        else:
            work.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and os.path.lexists(path):
            raise OutputError(f"{path} was created by another process in the meantime: choose another name") from error
        raise output_error(path, error) from error


def write_json(file: Path, document: Any) -> None:
    """Write a JSON file atomically, as `write_bytes` does.

    Parameters
    ----------
    file
        Path of the file.
    document
        JSON values.

    Raises
    ------
    OutputError
        If it cannot be written.
    ValueError
        If `document` cannot be represented in JSON, as infinity and NaN.
    """
    write_bytes(file, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def write_bytes(file: Path, document: bytes) -> None:
    """Write a file atomically: even after a power cut it has either its old or its new content.

    Parameters
    ----------
    file
        Path of the file.
    document
        Content of the file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with translate_oserror(file):
        commit(file, document)


def commit(file: Path, document: bytes | memoryview, permit: Callable[[], None] | None = None) -> None:
    """Write a file atomically, and flush it to the disk.

    Parameters
    ----------
    permit
        Called at the last moment, before the renaming; may raise to prevent it.

    Raises
    ------
    OSError
        If the disk refuses; an older file is left as it was.
    """
    work = file.with_name(f".{file.name}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}")
    try:
        with work.open("xb") as stream:
            stream.write(document)
            stream.flush()
            os.fsync(stream.fileno())
        if permit is not None:
            permit()
        work.replace(file)
        sync_folder(file.parent)
    finally:
        work.unlink(missing_ok=True)


def make_folders(folder: Path, root: Path) -> None:
    """Create a folder and its parents below `root`, which must exist; each is on the disk before the next is created.

    Parameters
    ----------
    folder
        Folder to create.
    root
        Folder that exists.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    if folder == root or folder.is_dir():
        return
    make_folders(folder.parent, root)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_tree(root: Path) -> None:
    """Flush everything below a folder to the disk, for libraries that do not.

    Parameters
    ----------
    root
        The folder.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    for folder, _, names in os.walk(root):
        for name in names:
            sync_folder(Path(folder, name))
        sync_folder(Path(folder))


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder, or the content of a file, to the disk.

    Parameters
    ----------
    folder
        A folder or a file.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def staging_folder(path: Path, key: str = "") -> Path:
    """Return a short name in the same folder, derived from `key`, or unique if there is none.

    Parameters
    ----------
    path
        File or folder that will be written.
    key
        Text from which the name is derived, so that it is the same each time.

    Returns
    -------
    Path
        A path in the folder of `path`.
    """
    return path.parent / f".emseg-{key or secrets.token_hex(6)}"


def _exchange(work: Path, path: Path, aside: Path) -> None:
    """Replace the folder `path` by `work`, and delete the old one."""
    try:
        path.rename(aside)
        work.rename(path)
    except BaseException:  # a signal, too, may come between the two
        restore(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def restore(aside: Path, path: Path) -> None:
    """Finish or undo an interrupted replacement: put `aside` back if nothing is at `path`, else delete it.

    Parameters
    ----------
    aside
        Path to which the replaced file or folder was moved.
    path
        Its place.

    Raises
    ------
    OSError
        If it cannot be put back: it stays at `aside`.
    """
    if aside.is_dir() and not os.path.lexists(path):
        aside.rename(path)
    shutil.rmtree(aside, ignore_errors=True)
