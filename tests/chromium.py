"""A headless browser whose pages must log no error and request nothing from other hosts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from emseg.clusters.local import LOOPBACK

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ALONE = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic", "--no-first-run")
"""Options of a browser that makes no connection of its own."""
PLAIN = ("--disable-gpu",)
DRAWING = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
"""Options for WebGL without a GPU."""

HUB = "hub.example.org"
"""A name of this machine that only the browser knows."""

HERE = ("data:", "file:", "blob:")
"""Prefixes of addresses that need no network."""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="tests/browser/setup was not run: no Chromium")


@contextmanager
def started(*flags: str) -> Iterator[Browser]:
    """Start the browser."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", f"--host-resolver-rules=MAP {HUB} {LOOPBACK}", *flags, *ALONE]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=arguments)
        yield browser
        browser.close()


@contextmanager
def watched_page(browser: Browser, expected: str | None = None, home: str = LOOPBACK) -> Iterator[Page]:
    """Open a page.

    Parameters
    ----------
    expected
        End of an address whose absence is not an error. Behind a proxy, no server answers HEAD.
    home
        Text that must be in every address the page requests.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    wrong: list[str] = []

    def look(message: ConsoleMessage) -> None:
        where = message.location.get("url", "")
        if home != LOOPBACK and "status of 405" in message.text:
            return
        if message.type == "error" and not (expected and where.endswith(expected)):
            wrong.append(f"{where}: {message.text}")

    page.on("console", look)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if home in asked.url or asked.url.startswith(HERE) else wrong.append(asked.url))
    yield page
    page.close()
    assert wrong == [], "\n".join(wrong)
