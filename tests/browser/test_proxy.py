"""Test the page of a run in a browser behind a proxy that has another host and adds a prefix."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from chromium import HUB, PLAIN, needs_chromium, started, watched_page
from distributed import Security
from proxy import PREFIX, proxy

from emseg.access import TOKEN_PARAMETER
from emseg.clusters.local import LOOPBACK, GuardedCluster
from emseg.dashboard.board import RunDescription, RunUpdate, State
from emseg.dashboard.reporter import map_address
from emseg.dashboard.server import open_board, update_board
from emseg_core.box import Box

RUN = RunDescription(
    "run", "/v.zarr", "/o.zarr", Box((0, 0, 0), (1, 1, 2)), (1, 1, 2), (1, 1, 1), (1, 1, 1), zlib.compress(bytes(2))
)
"""A run with two waiting blocks."""

pytestmark = needs_chromium


async def show(cluster: GuardedCluster) -> None:
    assert cluster.scheduler is not None
    open_board(RUN, dask_scheduler=cluster.scheduler)


async def advance(cluster: GuardedCluster) -> None:
    assert cluster.scheduler is not None
    assert update_board("run", RunUpdate(changed={1: State.DONE}), dask_scheduler=cluster.scheduler)


def test_the_page_of_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link needs no option, every request passes the proxy, and the websocket delivers updates."""
    with proxy() as port, started(*PLAIN) as browser:
        door = f"http://{HUB}:{port}{PREFIX}"
        monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", PREFIX)
        monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", door)
        with GuardedCluster({}, LOOPBACK, Security(), tmp_path) as cluster, watched_page(browser, home=door) as page:
            cluster.sync(show, cluster)
            page.goto(map_address(cluster.dashboard_link))
            assert TOKEN_PARAMETER not in page.url
            assert page.url.startswith(door)
            page.wait_for_function("() => document.title == 'emseg'")
            waiting, done = page.locator(".emseg-waiting"), page.locator(".emseg-done")
            waiting.wait_for()
            assert (waiting.inner_text(), done.inner_text()) == ("2", "0")
            cluster.sync(advance, cluster)
            page.locator(".emseg-done", has_text="1").wait_for()
            page.click("a[href='workers']")
            page.wait_for_url(f"{door}proxy/*/workers")
            page.wait_for_selector("a[href='emseg']")
            page.wait_for_timeout(1000)
