"""Raw HTTP requests to a dashboard, with any headers."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from emseg.access import TOKEN_PARAMETER


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Door:
    """A dashboard at a loopback port, with the token of its link."""

    port: int
    token: str

    @classmethod
    def of(cls, link: str) -> Door:
        parts = urlsplit(link)
        assert parts.port is not None
        return cls(parts.port, parts.query.partition(f"{TOKEN_PARAMETER}=")[2])

    @property
    def cookie(self) -> dict[str, str]:
        """Return the cookie header of a browser that has opened the link."""
        return {"Cookie": f"emseg-{self.port}={self.token}"}

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def ask(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        """Return the answer to a request. A ``Host`` header replaces the right one; an empty one sends none."""
        sent: dict[str, Any] = {"Host": f"127.0.0.1:{self.port}", **(headers or {})}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=200)
        try:
            connection.putrequest(method, path, skip_host=True)
            for name, value in sent.items():
                if value:
                    connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            upgraded = answer.status == 101
            return Answer(answer.status, dict(answer.getheaders()), b"" if upgraded else answer.read())
        finally:
            connection.close()

    def text(self, path: str) -> str:
        """Return the text shown to a user who has the token."""
        answer = self.ask(path, self.bearer)
        assert answer.status == 200, path
        return answer.body.decode()

    def shake(self, path: str, headers: dict[str, str]) -> int:
        """Return the status of a websocket handshake; 101 means accepted."""
        upgrade = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "A" * 24,
        }
        return self.ask(path, {**upgrade, **headers}).status
