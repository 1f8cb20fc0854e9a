"""Access control for the HTTP server of our clusters: only requests with the token are served, and no page of another site.

One guard protects everything that the scheduler serves: pages, files, JSON, metrics and websockets, including those that are
added later. Workers serve nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from importlib import import_module
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import psutil
from distributed import Scheduler, Worker
from distributed.utils import format_dashboard_link
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, HTTPServerRequest
from tornado.routing import Router
from tornado.web import Application, ErrorHandler, RequestHandler

from emseg.access import TOKEN_PARAMETER, hub_address, new_token
from emseg_core.errors import InputError

HOST_PATTERN = re.compile(r"(?:\[([\da-f:.]+)\]|([\w.-]+))(?::(\d+))?", re.ASCII)
"""A ``Host`` header: an IPv6 address or another name, and a port."""


class Guard(Router):
    """Stands before an application, and lets through only requests from its own pages that have the token.

    All of these conditions must hold:

    - The ``Host`` is this machine, or the configured proxy. The name of another site may lead here as well (DNS rebinding),
      and its pages could then read the answers.
    - The ``Origin`` is absent, a page of this machine on the same port, or the proxy. Browsers send cookies to all ports of a
      host, and other users of this machine may serve pages on other ports.
    - The token is in a cookie or in ``Authorization: Bearer``. A link with the token sets the cookie.
    """

    def __init__(self, application: Application, scheduler: GuardedScheduler, proxy: str | None = None) -> None:
        """Create a guard with a new token.

        Parameters
        ----------
        application
            The part of the server that it protects.
        scheduler
            Opens its dashboard when a page is asked for that is not there yet.
        proxy
            Host of a proxy, and its port if it has one, as browsers show it.
        """
        self._scheduler = scheduler
        self.token = new_token()
        self.proxy = proxy
        """The proxy; None if only this machine is accepted."""
        self._application = application
        application.settings["log_function"] = _log_nothing  # addresses contain tokens

    def find_handler(self, request: HTTPServerRequest, **more: Any) -> HTTPMessageDelegate | None:
        """Return the handler of a request: the application's, or one that refuses.

        Returns
        -------
        HTTPMessageDelegate or None
            The handler.
        """
        headers = request.headers
        host = headers.get("Host", "").lower()
        origin = headers.get("Origin", headers.get("Sec-WebSocket-Origin"))
        if host != self.proxy and not _is_ours(host):
            return self._refuse(request, "this machine has another name; set the name of a proxy in distributed.dashboard.link")
        if origin is not None and not self._is_friendly(origin.lower().partition("://")[2], host):
            return self._refuse(request, "pages of other sites have no access")
        if request.method == "GET" and self._has_token(*request.query_arguments.get(TOKEN_PARAMETER, ())):
            cookie = {"name": _cookie(host), "value": self.token, "path": None if host == self.proxy else "/"}
            return self._application.get_handler_delegate(request, _Entrance, {"cookie": cookie})
        given = [morsel.value.encode() for name, morsel in request.cookies.items() if name == _cookie(host)]
        scheme, _, bearer = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given.append(bearer.strip().encode())
        if not self._has_token(*given):
            again = headers.get("Sec-Fetch-Site") == "cross-site" and headers.get("Sec-Fetch-Dest") == "document"
            return self._refuse(request, "open the link with the token that emseg has printed", again=again)
        find = partial(self._application.find_handler, request, **more)
        found = find()
        if self._scheduler.dashboard_is_open or not _is_unknown(found):
            return found
        return _Opening(self._scheduler, find)

    def _is_friendly(self, page: str, host: str) -> bool:
        """Return whether a page may send requests."""
        return page == self.proxy or (_is_ours(page) and _port(page) == _port(host))

    def _has_token(self, *given: bytes) -> bool:
        """Return whether one of these is the token."""
        return any(hmac.compare_digest(one, self.token.encode()) for one in given)

    def _refuse(self, request: HTTPServerRequest, why: str, *, again: bool = False) -> HTTPMessageDelegate:
        """Return a handler that refuses the request."""
        return self._application.get_handler_delegate(request, _Refusal, {"why": why, "again": again})


class _Refusal(RequestHandler):
    """Answers with the reason of a refusal only."""

    def initialize(self, why: str, again: bool) -> None:
        self._why, self._again = why, again

    def prepare(self) -> None:
        self.set_status(HTTPStatus.FORBIDDEN)
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        if self._again:
            # a browser that follows a link from another site withholds the cookie, but sends it when this page reloads
            self.set_header("Refresh", "0")
        self.finish(f"403: {self._why}\n")


class _Entrance(RequestHandler):
    """Sets the cookie, and redirects to the same address without the token, which would stay in the browser's history."""

    def initialize(self, cookie: dict[str, Any]) -> None:
        self._cookie = cookie

    def get(self) -> None:
        self.set_cookie(**self._cookie, httponly=True, samesite="Strict", secure=self.request.protocol == "https")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "no-referrer")
        page = self.request.path.rpartition("/")[2]
        rest = [
            (name, value) for name, value in parse_qsl(self.request.query, keep_blank_values=True) if name != TOKEN_PARAMETER
        ]
        self.redirect(f"./{page}" + (f"?{urlencode(rest)}" if rest else ""))  # relative, as a proxy may add a prefix


