"""All or nothing: a file, or what is made beside its place, gets its name when it is complete."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emseg.errors import OutputError, VolumeError
from emseg.store.blame import StoreError, reason
from emseg.store.place import Place, local

REMEDIES = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some of your quota, or choose another disk",
    errno.EROFS: "choose a folder on a disk that is not read-only",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
}


PARTIAL = ".partial"
"""How the name of a file ends that is not in its place yet."""


def output_error(path: Place, error: OSError) -> OutputError:
    """The error to raise for a place that cannot be written, with its cause and remedy."""
    if isinstance(error, StoreError):
        return OutputError(f"{path} cannot be written ({error.strerror}): {error.remedy}")
    remedy = REMEDIES.get(error.errno or 0, "check the disk and the folder's permissions")
    return OutputError(f"{path} cannot be written ({reason(error)}): {remedy}")


def output_path(path: str | Path) -> Path:
    """The absolute path of something to be written, on a local file system and in a folder that exists.

    Raises
    ------
    OutputError
        If it is not such a path.
    """
    try:
        target = local(path)
        if not target.parent.is_dir():
            raise OutputError(f"{target} cannot be made, as {target.parent} is not a folder: make that first")
    except VolumeError as error:
        raise OutputError(str(error)) from error
    except OSError as error:
        raise output_error(Path(path), error) from error
    return target


def refuse_taken(path: Path) -> None:
    """Raises `OutputError` if there is something at a path already."""
    if os.path.lexists(path):
        raise OutputError(f"{path} already exists: choose another name, or remove it first")


def publish(work: Path, path: Path, aside: Path, *, replace: bool = False) -> None:
    """Gives a file or folder that is complete its name.

    Parameters
    ----------
    aside
        With `replace`, what a folder of that name until then is called meanwhile; it is deleted in the end.

    Raises
    ------
    OutputError
        If that fails: what was made is where it was.
    """
    try:
        if not replace and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "there is such a name", str(path))
        if replace and work.is_dir() and path.is_dir():
            _exchange(work, path, aside)
        else:
            work.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and os.path.lexists(path):
            raise OutputError(f"{path} was made by somebody else in the meantime: choose another name") from error
        raise output_error(path, error) from error


def write_json(file: Path, document: Any) -> None:
    """Writes a JSON file as `write_bytes` does.

    Raises
    ------
    OutputError
        If it cannot be written.
    ValueError
        If `document` is not JSON; infinity and NaN are not.
    """
    write_bytes(file, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def write_bytes(file: Path, document: bytes) -> None:
    """Writes a file so that it is, even after a power cut, either what it was or what it should be.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    try:
        commit(file, document)
    except OSError as error:
        raise output_error(file, error) from error


def commit(file: Path, document: bytes | memoryview, permit: Callable[[], None] | None = None) -> None:
    """Puts a file in its place whole, and on the disk; `permit` is asked at the last moment and may raise.

    Raises
    ------
    OSError
        If the disk refuses; the old file, if there was one, is still there then.
    """
    work = file.with_name(f".{file.name}.{secrets.token_hex(6)}{PARTIAL}")
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
    """Makes a folder with all between it and `root`, which must exist, each on the disk before the next."""
    if folder == root or folder.is_dir():
        return
    make_folders(folder.parent, root)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_tree(root: Path) -> None:
    """Waits until all below a folder is on the disk, for libraries that do not."""
    for folder, _, names in os.walk(root):
        for name in names:
            sync_folder(Path(folder, name))
        sync_folder(Path(folder))


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder, or the bytes of a file, are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def staging_folder(path: Path, key: str = "") -> Path:
    """A short name in the same folder: that of a key, or one that nobody else uses."""
    return path.parent / f".emseg-{key or secrets.token_hex(6)}"


def _exchange(work: Path, path: Path, aside: Path) -> None:
    """Put `work` in the place of a folder, and delete what was there."""
    try:
        path.rename(aside)
        work.rename(path)
    except BaseException:  # a signal, too, may come between the two
        restore(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def restore(aside: Path, path: Path) -> None:
    """Undoes the replacement of a folder that was put aside, if nothing is in its place; else deletes that.

    Raises
    ------
    OSError
        If it cannot be put back: it stays aside.
    """
    if aside.is_dir() and not os.path.lexists(path):
        aside.rename(path)
    shutil.rmtree(aside, ignore_errors=True)
