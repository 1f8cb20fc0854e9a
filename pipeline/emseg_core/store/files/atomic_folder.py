"""Build a file or folder in a hidden sibling, under a lease, then rename it into place.

    .emseg-KEY/emseg     who is building it: a lease, as outputs have; held until `path` has its name
    .emseg-KEY/N-TAKING  what the holder of lease N builds; a process that takes over from a dead one writes elsewhere
    .emseg-KEY-TAKING    the folder of a lease that has ended, about to be deleted

The key follows from the name, so what a killed process has left is found, and removed, when the same path is built again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from emseg_core.errors import OutputError
from emseg_core.store.files.atomic_write import publish, refuse_existing, restore, staging_folder, translate_oserror
from emseg_core.store.files.files import HeldFiles, LocalFiles
from emseg_core.store.files.lease import Lease, newest_run, take_lease
from emseg_core.store.files.records import RECORDS_FOLDER, Records


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Build a file or folder elsewhere, and rename it to `path` when the body ends.

    It is removed if the body fails.

    Parameters
    ----------
    replace
        Delete what `path` was until then, after the renaming.

    Yields
    ------
    Path
        Where to create the file or folder; nothing is there yet.

    Raises
    ------
    OutputError
        If `path` exists and is not to be replaced, another live process is building it, or an `OSError` stops the writing.
    OrphanError
        If another process has taken over.
    """
    folder = staging_folder(path, hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12])
    lease = lease_folder(folder, path)
    work, aside = folder / f"{lease.run}-{lease.taking}", folder / "old"
    removed = folder.with_name(f"{folder.name}-{lease.taking}")
    try:
        with lease.held():
            try:
                with translate_oserror(path):
                    restore(aside, path)
                    clear_leftovers(folder)
                    if not replace:
                        refuse_existing(path)
                    yield work
                    lease.token.check()
                    LocalFiles(work).tidy()  # workers that died may have left half-written files
                    publish(work, path, aside, replace=replace)
            finally:
                if newest_run(Records(LocalFiles(folder))) > lease.run:  # another process has taken over
                    shutil.rmtree(work, ignore_errors=True)
                else:
                    restore(aside, path)
                    with suppress(OSError):
                        folder.rename(removed)  # the next process finds the lease held, or no lease and nothing to clear
    finally:
        shutil.rmtree(removed, ignore_errors=True)


def lease_folder(folder: Path, path: Path) -> Lease:
    """Take the exclusive right to work in a folder, which is created if it does not exist.

    Parameters
    ----------
    path
        Name in messages.

    Returns
    -------
    Lease
        The lease, whose heartbeat runs until it is released.

    Raises
    ------
    OutputError
        If another live process holds the lease, or the folder cannot be written.
    """
    with translate_oserror(path):
        (folder / RECORDS_FOLDER).mkdir(parents=True, exist_ok=True)
        try:
            return take_lease(Records(HeldFiles(folder)), path)
        except OutputError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            for empty in (*(folder / RECORDS_FOLDER).glob("run-*"), folder / RECORDS_FOLDER, folder):
                with suppress(OSError):  # another process may be working there
                    empty.rmdir()
            raise error.__cause__ from None


def clear_leftovers(folder: Path) -> None:
    """Remove everything that earlier processes have left in a leased folder.

    Parameters
    ----------
    folder
        Folder that this process has leased.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    for left in folder.iterdir():
        if left.name != RECORDS_FOLDER:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    for removed in folder.parent.glob(f"{folder.name}-*"):
        shutil.rmtree(removed, ignore_errors=True)
