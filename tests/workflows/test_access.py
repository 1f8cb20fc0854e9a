"""Test addresses behind a proxy, and the token of a dashboard: its file, and links in logs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emseg.access import hub_address, link_for_logs, link_with, public_address, token_file, token_file_kept
from emseg_core.errors import InputError
from emseg_core.store.files.place import parse_place


def test_the_file_is_this_users_alone(tmp_path: Path) -> None:
    """It replaces any existing file, even in a folder that others may write to, and is removed after the run."""
    file, elsewhere = tmp_path / ".out.zarr.token", tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    file.symlink_to(elsewhere)
    before = os.umask(0)
    try:
        with token_file_kept("secret", file):
            assert not file.is_symlink()
            assert file.read_text() == "secret"
            assert file.stat().st_mode & 0o777 == 0o600
            assert sorted(tmp_path.iterdir()) == [file, elsewhere]
    finally:
        os.umask(before)
    assert elsewhere.read_text() == "untouched"
    assert list(tmp_path.iterdir()) == [elsewhere]


def test_the_file_of_a_later_run_stays(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with token_file_kept("later", file):
        with token_file_kept("earlier", file):
            file.unlink()
            file.write_text("later still")
        assert file.read_text() == "later still"


def test_where_there_can_be_no_file(tmp_path: Path) -> None:
    (tmp_path / "token").mkdir()
    for file in (tmp_path / "token", tmp_path / "no" / "token"):
        with pytest.raises(OSError, match="token"), token_file_kept("secret", file):
            pass
    assert list(tmp_path.iterdir()) == [tmp_path / "token"]


def test_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert token_file(Path("/data/out.zarr")) == Path("/data/.out.zarr.token")
    assert token_file(Path("out.zarr")) == token_file(parse_place("s3://bucket/out.zarr")) == tmp_path / ".out.zarr.token"


def test_links() -> None:
    link = link_with("http://127.0.0.1:8787/status", "s3cr-et_")
    assert link == "http://127.0.0.1:8787/status?emseg-token=s3cr-et_"
    assert link_with("/proxy/8787/status?a=b", "x") == "/proxy/8787/status?a=b&emseg-token=x"
    logged = link_for_logs(link, Path("/my data/.out.token"))
    assert logged == "http://127.0.0.1:8787/status?emseg-token=$(cat '/my data/.out.token')"
    assert link_for_logs("http://there:8787/status", Path("/f")) == "http://there:8787/status"


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("https://hub.example.org/user/me/proxy/{port}/", "https://hub.example.org/user/me/proxy/8000/"),
        ("https://hub.example.org/user/a%40b/proxy/8000", "https://hub.example.org/user/a%40b/proxy/8000/"),
        ("http://node7:9000", "http://node7:9000/"),
        ("HTTPS://[2001:db8::1]:{port}/x//", "HTTPS://[2001:db8::1]:8000/x/"),
    ],
)
def test_the_address_of_a_proxy(written: str, address: str) -> None:
    assert public_address(written, 8000) == address


@pytest.mark.parametrize(
    "written",
    [
        *(
            "",
            "hub.example.org",
            "/user/me/proxy/{port}/",
            "//hub.example.org/",
            "ftp://hub.example.org/",
            "https://",
            "https:///x",
        ),
        *("https://me:word@hub.example.org/", "https://hub.example.org/?a=b", "https://hub.example.org/#a", "https://a b/"),
        *("https://hub.example.org/{PORT}/", "https://hub.example.org/a\nb/", "https://hub.example.org:port/", 'https://a/"/'),
    ],
)
def test_what_is_no_address_of_a_proxy(written: str) -> None:
    with pytest.raises(InputError, match=r"^--public-url is .*not the address of a proxy: write https://HOST/PATH/"):
        public_address(written, 8000)


def test_the_address_under_jupyterhub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slashes at the end, and other variables of the hub, make no difference."""
    for name in ("JUPYTERHUB_SERVICE_PREFIX", "JUPYTERHUB_PUBLIC_URL"):
        monkeypatch.delenv(name, raising=False)
    assert hub_address(8000) is None
    monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", "")
    for prefix in ("/user/me/", "/user/me", "/base/user/a%40b/gpu/"):
        monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", prefix)
        assert hub_address(8000) == f"{prefix.rstrip('/')}/proxy/8000/"
    monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", "https://hub.example.org/base/user/a%40b/gpu/")
    assert hub_address(8000) == "https://hub.example.org/base/user/a%40b/gpu/proxy/8000/"
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "")
    assert hub_address(8000) is None
