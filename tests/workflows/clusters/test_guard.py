"""Test that a dashboard refuses other users, other sites and wrong ``Host`` headers, and shows everything with the token."""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pytest
from dashboards import Answer, Door
from distributed import Security
from runs import own_address
from tornado.routing import RuleRouter

from emseg.access import TOKEN_PARAMETER, new_token
from emseg.clusters.guard import GuardedScheduler, dashboard_address
from emseg.clusters.local import LOOPBACK, GuardedCluster, hub_advice
from emseg.dashboard.board import RunDescription
from emseg.dashboard.server import open_board
from emseg_core.box import Box
from emseg_core.errors import InputError

SECRET = "/secret/out.zarr"
"""Text that must not be shown."""
DESCRIPTION = RunDescription(
    "run", "/secret/volume.zarr", SECRET, Box((0, 0, 0), (1, 1, 1)), (1, 1, 1), (1, 1, 1), (1, 1, 1), b""
)
HUB = "https://hub.example.org/user/me/proxy/{port}/status"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedCluster]:
    """Start a scheduler without workers that shows a run."""
    with GuardedCluster({}, LOOPBACK, Security(), tmp_path_factory.mktemp("scratch")) as cluster:
        cluster.sync(show, cluster)
        yield cluster


async def show(cluster: GuardedCluster) -> None:
    assert isinstance(cluster.scheduler, GuardedScheduler)
    await cluster.scheduler.open_dashboard()
    await register(cluster)


async def register(cluster: GuardedCluster) -> None:
    assert isinstance(cluster.scheduler, GuardedScheduler)
    open_board(replace(DESCRIPTION, states=zlib.compress(bytes(1))), dask_scheduler=cluster.scheduler)


@pytest.fixture(scope="module")
def door(cluster: GuardedCluster) -> Door:
    return Door.of(cluster.dashboard_link)


def assert_refused(answer: Answer) -> None:
    """Check that the answer is a refusal whose text is the same for every request."""
    assert answer.status == 403
    assert answer.body == b"" or re.fullmatch(rb"403: [\w ;,.]+\n", answer.body)
    assert "Set-Cookie" not in answer.headers


def patterns(router: Any) -> Iterator[str]:
    """Yield the patterns of a routing table, as regular expressions."""
    for rule in router.rules:
        if isinstance(rule.target, RuleRouter):
            yield from patterns(rule.target)
        else:
            yield rule.matcher.regex.pattern


@pytest.fixture(scope="module")
def paths(cluster: GuardedCluster) -> list[str]:
    """Return an address for each route of the server, and some without a route."""
    assert cluster.scheduler is not None
    root = cluster.scheduler.http_application
    found = {pattern for app in (root, *root.applications) for pattern in patterns(app.default_router)}
    plain = {re.sub(r"\(.*?\)", "1", pattern).replace("/?$", "").rstrip("$") for pattern in found}
    return sorted({path or "/" for path in plain} | {"/statics/css/base.css", "/static/js/bokeh.min.js", "/nothing/there"})


def test_each_route_is_found(paths: list[str]) -> None:
    """The next test relies on this list."""
    assert {"/", "/status", "/emseg", "/emseg/ws", "/json/emseg.json", "/metrics", "/health", "/eventstream"} <= set(paths)
    assert len(paths) > 200


