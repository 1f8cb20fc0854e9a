"""Test that the server serves only its given files, whole or in part, and only to clients with the address."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import psutil
import pytest
from object_store import DENIED, ObjectStore, object_store
from runs import own_address

from emseg.viewing.server import LOOPBACK, ViewServer
from emseg_core.errors import InputError
from emseg_core.store.files.place import parse_place

CONTENT = bytes(range(256)) * 8
PARTS = {"0-0": (0, 1), "100-299": (100, 300), "-20": (len(CONTENT) - 20, len(CONTENT)), "2000-": (2000, len(CONTENT))}
"""Requested ranges, with the first byte of the answer and the one after the last."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder that is served, one that is not, and links between them."""
    folder = tmp_path_factory.mktemp("served")
    for name in ("image/c", "secret", "client"):
        (folder / name).mkdir(parents=True)
    (folder / "image" / "c" / "0").write_bytes(CONTENT)
    (folder / "image" / ".zattrs").write_bytes(b"{}")
    (folder / "secret" / "key").write_bytes(b"secret")
    (folder / "image" / "out").symlink_to(folder / "secret")
    (folder / "image" / "within").symlink_to("c")
    (folder / "link").symlink_to("image")
    (folder / "client" / "index.html").write_bytes(b"<html>")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ViewServer]:
    with ViewServer(folder / "client") as server:
        server.start("state", {"image/0": folder / "image", "linked/0": folder / "link"}, {"image/zarr.json": b"[1]"})
        yield server


