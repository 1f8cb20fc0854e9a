"""An object store on loopback: moto's S3, which can be made to fail and which records requests."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from obstore.store import S3Store
from werkzeug.serving import BaseWSGIServer, make_server

from emseg.clusters.local import LOOPBACK

BUCKET = "volumes"
ANYBODY = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""Policy that makes the bucket public, so that moto accepts anonymous requests."""
DENIED = "403 Forbidden"
DENIAL = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
EXPIRED = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>ExpiredToken</Code><Message>It has expired.</Message></Error>"


@dataclass(slots=True)
class ObjectStore:
    """A bucket. Without a signature, its objects are served as by a web server."""

    app: Any
    server: BaseWSGIServer
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Lock for write requests."""
    asked: list[str] = field(default_factory=list)
    """Each request: its method, key and range."""
    refuse: Callable[[str, bool], str] = lambda key, signed: ""
    """Function of a key and whether the request is signed. Returns the error status, or nothing to accept."""
    expired: Callable[[str], bool] = lambda token: False
    """Function of a session token, empty if there is none. Returns whether it has expired."""
    payers: set[str] = field(default_factory=set)
    """The payers stated in requests; empty for a request that states none."""

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://{LOOPBACK}:{self.server.server_port}"

    def address(self, key: str, scheme: str = "s3") -> str:
        """Return the address of a key."""
        return f"{self.url}/{BUCKET}/{key}" if scheme == "http" else f"{scheme}://{BUCKET}/{key}"

    def willing(self) -> None:
        """Serve all requests from now on."""
        self.refuse = lambda key, signed: ""

    @property
    def bucket(self) -> S3Store:
        """Return the bucket's client."""
        return S3Store(BUCKET)

    def put(self, key: str, data: bytes) -> None:
        """Store an object."""
        self.bucket.put(key, data)

    def get(self, key: str) -> bytes:
        """Return an object."""
        return bytes(self.bucket.get(key).bytes())

    def remove(self, key: str) -> None:
        """Remove an object."""
        self.bucket.delete(key)

    def upload(self, folder: Path, key: str) -> str:
        """Upload a folder and return the address of the copy."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.put(f"{key}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        self.asked.clear()
        return self.address(key)

    @contextmanager
    def counting(self) -> Iterator[list[str]]:
        """Count the requests within the ``with`` block."""
        self.asked.clear()
        yield self.asked

    def start(self) -> None:
        """Serve requests from now on."""
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> Callable[[], None]:
        """Refuse connections until the returned function is called."""
        port = self.server.server_port
        self.server.shutdown()
        self.server.server_close()

        def again() -> None:
            self.server = make_server(LOOPBACK, port, self, threaded=True)
            self.start()

        return again

    def __call__(self, environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        key = environment["PATH_INFO"].removeprefix(f"/{BUCKET}/")
        query = environment["QUERY_STRING"]
        part = environment.get("HTTP_RANGE", "")
        self.asked.append(" ".join(filter(None, (environment["REQUEST_METHOD"], key + ("?" + query if query else ""), part))))
        if status := self.refuse(key, "HTTP_AUTHORIZATION" in environment):
            body = DENIAL if status == DENIED else b""
            start(status, [("Content-Length", str(len(body)))])
            return [body]
        self.payers.add(environment.get("HTTP_X_AMZ_REQUEST_PAYER", ""))
        if self.expired(environment.get("HTTP_X_AMZ_SECURITY_TOKEN", "")):
            start("400 Bad Request", [("Content-Length", str(len(EXPIRED)))])
            return [EXPIRED]
        environment.setdefault("HTTP_AUTHORIZATION", ANYBODY)
        with self.turn if environment["REQUEST_METHOD"] == "PUT" else nullcontext():
            # moto tests for an object and stores it in two steps: two conditional creations at once would both succeed
            answer: Iterable[bytes] = self.app(environment, start)
        return answer


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Run the store during the ``with`` block, with its credentials in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = ObjectStore(DomainDispatcherApplication(create_backend_app), None)  # type: ignore[arg-type]
    store.server = make_server(LOOPBACK, 0, store, threaded=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_ENDPOINT_URL", store.url)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        store.start()
        urlopen(Request(f"{store.url}/{BUCKET}", method="PUT"), timeout=10).close()
        yield store
        store.stop()
