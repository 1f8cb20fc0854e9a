"""A folder of a single run in a temporary folder that all users of a machine share.

    /tmp/emseg-scratch-HOST-0123456789abcdef     mode 0700, locked for as long as the process that made it lives

The lock is the kernel's: it ends with its process in any case, and does not depend on process ids, which are reused.
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

from emseg_core.errors import InputError

PROBE_BYTES = 2**16
"""A private folder holds at least this much: certificates, locks, logs."""


@contextmanager
def private_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder that only this user can enter, removed at the end of the ``with``.

    First, the folders of killed runs are removed: those that this user made on this host, that no other user can enter and
    that no living process holds. Links are not followed.

    Parameters
    ----------
    parent
        Where to make it; None for Dask's ``temporary-directory``, or else the system's temporary folder.

    Yields
    ------
    Path
        The folder.

    Raises
    ------
    InputError
        If it cannot be made there.
    """
    try:
        parent = parent or Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir())
        parent.mkdir(parents=True, exist_ok=True)
        _remove_forgotten(parent)
        path, held = _made(parent.resolve())
        _check_space(path, held)
    except OSError as error:
        raise InputError(
            f"no private folder can be made in {parent or 'the temporary folder'} on {socket.gethostname()} "
            f"({error.strerror or error}): choose another folder with TMPDIR, or with scratch in the site file"
        ) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def _made(parent: Path) -> tuple[Path, int]:
    """Make a folder; return it and the descriptor that holds its lock."""
    while True:
        path = parent / f"{_prefix()}{secrets.token_hex(8)}"
        path.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # another run removed it before it was locked
            held = _opened(path)
            if _locked(held) and path.exists():
                return path, held
            os.close(held)


def _check_space(folder: Path, held: int) -> None:
    """Write a file in a new folder, and remove it; where that fails, remove the folder: full disks still take folders."""
    try:
        probe = folder / "probe"
        probe.write_bytes(bytes(PROBE_BYTES))
        probe.unlink()
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)
        raise


def _locked(folder: int) -> bool:
    """Lock an open folder; return False if another run has locked it, which is about to remove it."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # on a file system without locks, no run removes another's folder
        pass
    return True


def _remove_forgotten(parent: Path) -> None:
    """Remove the folders of killed runs."""
    with suppress(PermissionError):
        for path in parent.iterdir():
            if re.fullmatch(re.escape(_prefix()) + "[0-9a-f]{16}", path.name):
                with suppress(OSError):  # a link, locked, or just removed by another run
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
    """Return the prefix of names on this host: on a shared file system, locks may be visible on one host only."""
    return f"emseg-scratch-{socket.gethostname()}-"
