"""Fixtures: a headless browser, and a page that must log no error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium import CHROMIUM, PLAIN, started, watched_page
from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("tests/browser/setup was not run: no Chromium")
    with started(*PLAIN) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with watched_page(browser) as page:
        yield page
