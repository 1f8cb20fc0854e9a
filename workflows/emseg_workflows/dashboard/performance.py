"""Dask's performance report of a run: one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client, performance_report

from emseg.errors import EmsegError, OutputError
from emseg_workflows.events import Noticed

OUTSIDE = re.compile(r'<link\b[^>]*href="https?://[^>]*>')
"""What a browser would ask elsewhere for: the icon of Dask's documentation."""


@contextmanager
def reporting(client_now: Callable[[], Client], file: Path, notify: Callable[[Noticed], None]) -> Iterator[None]:
    """Within the ``with``, what the scheduler sees is gathered; at its end, it is written to a file.

    Raises
    ------
    OutputError
        If the file cannot be written to begin with.
    """
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise OutputError(f"the performance report {file} cannot be written: name a file in a folder that is there")
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
        file.write_text(OUTSIDE.sub("", file.read_text()))
    except Exception as error:  # the scheduler may be gone, the disk full
        notify(Noticed(f"the performance report {file} is not written: {' '.join(str(error).split())}"))


@contextmanager
def _private_temporary_files() -> Iterator[None]:
    """Within the ``with``, temporary files of this process are in a folder of this user alone.

    A scheduler writes its report to a name that it has given up before, so that any user may put a file there.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield
        finally:
            tempfile.tempdir = before
