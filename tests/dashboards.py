"""Asking a dashboard in raw HTTP, with whatever headers."""

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
    """A dashboard at a port of loopback, and the token of its link."""

    port: int
    token: str

    @classmethod
    def of(cls, link: str) -> Door:
        parts = urlsplit(link)
        assert parts.port is not None
        return cls(parts.port, parts.query.partition(f"{TOKEN_PARAMETER}=")[2])

    @property
    def cookie(self) -> dict[str, str]:
        """What a browser sends that has opened the link."""
        return {"Cookie": f"emseg-{self.port}={self.token}"}

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def ask(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        """What is answered; a ``Host`` among the headers replaces the right one, and with an empty one there is none."""
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
        """What whoever has the token is shown."""
        answer = self.ask(path, self.bearer)
        assert answer.status == 200, path
        return answer.body.decode()

    def shake(self, path: str, headers: dict[str, str]) -> int:
        """How the opening of a websocket is answered; 101 is a yes."""
        upgrade = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "A" * 24,
        }
        return self.ask(path, {**upgrade, **headers}).status
