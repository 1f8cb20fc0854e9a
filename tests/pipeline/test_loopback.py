"""Test that this machine is an exception from proxies."""

from __future__ import annotations

import os

import pytest

from emseg_core.loopback import EXCEPTIONS, PROXIES, exclude_loopback_from_proxies


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *(name.upper() for name in PROXIES), *EXCEPTIONS):
        monkeypatch.setenv(name, "")  # so that it is restored, whoever changes it
        monkeypatch.delenv(name)


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "example.org, localhost"}, "example.org,localhost,127.0.0.1,::1"),
        ({"no_proxy": "::1,localhost,127.0.0.1"}, "::1,localhost,127.0.0.1"),
    ],
)
def test_own_names_are_added(proxy: str, given: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {proxy: "http://proxy:1", **given}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        exclude_loopback_from_proxies()
        assert {os.environ[name] for name in EXCEPTIONS} == {expected}


def test_without_a_proxy_nothing_changes() -> None:
    exclude_loopback_from_proxies()
    assert not os.environ.keys() & {*EXCEPTIONS}


def test_an_exception_for_everything_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.setenv("no_proxy", "*")
    exclude_loopback_from_proxies()
    assert os.environ["no_proxy"] == "*"
    assert "NO_PROXY" not in os.environ
