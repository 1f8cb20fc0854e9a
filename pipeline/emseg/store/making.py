"""What is made beside its place, by one process at a time, and gets its name when it is complete.

.emseg-KEY/emseg     who is making it: a lease, as outputs have; removed before that
.emseg-KEY/N-TAKING  what the holder of lease N is making: whoever takes over from one that died writes elsewhere

The key follows from the name. So what a process has left that was killed is found, and removed, when the same is made again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from emseg.errors import OutputError
from emseg.store.files import HeldFiles, LocalFiles
from emseg.store.lease import Lease, newest_run, take_lease
from emseg.store.records import FOLDER, Records
from emseg.store.staging import output_error, publish, refuse_taken, restore, staging_folder


@contextmanager
def making(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Where to make a file or a folder, which is called `path` when the body ends, and removed if the body fails.

    With `replace`, what `path` was until then is deleted after the renaming.

    Raises
    ------
    OutputError
        If `path` exists and is not to be replaced, another process that lives is making it, or an `OSError` stops the writing.
    OrphanError
        If another process has taken over.
    """
    folder = staging_folder(path, hashlib.sha256(path.name.encode()).hexdigest()[:12])
    lease = leased(folder, path)
    work, aside = folder / f"{lease.run}-{lease.taking}", folder / "old"
    try:
        with lease.held(), written(path):
            restore(aside, path)
            clear(folder)
            if not replace:
                refuse_taken(path)
            yield work
            lease.token.check()
            LocalFiles(work).tidy()  # what workers that died have left half-written
        with written(path):
            shutil.rmtree(folder / FOLDER)
            publish(work, path, aside, replace=replace)
    finally:
        taken_over = newest_run(Records(LocalFiles(folder))) > lease.run
        if not taken_over:
            restore(aside, path)
        shutil.rmtree(work if taken_over else folder, ignore_errors=True)


def leased(folder: Path, path: Path) -> Lease:
    """The sole right to work in a folder, which is made if it is not there; messages name `path`."""
    with written(path):
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    try:
        return take_lease(Records(HeldFiles(folder)), path)
    except OutputError:
        if newest_run(Records(LocalFiles(folder))) == 0:  # a full disk has left nothing but empty folders
            for empty in (folder / FOLDER, folder):
                with suppress(OSError):
                    empty.rmdir()
        raise


def clear(folder: Path) -> None:
    """Removes all that others have left in a leased folder."""
    for left in folder.iterdir():
        if left.name != FOLDER:
            shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turns what a disk refuses within the ``with`` into an `OutputError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error