def ask(
    server: ViewServer, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body for a path behind the token, exactly as it is written."""
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.netloc, timeout=20)
    try:
        connection.request(method, path if path.startswith("/") else place.path + path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_a_whole_file(server: ViewServer) -> None:
    status, headers, body = ask(server, "data/image/0/c/0")
    assert (status, body) == (200, CONTENT)
    assert headers["access-control-allow-origin"] == "*"
    assert headers["content-type"] == "application/octet-stream"
    assert ask(server, "data/image/0/.zattrs")[2] == b"{}"
    assert ask(server, "data/image/0/within/0")[2] == CONTENT
    assert ask(server, "data/linked/0/c/0")[2] == CONTENT
    assert ask(server, "data/image/zarr.json")[2] == b"[1]"


@pytest.mark.parametrize("asked", PARTS)
def test_parts_of_a_file(asked: str, server: ViewServer) -> None:
    status, headers, body = ask(server, "data/image/0/c/0", headers={"Range": f"bytes={asked}"})
    first, stop = PARTS[asked]
    assert (status, body) == (206, CONTENT[first:stop])
    assert headers["content-range"] == f"bytes {first}-{stop - 1}/{len(CONTENT)}"


@pytest.mark.parametrize(("path", "length"), [("data/image/0/c/0", len(CONTENT)), ("data/image/zarr.json", 3)])
def test_how_long_a_file_is(path: str, length: int, server: ViewServer) -> None:
    status, headers, body = ask(server, path, "HEAD")
    assert (status, int(headers["content-length"]), body) == (200, length, b"")


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as store:
        store.put("image/c/0", CONTENT)
        store.put("secret/key", b"secret")
        yield store


@pytest.fixture
def remote(folder: Path, store: ObjectStore) -> Iterator[ViewServer]:
    """Start a server of files on an object store and on a web server."""
    with ViewServer(folder / "client") as server:
        places = {f"{scheme}/0": parse_place(store.address("image", scheme)) for scheme in ("s3", "http")}
        server.start("state", places, {})
        yield server
    store.willing()


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_objects_of_a_store(scheme: str, remote: ViewServer, store: ObjectStore) -> None:
    status, headers, body = ask(remote, f"data/{scheme}/0/c/0")
    assert (status, body, headers["access-control-allow-origin"]) == (200, CONTENT, "*")
    for asked, (first, stop) in PARTS.items():
        status, headers, body = ask(remote, f"data/{scheme}/0/c/0", headers={"Range": f"bytes={asked}"})
        assert (status, body) == (206, CONTENT[first:stop])
        assert headers["content-range"] == f"bytes {first}-{stop - 1}/{len(CONTENT)}"
    status, headers, body = ask(remote, f"data/{scheme}/0/c/0", "HEAD")
    assert (status, int(headers["content-length"]), body) == (200, len(CONTENT), b"")
    for path in ("c/9", "c", "", "../secret/key", "%2e%2e/secret/key", "c//0", "..%2Fsecret%2Fkey"):
        status, _, body = ask(remote, f"data/{scheme}/0/{path}")
        assert (status, b"secret" in body) == (404, False)
    assert ask(remote, f"data/{scheme}/0/c/0", "PUT")[0] == 405
    store.refuse = lambda key, signed: DENIED
    assert ask(remote, f"data/{scheme}/0/c/0")[0] == 403


def test_a_file_that_was_written_anew(server: ViewServer, folder: Path) -> None:
    """Blocks are rewritten during a run. No older content is sent, and browsers keep none without asking."""
    changing = folder / "image" / "c" / "1"
    for content in (b"one", b"another"):
        changing.write_bytes(content)
        status, headers, body = ask(server, "data/image/0/c/1")
        assert (status, body, headers["cache-control"]) == (200, content, "no-cache")
        assert "etag" not in headers


@pytest.mark.parametrize(
    "path",
    [
        *("data/image/0/c/9", "data/image/0/c", "data/image/0/", "data/image/", "data/", "data/secret/key", "data/image/1/c/0"),
        *("data/image/0/../secret/key", "data/image/0/../../secret/key", "data/image/0/..%2Fsecret%2Fkey"),
        *("data/image/0/%2e%2e/secret/key", "data/image/0//etc/passwd", "data/image/0/%2Fetc%2Fpasswd"),
        *("data/image/0/out/key", "data/image/0/%00", "/", "/data/image/0/c/0", "/v/emseg/"),
        *("/wrong/", "/wrong/data/image/0/c/0", "/wrong/v/emseg/", "/wrong/events/emseg", "../data/image/0/c/0"),
    ],
)
def test_there_is_nothing_else(path: str, server: ViewServer) -> None:
    status, _, body = ask(server, path)
    assert status in (403, 404)
    assert b"secret" not in body
    assert b"root:" not in body


@pytest.mark.parametrize("path", ["v/emseg/../secret/key", "v/emseg/%2e%2e/secret/key", "v/emseg//etc/passwd"])
def test_the_client_is_alone_in_its_place(path: str, server: ViewServer) -> None:
    assert ask(server, path)[0] in (403, 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "path", ["", "data/image/0/c/0", "data/image/0/new", "data/image/zarr.json", "v/emseg/", "events/emseg"]
)
def test_nothing_is_written(method: str, path: str, server: ViewServer, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert ask(server, path, method)[0] == 405
    assert sorted(folder.rglob("*")) == before
    assert (folder / "image" / "c" / "0").read_bytes() == CONTENT


def test_the_address_leads_to_the_viewer_with_its_state(server: ViewServer) -> None:
    status, headers, _ = ask(server, "")
    assert (status, urljoin(server.url, headers["location"])) == (302, server.viewer("state"))
    assert ask(server, "v/emseg/")[2] == b"<html>"


def test_redirects_stay_behind_the_prefix_of_a_proxy(server: ViewServer) -> None:
    shown = f"https://hub.example.org/user/me/proxy/{server.port}"
    for path in (urlsplit(server.url).path, urlsplit(server.ticket()).path):
        status, headers, _ = ask(server, path)
        assert status == 302
        assert urljoin(shown + path, headers["location"]).startswith(shown + urlsplit(server.url).path)


@pytest.mark.parametrize("page", ["v/emseg/", "v/emseg/index.html"])
def test_the_page_has_a_script_before_those_of_the_client(page: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<head><script defer src="main.js"></script></head>')
    with ViewServer(tmp_path) as server:
        server.start("state", {}, {})
        status, headers, body = ask(server, page)
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert re.findall(r'src="(.*?)"', body.decode()) == ["addresses.js", "main.js"]
        status, headers, body = ask(server, "v/emseg/addresses.js")
        assert (status, headers["content-type"]) == (200, "text/javascript; charset=utf-8")
        assert b"location" in body


def test_a_ticket_is_good_once(server: ViewServer) -> None:
    path = urlsplit(server.ticket()).path
    status, headers, _ = ask(server, path)
    assert (status, urljoin(server.ticket(), headers["location"])) == (302, server.url)
    assert ask(server, path)[0] == 404


def test_only_this_machine_is_listened_to(server: ViewServer) -> None:
    found = [at.laddr for at in psutil.Process().net_connections("inet") if at.status == psutil.CONN_LISTEN]
    assert [place.ip for place in found if place.port == server.port] == [LOOPBACK]
    if (address := own_address()) != LOOPBACK:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, server.port), timeout=5)


def test_a_port_that_is_taken(server: ViewServer, folder: Path) -> None:
    with pytest.raises(InputError, match=rf"port {server.port} of 127\.0\.0\.1 .*in use.*--port"):
        ViewServer(folder / "client", server.port)


def test_the_port_is_free_after_the_end_even_of_one_who_still_listens(folder: Path) -> None:
    with ViewServer(folder / "client") as server:
        server.start("state", {}, {})
        place = urlsplit(server.url)
        listener = http.client.HTTPConnection(place.netloc, timeout=20)
        listener.request("GET", f"{place.path}events/emseg")
        assert listener.getresponse().status == 200
    listener.close()
    ViewServer(folder / "client", server.port).stop()


def test_it_ends_however_soon(folder: Path) -> None:
    """It ends right after its start, or while a client waits for events."""
    for number in range(60):
        with ViewServer(folder / "client") as server:
            server.start("state", {}, {})
            listener = http.client.HTTPConnection(LOOPBACK, server.port, timeout=20)
            if number % 2:
                listener.request("GET", f"{urlsplit(server.url).path}events/emseg")
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection(LOOPBACK, server.port, timeout=20).connect()


def test_each_server_has_a_token_of_its_own(folder: Path) -> None:
    tokens = set()
    for _ in range(3):
        with ViewServer(folder / "client") as server:
            tokens.add(urlsplit(server.url).path)
    assert len(tokens) == 3
    assert min(map(len, tokens)) >= 32


def addresses(folder: Path, public_url: str | None = None) -> list[str]:
    """Return the addresses of start, viewer and data, with PORT and TOKEN in place of what differs each time."""
    with ViewServer(folder / "client", public_url=public_url) as server:
        token = server.url.rstrip("/").rpartition("/")[2]
        found = (server.url, server.viewer("state"), server.data("raw"))
        return [address.replace(str(server.port), "PORT").replace(token, "TOKEN") for address in found]


def below(start: str, data: str | None = None) -> list[str]:
    return [f"{start}TOKEN/", f"{start}TOKEN/v/emseg/#!state", f"{data or start}TOKEN/data/raw/"]


@pytest.mark.parametrize(
    "written", ["https://hub.example.org/user/me/proxy/{port}/", "https://hub.example.org/user/me/proxy/{port}"]
)
def test_a_proxy_that_was_named(written: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes precedence over JupyterHub's."""
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/other/")
    assert addresses(folder, written) == below("https://hub.example.org/user/me/proxy/PORT/")


def test_under_jupyterhub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that does not state its address gives only a path, from which no data can be fetched by other hosts."""
    assert addresses(folder) == below("http://127.0.0.1:PORT/")
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/me/")
    assert addresses(folder) == below("/user/me/proxy/PORT/", "http://127.0.0.1:PORT/")
    monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", "https://hub.example.org/user/me/")
    assert addresses(folder) == below("https://hub.example.org/user/me/proxy/PORT/")
    with ViewServer(folder / "client") as server:
        assert server.ticket().startswith(f"http://127.0.0.1:{server.port}/"), "a browser here needs no proxy"


def test_no_proxy_can_lose_the_length_of_a_file(folder: Path) -> None:
    """It is part of each answer with a range, which the client requests if HEAD is refused."""
    with ViewServer(folder / "client", public_url="https://hub.example.org/{port}/") as server:
        server.start("state", {"image/0": folder / "image"}, {"image/zarr.json": b"[1]"})
        server_path = f"/{server.url.rstrip('/').rpartition('/')[2]}/data/image"
        connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=20)
        for path in ("0/c/0", "zarr.json"):
            connection.request("HEAD", f"{server_path}/{path}")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (405, b"")
        connection.request("GET", f"{server_path}/0/c/0", headers={"Range": "bytes=0-0"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (206, CONTENT[:1])
        assert answer.headers["Content-Range"] == f"bytes 0-0/{len(CONTENT)}"
        connection.close()


def test_a_proxy_that_is_none_takes_no_port(folder: Path) -> None:
    with ViewServer(folder / "client") as taken:
        pass
    for _ in range(2):
        with pytest.raises(InputError, match=r"--public-url is 'hub\.example\.org'.*https://HOST/PATH/"):
            ViewServer(folder / "client", taken.port, "hub.example.org")
    ViewServer(folder / "client", taken.port).stop()
