"""HTTP server on loopback for the viewer's client and the image data, all below an address that cannot be guessed.

    http://127.0.0.1:PORT/TOKEN/               redirects to the viewer with its state
    http://127.0.0.1:PORT/TOKEN/v/emseg/       the client, which is part of Neuroglancer's Python package
    http://127.0.0.1:PORT/TOKEN/events/emseg   event stream to which that client listens
    http://127.0.0.1:PORT/TOKEN/data/NAME      files, or objects of a remote store
    http://127.0.0.1:PORT/TICKET               redirects to the first, once

Redirects are relative, and the client's page turns the addresses of the data into its own, so all of this works at the other
end of a tunnel or of a proxy that adds a prefix.

Other users of the machine can reach loopback too, but without the token they get 404. Nothing can be written, no folder is
listed, and targets of links outside their folder are not served.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RedirectHandler, RequestHandler, StaticFileHandler

from emseg.access import hub_address, public_address
from emseg.viewing.page import SCRIPT, SCRIPT_NAME, with_script
from emseg_core.errors import InputError
from emseg_core.store.files.faults import StoreError
from emseg_core.store.files.place import Address, Place
from emseg_core.store.files.remote import ByteRange, RemoteFiles, open_remote

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
RANGE_HEADER = re.compile(r"bytes=(?!-$)(\d*)-(\d*)")
"""Header that requests one range of a file."""
VIEWER_NAME = "emseg"
"""Name of the viewer; the client supports several viewers per server."""


class ViewServer:
    """Server that runs in its own thread from `start` until `stop`."""

    def __init__(self, client: Path, port: int = 0, public_url: str | None = None) -> None:
        """Bind the port.

        Parameters
        ----------
        client
            Folder of the client's files.
        port
            Port to listen on; 0 for any free one.
        public_url
            Address at which a proxy shows the port, which ``{port}`` stands for; None for JupyterHub's if this process is
            under one.

        Raises
        ------
        InputError
            If the port is in use, this user may not use it, or ``public_url`` is not an address.
        """
        if public_url is not None:
            public_address(public_url, port)
        try:
            self._socket = socket.create_server((LOOPBACK, port))
        except OSError as error:
            cause = os.strerror(error.errno or 0).lower()
            raise InputError(f"port {port} of {LOOPBACK} is not available ({cause}): choose another with --port") from error
        self._socket.setblocking(False)
        self.port = int(self._socket.getsockname()[1])
        """Port on which the server listens."""
        self._local = f"http://{LOOPBACK}:{self.port}/"
        shown = hub_address(self.port) if public_url is None else public_address(public_url, self.port)
        self._public = shown or self._local
        self._client = client
        self._token = secrets.token_urlsafe(24)
        self._tickets: set[str] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="emseg view", daemon=True)
        self._started: Future[Callable[[], object]] = Future()
        """Result: the function that stops the server. Set once it serves."""
        self._app = Application(log_function=lambda _: None, behind_proxy=shown is not None)

    @property
    def url(self) -> str:
        """Address that redirects to the viewer; only a path if the host of the proxy is not known."""
        return f"{self._public}{self._token}/"

    def data(self, name: str) -> str:
        """Return the address of a folder of files.

        Parameters
        ----------
        name
            Name of the folder.

        Returns
        -------
        str
            URL that ends with a slash.
        """
        root = self._local if self._public.startswith("/") else self._public
        return f"{root}{self._token}/data/{name}/"

    def viewer(self, fragment: str) -> str:
        """Return the address of the viewer.

        Parameters
        ----------
        fragment
            State of the viewer, encoded for its address.

        Returns
        -------
        str
            URL.
        """
        return f"{self.url}{_viewer(fragment)}"

    def ticket(self) -> str:
        """Return an address that redirects to the viewer once.

        It keeps the token secret: other users can see the command line of a browser that is started.

        Returns
        -------
        str
            URL.
        """
        self._tickets.add(number := secrets.token_urlsafe(24))
        return f"{self._local}{number}"

    def start(self, fragment: str, places: Mapping[str, Place], files: Mapping[str, bytes]) -> None:
        """Start serving.

        Parameters
        ----------
        fragment
            Initial state of the viewer, encoded for its address.
        places
            Folder or remote place to serve below each name, of the form ``name`` or ``name/part``.
        files
            Content to serve at further names.
        """
        root, page = f"/{self._token}/", with_script((self._client / "index.html").read_text())
        handlers: list[Any] = [
            (r"/favicon\.ico", _NoIcon),
            (root, RedirectHandler, {"url": _viewer(fragment), "permanent": False}),
            (r"/([^/]+)", _Ticket, {"url": f"{self._token}/", "valid": self._tickets}),
            (rf"{root}events/{VIEWER_NAME}", _Events),
            (rf"{root}v/{VIEWER_NAME}/(?:index\.html)?", _Page, {"content": page, "kind": "text/html"}),
            (rf"{root}v/{VIEWER_NAME}/{SCRIPT_NAME}", _Page, {"content": SCRIPT, "kind": "text/javascript"}),
            (rf"{root}v/{VIEWER_NAME}/(.*)", StaticFileHandler, {"path": self._client}),
            *((rf"{root}data/{name}", _Document, {"content": content}) for name, content in files.items()),
            *((rf"{root}data/{name}/(.*)", *_handler(place)) for name, place in places.items()),
        ]
        self._app.add_handlers(r".*", handlers)
        self._thread.start()
        self._started.result()

    def wait(self) -> None:
        """Block until the server is stopped, or a signal's handler raises."""
        while self._thread.is_alive():
            self._thread.join(1)

    def stop(self) -> None:
        """Stop the server and close its connections."""
        if self._thread.is_alive():
            self._started.result()()
            self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _serve(self) -> None:
        over = asyncio.Event()
        http = HTTPServer(self._app)
        http.add_socket(self._socket)
        loop = asyncio.get_running_loop()
        self._started.set_result(lambda: loop.call_soon_threadsafe(over.set))
        await over.wait()
        http.stop()
        await http.close_all_connections()


