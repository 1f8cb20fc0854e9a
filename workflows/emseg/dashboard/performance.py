"""Dask's performance report of a run, as one HTML file without external resources."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client, performance_report

from emseg.runs.events import Noticed
from emseg_core.errors import EmsegError, OutputError

EXTERNAL_LINK = re.compile(r'<link\b[^>]*href="https?://[^>]*>')
"""Link to an external resource, which a browser would load: the icon of Dask's documentation."""


@contextmanager
def performance_report_to(file: Path, client_now: Callable[[], Client], notify: Callable[[Noticed], None]) -> Iterator[None]:
    """Record Dask's performance report within the ``with``, and write it to a file at the end.

    Parameters
    ----------
    file
        HTML file to write.
    client_now
        Returns the client in use.
    notify
        Called with a notice if the report cannot be written.

    Yields
    ------
    None
        While Dask records.

    Raises
    ------
    OutputError
        If `file` is a folder, or its folder does not exist.
    """
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise OutputError(f"the performance report {file} cannot be written: name a file in an existing folder")
    client, wanted = client_now(), True
    report = performance_report(str(file), mode="inline")
    with client.as_current():
        client.sync(report.__aenter__)
    try:
        yield
    except EmsegError:
        wanted = False  # the run was refused
        raise
    finally:
        if wanted:
            _write(client_now(), report, file, notify)


def _write(client: Client, report: performance_report, file: Path, notify: Callable[[Noticed], None]) -> None:
    try:
        with client.as_current(), _private_temporary_files():
            client.sync(report.__aexit__, None, None, None, code="emseg run")
        file.write_text(EXTERNAL_LINK.sub("", file.read_text()))
    except Exception as error:  # the scheduler may be gone, or the disk full
        notify(Noticed(f"the performance report {file} was not written: {' '.join(str(error).split())}"))


@contextmanager
def _private_temporary_files() -> Iterator[None]:
    """Put temporary files of this process into a private folder within the ``with``.

    A scheduler writes its report to the name of a temporary file that it has already deleted. In a shared folder, another user
    could put a file there.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield
        finally:
            tempfile.tempdir = before