def test_without_the_token_no_route_tells_anything(paths: list[str], door: Door) -> None:
    for path in paths:
        assert_refused(door.ask(path))
    for method in ("HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for path in ("/status", "/json/emseg.json", "/metrics", "/nothing"):
            assert_refused(door.ask(path, method=method))


def test_with_the_token_all_is_shown(door: Door) -> None:
    """Otherwise the previous test would prove nothing."""
    shown = ("/emseg", "/json/emseg.json", "/metrics", "/health", "/info/main/workers.html", "/statics/css/base.css")
    for headers in (door.cookie, door.bearer):
        assert [door.ask(path, headers).status for path in shown] == [200] * len(shown)
    assert door.ask("/nothing/there", door.cookie).status == 404
    assert SECRET in door.text("/json/emseg.json")
    assert SECRET in door.text("/metrics")


def test_the_dashboard_is_imported_when_its_first_page_is_asked_for(tmp_path: Path) -> None:
    """It is imported for a user with the token only. JSON and metrics are available before."""
    with GuardedCluster({}, LOOPBACK, Security(), tmp_path) as cluster:
        scheduler, door = cluster.scheduler, Door.of(cluster.dashboard_link)
        assert isinstance(scheduler, GuardedScheduler)
        cluster.sync(register, cluster)
        assert_refused(door.ask("/emseg"))
        assert SECRET in door.text("/json/emseg.json")
        assert SECRET in door.text("/metrics")
        assert not scheduler.dashboard_is_open
        assert door.ask("/emseg", door.cookie, method="POST").status in (403, 405)
        assert "emseg" in door.text("/emseg?run=a%26b")
        assert scheduler.dashboard_is_open
        assert 'href="emseg' in door.text("/status")
        assert door.ask("/nothing/there", door.cookie).status == 404


@pytest.mark.parametrize(
    "given",
    [
        {"Cookie": "emseg-{port}=guessed"},
        {"Cookie": "emseg-1={token}"},
        {"Cookie": "emseg-{port}"},
        {"Cookie": "emseg-{port}=\xe9"},
        {"Authorization": "Bearer guessed"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic {token}"},
        {"Authorization": "Bearer {token}x"},
        {"X-Forwarded-For": "127.0.0.1"},
    ],
)
def test_no_other_words_open(given: dict[str, str], door: Door) -> None:
    said = {name: value.format(port=door.port, token=door.token) for name, value in given.items()}
    assert_refused(door.ask("/status", said))


def test_the_link_leads_to_a_cookie(door: Door) -> None:
    """It redirects to the same address without the token, so neither the history nor other sites learn it."""
    answer = door.ask(f"/emseg?run=a%26b&{TOKEN_PARAMETER}={door.token}")
    assert answer.status == 302
    assert answer.headers["Location"] == "./emseg?run=a%26b"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    first, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert {"Cookie": first} == door.cookie
    assert sorted(attributes) == ["HttpOnly", "Path=/", "SameSite=Strict"]
    assert answer.body == b""
    assert_refused(door.ask(f"/emseg?{TOKEN_PARAMETER}={door.token}x"))
    assert_refused(door.ask(f"/emseg?{TOKEN_PARAMETER}={door.token}", method="POST"))


@pytest.mark.parametrize(("path", "place"), [("/", "./"), ("/info/main/logs.html", "./logs.html"), ("//evil.example/x", "./x")])
def test_the_link_leads_to_where_it_says(path: str, place: str, door: Door) -> None:
    assert door.ask(f"{path}?{TOKEN_PARAMETER}={door.token}").headers["Location"] == place


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:9000",
        "localhost.",
        "127.0.0.1:9000",
        "127.0.0.5",
        "[::1]:9000",
        socket.gethostname(),
        own_address(),
    ],
)
def test_a_tunnel_may_begin_at_another_port(host: str, door: Door) -> None:
    entrance = door.ask(f"/status?{TOKEN_PARAMETER}={door.token}", {"Host": host})
    assert entrance.status == 302
    cookie = entrance.headers["Set-Cookie"].partition(";")[0]
    here = {"Host": host, "Cookie": cookie, "Origin": f"http://{host}"}
    assert door.ask("/health", here).status == 200
    assert door.shake("/eventstream", here) == 101


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "localhost.evil.example:{port}",
        "127.0.0.1.evil.example:{port}",
        "127.0.0.1:{port}@evil.example",
        "evil.example@127.0.0.1:{port}",
        "0.0.0.0:{port}",
        "2130706433:{port}",
        "192.0.2.1:{port}",
        "[2001:db8::1]:{port}",
        "127.0.0.1:{port}, evil.example",
        "",
    ],
)
def test_another_host_gets_nothing(host: str, door: Door) -> None:
    """It gets nothing even if the browser takes it for this host and sends all credentials."""
    name = host.format(port=door.port)
    sent = {"Host": name, **door.cookie, **door.bearer}
    for path in ("/status", "/json/emseg.json", f"/status?{TOKEN_PARAMETER}={door.token}"):
        answer = door.ask(path, sent)
        assert answer.status in (400, 403)  # some are not a valid host, and go no further than tornado
        assert b"emseg" not in answer.body.replace(b"the link with the token that emseg has printed", b"")
        assert "Set-Cookie" not in answer.headers
    assert door.shake("/eventstream", sent) in (400, 403)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://evil.example:{port}",
        "http://127.0.0.1.evil.example:{port}",
        "http://127.0.0.1:1",
        "http://localhost",
        "null",
        "http://[",
    ],
)
def test_a_page_of_another_site_gets_nothing(origin: str, door: Door) -> None:
    """This includes a page of another user at another port of this machine, which shares the cookie."""
    sent = {"Origin": origin.format(port=door.port), **door.cookie}
    for path in ("/status", "/json/emseg.json", "/metrics"):
        assert_refused(door.ask(path, sent))
        assert_refused(door.ask(path, sent, method="POST"))
    for path in ("/eventstream", "/emseg/ws", "/status/ws"):
        assert door.shake(path, sent) == 403
        assert door.shake(path, {"Sec-WebSocket-Origin": sent["Origin"], **door.cookie}) == 403


def test_a_websocket_wants_the_token(door: Door) -> None:
    for path in ("/eventstream", "/emseg/ws", "/status/ws"):
        assert door.shake(path, {}) == 403
        for name in (LOOPBACK, "localhost"):
            assert door.shake(path, {"Origin": f"http://{name}:{door.port}"}) == 403
        assert door.shake(path, {"Origin": f"http://{LOOPBACK}:{door.port}", **door.cookie}) == 101


def test_who_comes_from_another_site_asks_twice(door: Door) -> None:
    """The browser withholds the cookie the first time. The second request comes from this site."""
    come = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    first = door.ask("/status", come)
    assert_refused(first)
    assert first.headers["Refresh"] == "0"
    for other in ({**come, "Sec-Fetch-Site": "same-origin"}, {**come, "Sec-Fetch-Dest": "image"}, {}):
        assert "Refresh" not in door.ask("/status", other).headers


