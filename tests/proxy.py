"""A reverse proxy that serves the ports of this machine below a prefix, as jupyter-server-proxy does, and a tunnel."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClientConnection, WebSocketHandler, websocket_connect

from emseg.clusters.local import LOOPBACK

PREFIX = "/user/me%40example.org/"
"""Prefix of a server under JupyterHub. ``proxy/PORT/PATH`` below it leads to ``PATH`` at that loopback port."""
CONNECTION = ("Connection", "Content-Length", "Keep-Alive", "Transfer-Encoding", "Upgrade")
"""Headers that are not forwarded, like those of the websocket's handshake."""
PATIENCE = 100.0
"""Maximum seconds to wait for an answer."""


class _Forward(WebSocketHandler):
    """Forwards requests and websockets with their headers, including ``Host`` and ``Origin``.

    Like jupyter-server-proxy, it omits the content length from answers to HEAD.
    """

    async def get(self, port: str) -> None:
        if self.request.headers.get("Upgrade", "").lower() == "websocket":
            await super().get(port)
        else:
            await self._answer(port)

    async def head(self, port: str) -> None:
        await self._answer(port)

    def check_origin(self, origin: str) -> bool:
        """Accept the origin; the server behind the proxy decides."""
        return True

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return subprotocols[0] if subprotocols else None

    async def open(self, port: str) -> None:
        named = self.request.headers.get("Sec-WebSocket-Protocol", "").replace(" ", "")
        self._other: WebSocketClientConnection = await websocket_connect(
            self._forwarded("ws", port), on_message_callback=self._back, subprotocols=named.split(",") if named else None
        )

    async def on_message(self, message: str | bytes) -> None:
        await self._other.write_message(message, binary=isinstance(message, bytes))

    def on_close(self) -> None:
        if hasattr(self, "_other"):
            self._other.close()

    def _back(self, message: str | bytes | None) -> None:
        if message is None:
            self.close()
        elif self.ws_connection is not None:
            self.write_message(message, binary=isinstance(message, bytes))

    def _forwarded(self, scheme: str, port: str) -> HTTPRequest:
        headers = HTTPHeaders()
        for name, value in self.request.headers.get_all():
            if name not in CONNECTION and not name.lower().startswith("sec-websocket"):
                headers.add(name, value)
        path = (self.request.uri or "").removeprefix(f"{PREFIX}proxy/{port}")
        return HTTPRequest(
            f"{scheme}://{LOOPBACK}:{port}{path}",
            method=self.request.method or "GET",
            headers=headers,
            request_timeout=PATIENCE,
            follow_redirects=False,
            decompress_response=False,
        )

    async def _answer(self, port: str) -> None:
        def on_header(line: str) -> None:
            name, colon, value = line.partition(":")
            if line.startswith("HTTP/"):
                self.set_status(int(line.split()[1]))
                self._headers = HTTPHeaders()
            elif colon and name not in CONNECTION:
                self.add_header(name, value.strip())

        async def on_chunk(chunk: bytes) -> None:
            self.write(chunk)
            await self.flush()

        request = self._forwarded("http", port)
        request.header_callback, request.streaming_callback = on_header, on_chunk
        client = SimpleAsyncHTTPClient(force_instance=True)
        try:
            await client.fetch(request, raise_error=False)
            await self.finish()
        except (HTTPClientError, StreamClosedError):  # one of the two has closed
            self.request.connection.finish()  # type: ignore[union-attr]
        finally:
            client.close()


class _OwnIcon(RequestHandler):
    """Serves the icon that browsers request from each host."""

    def get(self) -> None:
        self.set_status(204)


@contextmanager
def _listening(serve: Callable[[socket.socket], AbstractAsyncContextManager[None]]) -> Iterator[int]:
    """Run a server in a thread, and return its port."""
    listener = socket.create_server((LOOPBACK, 0))
    listener.setblocking(False)
    started: Future[Callable[[], object]] = Future()

    async def run() -> None:
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        async with serve(listener):
            started.set_result(lambda: loop.call_soon_threadsafe(over.set))
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    stop = started.result(PATIENCE)
    try:
        yield int(listener.getsockname()[1])
    finally:
        stop()
        thread.join(PATIENCE)
        listener.close()


@contextmanager
def proxy() -> Iterator[int]:
    """Run a reverse proxy, and return its port."""

    @asynccontextmanager
    async def serve(listener: socket.socket) -> AsyncIterator[None]:
        routes = [(r"/favicon\.ico", _OwnIcon), (rf"{PREFIX}proxy/(\d+)/.*", _Forward)]
        server = HTTPServer(Application(routes, log_function=lambda _: None))
        server.add_socket(listener)
        yield
        server.stop()
        await server.close_all_connections()

    with _listening(serve) as port:
        yield port


@contextmanager
def tunnel(end: int) -> Iterator[int]:
    """Run a tunnel to another port, and return the port where it starts."""

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while piece := await source.read(2**16):
                    sink.write(piece)
                    await sink.drain()
        finally:
            sink.close()

    async def connect(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        far_source, far_sink = await asyncio.open_connection(LOOPBACK, end)
        with suppress(asyncio.CancelledError):  # both ends are closed when the server ends
            await asyncio.gather(pass_on(source, far_sink), pass_on(far_source, sink))

    @asynccontextmanager
    async def serve(listener: socket.socket) -> AsyncIterator[None]:
        server = await asyncio.start_server(connect, sock=listener)
        yield
        server.close()

    with _listening(serve) as port:
        yield port
