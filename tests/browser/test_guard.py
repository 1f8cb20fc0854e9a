"""Test that a browser can follow a dashboard link from a page of another site, and that it keeps no token."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium import watched_page
from distributed import Security
from playwright.sync_api import Browser

from emseg.access import TOKEN_PARAMETER
from emseg.clusters.local import LOOPBACK, GuardedCluster

SEE = """async (address) => {
    try { return (await fetch(address, {credentials: 'include'})).status } catch { return 'nothing' }
}"""
CALL = """(address) => new Promise((answer) => {
    const socket = new WebSocket(address);
    socket.onopen = () => answer('open');
    socket.onerror = () => answer('refused');
})"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedCluster]:
    with GuardedCluster({}, LOOPBACK, Security(), tmp_path_factory.mktemp("scratch")) as cluster:
        yield cluster


def test_the_link_is_followed(browser: Browser, cluster: GuardedCluster) -> None:
    link = cluster.dashboard_link
    clean, socket = link.partition("?")[0], link.partition("?")[0].replace("http", "ws").replace("/status", "/eventstream")
    with watched_page(browser, expected="/status") as page:
        page.goto(f"data:text/html,<a href='{link}'>a chat, a notebook</a>")
        page.click("a")
        page.wait_for_selector("a[href='workers']")
        assert page.url == clean
        assert page.evaluate("document.cookie") == "", "no script reads it"
        assert page.evaluate(CALL, socket) == "open"
        assert page.evaluate("performance.getEntriesByType('navigation')[0].name").count(TOKEN_PARAMETER) == 0
        page.goto(clean.replace("/status", "/workers"))
        page.go_back()
        assert page.url == clean
        page.go_back()
        assert page.url.startswith("data:"), "the link is not in the history"


def test_without_the_link_there_is_nothing(browser: Browser, cluster: GuardedCluster) -> None:
    """The page does not ask again and again either."""
    clean = cluster.dashboard_link.partition("?")[0]
    asked: list[str] = []
    page = browser.new_page()  # a watched page treats each refusal as an error
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"data:text/html,<a href='{clean}'>a page that guesses</a>")
    page.click("a")
    while asked.count(clean) < 2:
        page.wait_for_timeout(50)
    page.wait_for_timeout(1000)
    assert page.inner_text("body").strip() == "403: open the link with the token that emseg has printed"
    page.close()
    assert asked.count(clean) == 2


def test_another_site_sees_nothing(browser: Browser, cluster: GuardedCluster) -> None:
    """It sees nothing even if the browser has the cookie."""
    link = cluster.dashboard_link
    clean = link.partition("?")[0]
    context = browser.new_context()
    page = context.new_page()
    page.goto(link)
    page.goto("data:text/html,another site")
    assert page.evaluate(SEE, clean) == "nothing"
    assert page.evaluate(CALL, clean.replace("http", "ws").replace("/status", "/eventstream")) == "refused"
    context.close()