def test_a_proxy_that_was_named(tmp_path: Path) -> None:
    """The address comes from Dask's configuration for the dashboard."""
    named = {"distributed.dashboard.link": HUB}
    with dask.config.set(named), GuardedCluster({}, LOOPBACK, Security(), tmp_path) as cluster:
        port = cluster.scheduler_info["services"]["dashboard"]
        token = cluster.token
        assert cluster.dashboard_link == HUB.format(port=port) + f"?{TOKEN_PARAMETER}={token}"
        door = Door(port, token)
        named = {"Host": "hub.example.org"}
        entrance = door.ask(f"/status?{TOKEN_PARAMETER}={token}", named)
        cookie, *attributes = entrance.headers["Set-Cookie"].split("; ")
        assert sorted(attributes) == ["HttpOnly", "SameSite=Strict"], "other users may be at other paths of the proxy"
        seen = {"Cookie": cookie, "Origin": "https://hub.example.org"}
        assert door.ask("/health", {**named, **seen}).status == 200
        assert door.shake("/status/ws", {**named, **seen}) == 101
        assert door.shake("/status/ws", {**seen, **door.cookie}) == 101, "one that puts a Host of its own"
        assert_refused(door.ask("/status", named))
        for other in ("evil.hub.example.org", "hub.example.org:1", "example.org"):
            assert_refused(door.ask("/status", {**seen, "Host": other}))
        assert_refused(door.ask("/status", {**named, **seen, "Origin": "https://hub.example.org:1"}))
        assert door.ask("/health", door.cookie).status == 200, "from this machine as well"


@pytest.mark.parametrize(
    ("configured", "link"),
    [
        ("{scheme}://{host}:{port}/status", "https://hub.example.org/user/me/proxy/{port}/status"),
        ("{JUPYTERHUB_SERVICE_PREFIX}proxy/{port}/status", "https://hub.example.org/user/me/proxy/{port}/status"),
        ("https://gate.example.org/{port}/status", "https://gate.example.org/{port}/status"),
    ],
)
def test_under_jupyterhub(configured: str, link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's host is accepted if the hub states it, unless another is configured. No second host is accepted."""
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/me/")
    monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", "https://hub.example.org/user/me/")
    named = {"distributed.dashboard.link": configured}
    with dask.config.set(named), GuardedCluster({}, LOOPBACK, Security(), tmp_path) as cluster:
        port, token = cluster.scheduler_info["services"]["dashboard"], cluster.token
        assert cluster.dashboard_link == link.format(port=port) + f"?{TOKEN_PARAMETER}={token}"
        door, host = Door(port, token), link.split("/")[2]
        for other in {"hub.example.org", "gate.example.org", "evil.example"} - {host}:
            assert_refused(door.ask(f"/status?{TOKEN_PARAMETER}={token}", {"Host": other}))
        entrance = door.ask(f"/status?{TOKEN_PARAMETER}={token}", {"Host": host})
        cookie = entrance.headers["Set-Cookie"].partition(";")[0]
        assert door.shake("/status/ws", {"Host": host, "Cookie": cookie, "Origin": f"https://{host}"}) == 101
        assert_refused(door.ask("/status", {"Host": host, "Cookie": cookie, "Origin": "https://evil.example"}))
        assert_refused(door.ask("/status", {"Host": host}))


@pytest.mark.parametrize("configured", ["{scheme}://{host}:{port}/status", "{JUPYTERHUB_SERVICE_PREFIX}proxy/{port}/status"])
def test_a_hub_that_does_not_state_its_address(configured: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No host is accepted, and the user is told how to state one."""
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/me/")
    monkeypatch.delenv("JUPYTERHUB_PUBLIC_URL", raising=False)
    named = {"distributed.dashboard.link": configured}
    with dask.config.set(named), GuardedCluster({}, LOOPBACK, Security(), tmp_path) as cluster:
        door = Door(cluster.scheduler_info["services"]["dashboard"], cluster.token)
        assert cluster.proxy is None
        client: Any = SimpleNamespace(cluster=cluster)
        assert hub_advice(client) == "export DASK_DISTRIBUTED__DASHBOARD__LINK='https://HUB/user/me/proxy/{port}/status'"
        monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", "https://hub.example.org/user/me/")
        assert hub_advice(client) is None
        assert_refused(door.ask(f"/status?{TOKEN_PARAMETER}={door.token}", {"Host": "hub.example.org"}))
        assert door.ask("/health", door.cookie).status == 200


@pytest.mark.parametrize("configured", ["https://hub/{NO_SUCH_VARIABLE}/status", "https://hub/{port", "https://[hub/status"])
def test_a_link_that_is_no_address(configured: str) -> None:
    refused = pytest.raises(
        InputError, match=r"distributed\.dashboard\.link .* no address .*environment variables that are set"
    )
    with dask.config.set({"distributed.dashboard.link": configured}), refused:
        dashboard_address(LOOPBACK, 8787)


def test_each_token_is_another() -> None:
    assert new_token() != new_token()
    assert len(new_token()) >= 32
