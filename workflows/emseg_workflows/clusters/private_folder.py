"""A folder of one run alone for what is put aside in a temporary folder that all users of a machine share.

    /tmp/emseg-scratch-HOST-0123456789abcdef     of mode 0700, and locked for as long as the process that made it lives

The lock is the kernel's, so it goes with its process however that ends, and no number of a process is taken for another's.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dask

from emseg.errors import InputError


@contextmanager
def private_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder that only this user can enter, removed at the end of the ``with``; first, those of killed runs are.

    Removed is what this user has made on this host, nobody else can enter, and no living process holds; a link is no folder.

    Parameters
    ----------
    parent
        Where to make it; None for Dask's ``temporary-directory``, or else the system's temporary folder.

    Raises
    ------
    InputError
        If none can be made there.
    """
    try:
        parent = parent or Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir())
        parent.mkdir(parents=True, exist_ok=True)
        _remove_forgotten(parent)
        path, held = _made(parent.resolve())
    except OSError as error:
        raise InputError(
            f"no private folder can be made in {parent or 'the temporary folder'} ({error.strerror or error}): choose another "
            "place with TMPDIR, or with scratch in the site's file"
        ) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def _made(parent: Path) -> tuple[Path, int]:
    """A new folder, and what holds its lock."""
    while True:
        path = parent / f"{_prefix()}{secrets.token_hex(8)}"
        path.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # another run took it for forgotten before it was locked
            held = _opened(path)
            # where a file system has no locks, nobody takes a folder for forgotten
            with suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists():
                return path, held
            os.close(held)


def _remove_forgotten(parent: Path) -> None:
    """Remove the folders of runs that were killed."""
    with suppress(PermissionError):
        for path in parent.iterdir():
            if re.fullmatch(re.escape(_prefix()) + "[0-9a-f]{16}", path.name):
                with suppress(OSError):  # a link, locked, or removed by another run at this moment
                    _remove_if_forgotten(path)


def _remove_if_forgotten(path: Path) -> None:
    held = _opened(path)
    try:
        about = os.fstat(held)
        if about.st_uid == os.geteuid() and not about.st_mode & 0o077:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(held)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _prefix() -> str:
    """What names begin with on this host: on a file system that several share, locks may be seen on one alone."""
    return f"emseg-scratch-{socket.gethostname()}-"