def _viewer(fragment: str) -> str:
    """Return the address of the viewer relative to the start."""
    return f"v/{VIEWER_NAME}/#!{fragment}"


class _Page(RequestHandler):
    """Handler for the client's page and for its script."""

    def initialize(self, content: str, kind: str) -> None:
        self._content, self._kind = content, kind

    def get(self) -> None:
        self.set_header("Content-Type", f"{self._kind}; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.finish(self._content)


class _NoIcon(RequestHandler):
    """Handler for the icon, which browsers request; they report an error if it is missing."""

    def get(self) -> None:
        self.set_status(204)


class _Ticket(RequestHandler):
    """Handler that redirects to the start, once for each ticket."""

    def initialize(self, url: str, valid: set[str]) -> None:
        self._url, self._valid = url, valid

    def get(self, ticket: str) -> None:
        if ticket not in self._valid:
            raise HTTPError(404)
        self._valid.remove(ticket)
        self.redirect(self._url)


class _Events(RequestHandler):
    """Event stream without events; without it, the client would report a lost connection."""

    async def get(self) -> None:
        self._over = asyncio.Event()
        self.set_header("Content-Type", "text/event-stream")
        with suppress(StreamClosedError):
            self.write(":\n\n")  # a comment: some proxies pass the headers on only with the first bytes
            await self.flush()
            await self._over.wait()

    def on_connection_close(self) -> None:
        self._over.set()


class _Data(RequestHandler):
    """Base of the handlers for files."""

    def set_default_headers(self) -> None:
        """Allow other viewers that know the address to read, and disable caching so that new blocks are seen."""
        self.set_header("Access-Control-Allow-Origin", "*")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")

    def prepare(self) -> None:
        """Refuse HEAD behind a proxy: some lose the length, and the client takes it from the range of one byte instead."""
        if self.request.method == "HEAD" and self.settings["behind_proxy"]:
            raise HTTPError(405)


class _Document(_Data):
    """Handler for a file in memory."""

    def initialize(self, content: bytes) -> None:
        self._content = content

    def get(self) -> None:
        self.finish(self._content)

    def head(self) -> None:
        self.set_header("Content-Length", len(self._content))


def _handler(place: Place) -> tuple[type[RequestHandler], dict[str, Any]]:
    """Return the handler for the files below a place, and its arguments."""
    if isinstance(place, Address):
        return _Objects, {"files": open_remote(place)}
    return _Files, {"path": place.resolve()}


class _Objects(_Data):
    """Handler for objects of a remote store, or ranges of them, read with this process's credentials and never cached."""

    def initialize(self, files: RemoteFiles) -> None:
        self._remote = files

    async def get(self, name: str) -> None:
        asked = RANGE_HEADER.fullmatch(self.request.headers.get("Range", ""))
        content, start, size = await self._fetched(self._remote.read_range, name, _part(asked) if asked else None)
        self.set_header("Content-Type", "application/octet-stream")
        if asked:
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{size}")
        await self.finish(content)

    async def head(self, name: str) -> None:
        self.set_header("Content-Length", await self._fetched(self._remote.size, name))

    async def _fetched(self, ask: Callable[..., T | None], name: str, *more: object) -> T:
        """Return what the store has of an object; translate its errors to HTTP."""
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise HTTPError(404)
        try:
            found = await asyncio.to_thread(ask, name, *more)
        except StoreError as error:
            raise HTTPError(403 if error.permanent else 502) from error
        if found is None:
            raise HTTPError(404)
        return found


def _part(asked: re.Match[str]) -> ByteRange:
    """Return the range of an object that a header requests."""
    first, last = asked.groups()
    if not first:
        return {"suffix": int(last)}
    return (int(first), int(last) + 1) if last else {"offset": int(first)}


class _Files(_Data, StaticFileHandler):
    """Handler for the files below a folder, or ranges of them."""

    def get_content_type(self) -> str:
        return "application/octet-stream"

    def compute_etag(self) -> None:
        """Return None: computing a tag would read the whole file even if only a range is requested."""

    def validate_absolute_path(self, root: str, absolute_path: str) -> str:
        """Return the file if it exists and lies within the folder after links are resolved.

        Returns
        -------
        str
            Path of the file.

        Raises
        ------
        HTTPError
            If there is no such file, or this user may not read it.
        """
        try:
            file = Path(absolute_path).resolve()
            found = file.is_relative_to(root) and file.is_file()
        except (OSError, ValueError):  # an impossible file name, or a folder that this user may not search
            found = False
        if not found:
            raise HTTPError(404)
        if not os.access(file, os.R_OK):
            raise HTTPError(403)
        return str(file)
