"""All or nothing: what a folder or a file is made under another name, and renamed when it is complete."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emseg.errors import OutputError, VolumeError
from emseg.store.nodes import local, reason

REMEDIES = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some of your quota, or choose another disk",
    errno.EROFS: "choose a folder on a disk that is not read-only",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def output_error(path: Path, error: OSError) -> OutputError:
    """The error to raise for a place that cannot be written, with its cause and remedy."""
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


@contextmanager
def staged(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder beside `path`, which gets that name when the body ends and is removed if the body fails.

    With `replace`, what `path` was until then is deleted after the renaming.

    Raises
    ------
    OutputError
        If `path` exists and is not to be replaced, or an `OSError` stops the writing.
    """
    work = _beside(path)
    try:
        if os.path.lexists(path) and not replace:
            raise OutputError(f"{path} already exists: choose another name, or remove it first")
        work.mkdir()
        yield work
        if replace and os.path.lexists(path):
            _exchange(work, path)
        else:
            work.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and os.path.lexists(path):
            raise OutputError(f"{path} was made by somebody else in the meantime: choose another name") from error
        raise output_error(path, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Deletes a folder; it first gets another name, so that half of it is never seen under its own.

    Raises
    ------
    OutputError
        If it cannot be deleted.
    """
    aside = _beside(path)
    try:
        path.rename(aside)
        shutil.rmtree(aside)
    except OSError as error:
        left = f", what is left of it is {aside}" if aside.exists() else ""
        raise OutputError(f"{path} cannot be removed ({reason(error)}){left}: check the folder's permissions") from error


def write_json(file: Path, document: Any) -> None:
    """Writes a JSON file so that it is, even after a power cut, either what it was or what it should be.

    Raises
    ------
    OutputError
        If it cannot be written.
    ValueError
        If `document` is not JSON; infinity and NaN are not.
    """
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    work = _beside(file)
    try:
        with work.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        work.replace(file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise output_error(file, error) from error
    finally:
        work.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A short name that nobody else uses, in the same folder."""
    return path.parent / f".emseg-{secrets.token_hex(6)}"


def _exchange(work: Path, path: Path) -> None:
    """Put `work` in the place of `path`, and delete what was there."""
    old = _beside(path)
    path.rename(old)
    try:
        work.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
