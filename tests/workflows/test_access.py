"""The token of a dashboard: the file that has it, and links in logs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emseg.access import link_for_logs, link_with, token_file, token_file_kept
from emseg_core.store.files.place import parse_place


def test_the_file_is_this_users_alone(tmp_path: Path) -> None:
    """Whatever stood there, also where others may write; and it goes with the run."""
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
