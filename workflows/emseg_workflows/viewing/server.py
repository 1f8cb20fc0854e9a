"""An HTTP server on loopback that serves the viewer's client and some places, all below an address that nobody guesses.

    http://127.0.0.1:PORT/TOKEN/               leads to the viewer with its state
    http://127.0.0.1:PORT/TOKEN/v/emseg/       the client, which comes with Neuroglancer's Python package
    http://127.0.0.1:PORT/TOKEN/events/emseg   what that client listens to
    http://127.0.0.1:PORT/TOKEN/data/NAME      files, or objects of a remote store
    http://127.0.0.1:PORT/TICKET               leads to the first, once

Other users of the machine reach loopback as well: without the token, all they get is 404. Nothing can be written, no folder
is listed, and what a link leads to outside its folder is not served.
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
from tornado.web import Application, HTTPError, RequestHandler, StaticFileHandler

from emseg.errors import InputError
from emseg.store.blame import StoreError
from emseg.store.place import Address, Place
from emseg.store.remote import Part, RemoteFiles, open_remote

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
RANGE = re.compile(r"bytes=(?!-$)(\d*)-(\d*)")
"""A header that asks for one part of a file."""
VIEWER = "emseg"
"""The name by which the client tells viewers of one server apart."""


class ViewServer:
    """A server in a thread of its own, from `start` until `stop`."""

    def __init__(self, client: Path, port: int = 0) -> None:
        """Takes the port; 0 is any that is free.

        Parameters
        ----------
        client
            Folder of the client's files.

        Raises
        ------
        InputError
            If the port is taken, or this user may not have it.
        """
        try:
            self._socket = socket.create_server((LOOPBACK, port))
        except OSError as error:
            cause = os.strerror(error.errno or 0).lower()
            raise InputError(f"port {port} of {LOOPBACK} cannot be had ({cause}): choose another with --port") from error
        self._socket.setblocking(False)
        self.port = int(self._socket.getsockname()[1])
        """The port that is served at."""
        self._client = client
        self._token = secrets.token_urlsafe(24)
        self._tickets: set[str] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="emseg view", daemon=True)
        self._started: Future[Callable[[], object]] = Future()
        """What ends the thread, once it serves."""
        self._app = Application(log_function=lambda _: None)

    @property
    def url(self) -> str:
        """The address that leads to the viewer."""
        return f"http://{LOOPBACK}:{self.port}/{self._token}/"

    def data(self, name: str) -> str:
        """The address of a folder of files."""
        return f"{self.url}data/{name}/"

    def viewer(self, fragment: str) -> str:
        """The address of the viewer in some state."""
        return f"{self.url}v/{VIEWER}/#!{fragment}"

    def ticket(self) -> str:
        """An address that leads to the viewer once: other users see what a browser is started with."""
        self._tickets.add(number := secrets.token_urlsafe(24))
        return f"http://{LOOPBACK}:{self.port}/{number}"

    def start(self, fragment: str, places: Mapping[str, Place], files: Mapping[str, bytes]) -> None:
        """Serve from now on.

        Parameters
        ----------
        fragment
            The state that the viewer starts with, as its address has it.
        places
            What is served below each name, of the form ``name`` or ``name/part``.
        files
            What is served at further names.
        """
        root = f"/{self._token}/"
        self._app.add_handlers(
            r".*",
            [
                (r"/favicon\.ico", _NoIcon),
                (root, _Start, {"url": self.viewer(fragment)}),
                (r"/([^/]+)", _Ticket, {"url": self.url, "valid": self._tickets}),
                (rf"{root}events/{VIEWER}", _Events),
                (rf"{root}v/{VIEWER}/(.*)", StaticFileHandler, {"path": self._client, "default_filename": "index.html"}),
                *((rf"{root}data/{name}", _Document, {"content": content}) for name, content in files.items()),
                *((rf"{root}data/{name}/(.*)", *_handler(place)) for name, place in places.items()),
            ],
        )
        self._thread.start()
        self._started.result()

    def wait(self) -> None:
        """Until the server is stopped, or a signal's handler raises."""
        while self._thread.is_alive():
            self._thread.join(1)

    def stop(self) -> None:
        """End it, and the connections that are open."""
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


