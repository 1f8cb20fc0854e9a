"""Who may see a dashboard: whoever has the token of its cluster, by the link that is printed, or from a file.

This user alone can read the file. It is for Prometheus and for scripts, and for links in logs, which others may read.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from emseg.store.place import Place, beside

PARAMETER = "emseg-token"
"""Of a link; proxies such as Jupyter's take a parameter ``token`` for their own."""


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(24)


def link_with(address: str, token: str) -> str:
    """The link that lets in whoever opens it."""
    parts = urlsplit(address)
    return parts._replace(query="&".join(filter(None, (parts.query, f"{PARAMETER}={token}")))).geturl()


def link_for_logs(link: str, file: Path) -> str:
    """The same link for the eyes of others, as a shell completes it from the token's file; one without a token stays."""
    return re.sub(rf"(?<={PARAMETER}=)[\w-]+", lambda _: f"$(cat {shlex.quote(str(file))})", link)


def token_file(place: Place) -> Path:
    """The file beside what is written, or for a remote place in the current folder, that has the token."""
    return beside(place, f".{place.name}.token").absolute()


@contextmanager
def token_kept(token: str, file: Path) -> Iterator[None]:
    """Within the ``with``, a file that this user alone can read has the token; one that is left of another run is replaced.

    Raises
    ------
    OSError
        If there can be no such file.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"{file.name}-", dir=file.parent)  # mode 0600, and of nobody else's making
    made = Path(name)
    try:
        with os.fdopen(descriptor, "w") as new:
            if os.fstat(descriptor).st_mode & 0o077:
                raise PermissionError("the file system lets others read what is there")
            new.write(token)
        made.replace(file)
    except BaseException:
        made.unlink()
        raise
    try:
        yield
    finally:
        with suppress(OSError):
            if file.read_text() == token:  # else it is of a later run
                file.unlink()