class _Opening(HTTPMessageDelegate):
    """Answers a request once the dashboard is open."""

    def __init__(self, scheduler: GuardedScheduler, find: Callable[[], HTTPMessageDelegate]) -> None:
        self._scheduler = scheduler
        self._find = find
        self._found = HTTPMessageDelegate()

    async def headers_received(self, start_line: Any, headers: HTTPHeaders) -> None:
        await self._scheduler.open_dashboard()
        self._found = self._find()
        self._found.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._found.data_received(chunk)

    def finish(self) -> None:
        self._found.finish()

    def on_connection_close(self) -> None:
        self._found.on_connection_close()


class GuardedScheduler(Scheduler):
    """A scheduler whose HTTP server has a guard, and whose dashboard is imported when its first page is asked for."""

    def __init__(self, **options: Any) -> None:
        self.dashboard_is_open = False
        self.on_dashboard: list[Callable[[], object]] = []
        """Called when the dashboard opens, to add more pages."""
        self._opening = asyncio.Lock()
        super().__init__(**options | {"dashboard": False})

    def start_http_server(self, *arguments: Any, **more: Any) -> None:
        """Serve only what the guard lets through."""
        super().start_http_server(*arguments, **more)  # type: ignore[no-untyped-call]
        server: Any = self.http_server
        self.guard = Guard(self.http_application, self, _named_proxy(server.address, server.port))
        server.request_callback = self.guard

    async def open_dashboard(self) -> None:
        """Import the pages of the dashboard, which takes most of a second, and serve them."""
        async with self._opening:
            if not self.dashboard_is_open:
                pages = await asyncio.to_thread(import_module, "distributed.dashboard.scheduler")
                pages.connect(self.http_application, self.http_server, self)
                for add_pages in self.on_dashboard:
                    add_pages()
                self.dashboard_is_open = True


class SilentWorker(Worker):
    """A worker without an HTTP server, which is not needed and would answer everyone."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Serve nothing."""


def dashboard_address(host: str, port: int) -> str:
    """Return the address of the first page of the dashboard as browsers see it.

    It is the one in Dask's configuration, ``distributed.dashboard.link``. Where nothing is configured, and JupyterHub states
    its own address, it is that of JupyterHub's proxy; a configured path is taken as one of that hub.

    Parameters
    ----------
    host
        Host on which the dashboard listens.
    port
        Its port.

    Returns
    -------
    str
        URL, or only a path if no more is known.

    Raises
    ------
    InputError
        If the configuration has an undefined variable, or is not an address.
    """
    try:
        named: str = format_dashboard_link(host, port)
        netloc = urlsplit(named.lower()).netloc
    except (LookupError, ValueError) as error:
        raise InputError(
            f"distributed.dashboard.link in Dask's configuration is no address ({type(error).__name__}: {error}): use "
            "{scheme}, {host}, {port} and environment variables that are set"
        ) from error
    hub = hub_address(port) or ""
    if not urlsplit(hub).netloc:
        return named
    return f"{hub}status" if _is_ours(netloc) else urljoin(hub, named)


def _named_proxy(host: str, port: int) -> str | None:
    """Return the proxy that shows the dashboard; None if that is this machine."""
    with suppress(InputError):  # the error is shown when the link is requested
        named = urlsplit(dashboard_address(host, port).lower()).netloc
        return None if _is_ours(named) else named or None
    return None


def _is_unknown(found: Any) -> bool:
    """Return whether an application has nothing at an address."""
    return found is None or issubclass(getattr(found, "handler_class", RequestHandler), ErrorHandler)


def _cookie(host: str) -> str:
    """Return the name of the cookie, which depends on the port: browsers send cookies to all ports of a host."""
    return f"emseg-{_port(host)}"


def _port(host: str) -> str:
    """Return the port in a ``Host`` header, in digits; empty if there is none."""
    known = HOST_PATTERN.fullmatch(host)
    return known[3] or "" if known else ""


def _is_ours(host: str) -> bool:
    """Return whether a ``Host`` header names this machine, at any port: a tunnel may start at another one."""
    if (known := HOST_PATTERN.fullmatch(host)) is None:
        return False
    name = (known[1] or known[2]).rstrip(".")
    if name in ("localhost", socket.gethostname().lower()):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or name in {one.address for interface in psutil.net_if_addrs().values() for one in interface}


def _log_nothing(_: RequestHandler) -> None:
    """Log nothing."""
