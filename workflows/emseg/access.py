"""Access to what this process serves: addresses behind a proxy, and the token of a dashboard, in its link or in a file.

Only this user can read the file. It is for Prometheus and for scripts, and for links in logs, which others may read.
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

from emseg_core.errors import InputError
from emseg_core.store.files.place import Place, sibling

TOKEN_PARAMETER = "emseg-token"
"""Query parameter of a link; proxies such as Jupyter's use a parameter ``token`` themselves."""

PROXY_PATTERN = re.compile(r"https?://(?:\[[\da-f:.]+\]|[\w.-]+)(?::\d+)?(?:/[^\s?#{}\"'|\\]*)?", re.ASCII | re.IGNORECASE)
"""Address of a folder of a web server."""


def public_address(url: str, port: int) -> str:
    """Return the address at which a proxy shows a port of this machine.

    Parameters
    ----------
    url
        The address as the user states it, with ``{port}`` for the port.
    port
        The port.

    Returns
    -------
    str
        URL that ends with a slash.

    Raises
    ------
    InputError
        If it is not the address of a folder of a web server.
    """
    address = url.replace("{port}", str(port))
    if not PROXY_PATTERN.fullmatch(address):
        raise InputError(
            f"--public-url is {url!r}, not the address of a proxy: write https://HOST/PATH/, with {{port}} for the port"
        )
    return address.rstrip("/") + "/"


def hub_address(port: int | str) -> str | None:
    """Return the address at which jupyter-server-proxy shows a port of this machine, if this process is under JupyterHub.

    Parameters
    ----------
    port
        The port, or a placeholder for it.

    Returns
    -------
    str or None
        It ends with a slash, and is only a path if the hub does not state its own address.
    """
    server = os.environ.get("JUPYTERHUB_SERVICE_PREFIX") and (
        os.environ.get("JUPYTERHUB_PUBLIC_URL") or os.environ["JUPYTERHUB_SERVICE_PREFIX"]
    )
    return f"{server.rstrip('/')}/proxy/{port}/" if server else None


def new_token() -> str:
    """Create a random token.

    Returns
    -------
    str
        32 characters that are safe in an address.
    """
    return secrets.token_urlsafe(24)


def link_with(address: str, token: str) -> str:
    """Add a token to an address.

    Parameters
    ----------
    address
        Address of a page.
    token
        Token of the run.

    Returns
    -------
    str
        A link that admits anyone who opens it.
    """
    parts = urlsplit(address)
    return parts._replace(query="&".join(filter(None, (parts.query, f"{TOKEN_PARAMETER}={token}")))).geturl()


def link_for_logs(link: str, file: Path) -> str:
    """Replace the token in a link by a shell expression that reads it from its file.

    Parameters
    ----------
    link
        A link, with or without a token.
    file
        File that has the token.

    Returns
    -------
    str
        A link that others may see; one without a token is returned as it is.
    """
    return re.sub(rf"(?<={TOKEN_PARAMETER}=)[\w-]+", lambda _: f"$(cat {shlex.quote(str(file))})", link)


def token_file(place: Place) -> Path:
    """Return the path of the token's file: beside the output, or in the current folder if the output is remote.

    Parameters
    ----------
    place
        Place of the output.

    Returns
    -------
    Path
        An absolute path.
    """
    return sibling(place, f".{place.name}.token").absolute()


@contextmanager
def token_file_kept(token: str, file: Path) -> Iterator[None]:
    """Keep the token, within the ``with``, in a file that only this user can read; one left by another run is replaced.

    Parameters
    ----------
    token
        Token of the run.
    file
        Path of the file.

    Yields
    ------
    None
        While the file exists.

    Raises
    ------
    OSError
        If there can be no such file.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"{file.name}-", dir=file.parent)  # a new file with mode 0600
    made = Path(name)
    try:
        with os.fdopen(descriptor, "w") as new:
            if os.fstat(descriptor).st_mode & 0o077:
                raise PermissionError("the file system lets others read it")
            new.write(token)
        made.replace(file)
    except BaseException:
        made.unlink()
        raise
    try:
        yield
    finally:
        with suppress(OSError):
            if file.read_text() == token:  # else it belongs to a later run
                file.unlink()