class _NoIcon(RequestHandler):
    """Browsers ask for it, and would call its absence an error."""

    def get(self) -> None:
        self.set_status(204)


class _Start(RequestHandler):
    """Leads to the viewer with its state, which is in the part of an address that no server is told."""

    def initialize(self, url: str) -> None:
        self._url = url

    def get(self) -> None:
        self.redirect(self._url)


class _Ticket(RequestHandler):
    """Leads to the start, once for each ticket."""

    def initialize(self, url: str, valid: set[str]) -> None:
        self._url, self._valid = url, valid

    def get(self, ticket: str) -> None:
        if ticket not in self._valid:
            raise HTTPError(404)
        self._valid.remove(ticket)
        self.redirect(self._url)


class _Events(RequestHandler):
    """Nothing is ever told here; without it, the client would say that it is not connected."""

    async def get(self) -> None:
        self._over = asyncio.Event()
        self.set_header("Content-Type", "text/event-stream")
        with suppress(StreamClosedError):
            await self.flush()
            await self._over.wait()

    def on_connection_close(self) -> None:
        self._over.set()


class _Document(RequestHandler):
    """A file in memory."""

    def initialize(self, content: bytes) -> None:
        self._content = content

    def set_default_headers(self) -> None:
        _set_data_headers(self)

    def get(self) -> None:
        self.finish(self._content)

    def head(self) -> None:
        self.set_header("Content-Length", len(self._content))


def _handler(place: Place) -> tuple[type[RequestHandler], dict[str, Any]]:
    """What serves the files below a place."""
    if isinstance(place, Address):
        return _Objects, {"files": open_remote(place)}
    return _Files, {"path": place.resolve()}


class _Objects(RequestHandler):
    """Objects of a remote store, or parts of them, fetched with the rights of whoever serves; nothing is kept."""

    def initialize(self, files: RemoteFiles) -> None:
        self._remote = files

    def set_default_headers(self) -> None:
        _set_data_headers(self)

    async def get(self, name: str) -> None:
        asked = RANGE.fullmatch(self.request.headers.get("Range", ""))
        content, start, size = await self._fetched(self._remote.part, name, _part(asked) if asked else None)
        self.set_header("Content-Type", "application/octet-stream")
        if asked:
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{size}")
        await self.finish(content)

    async def head(self, name: str) -> None:
        self.set_header("Content-Length", await self._fetched(self._remote.size, name))

    async def _fetched(self, ask: Callable[..., T | None], name: str, *more: object) -> T:
        """What the store says of an object."""
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise HTTPError(404)
        try:
            found = await asyncio.to_thread(ask, name, *more)
        except StoreError as error:
            raise HTTPError(403 if error.lasting else 502) from error
        if found is None:
            raise HTTPError(404)
        return found


def _part(asked: re.Match[str]) -> Part:
    """The part of an object that a header asks for."""
    first, last = asked.groups()
    if not first:
        return {"suffix": int(last)}
    return (int(first), int(last) + 1) if last else {"offset": int(first)}


class _Files(StaticFileHandler):
    """The files below a folder, or parts of them."""

    def set_default_headers(self) -> None:
        _set_data_headers(self)

    def get_content_type(self) -> str:
        return "application/octet-stream"

    def compute_etag(self) -> None:
        """None: it would be made by reading the whole file, of which a part is asked for."""

    def validate_absolute_path(self, root: str, absolute_path: str) -> str:
        """The file, if it is one, and within the folder even when links are followed."""
        try:
            file = Path(absolute_path).resolve()
            found = file.is_relative_to(root) and file.is_file()
        except (OSError, ValueError) as error:  # no file can have such a name, or this user may not look
            raise HTTPError(404) from error
        if not found:
            raise HTTPError(404)
        if not os.access(file, os.R_OK):
            raise HTTPError(403)
        return str(file)


def _set_data_headers(handler: RequestHandler) -> None:
    """Other viewers may read, if they are told the address; and a block that was written since is read anew."""
    handler.set_header("Access-Control-Allow-Origin", "*")
    handler.set_header("Cache-Control", "no-cache")
    handler.set_header("X-Content-Type-Options", "nosniff")
