"""Test that only its user can read the key of a run, and that the key is removed after the run."""

from __future__ import annotations

import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from emseg.clusters.certificates import run_security


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_reads_the_key(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with run_security(tmp_path / "run"):
            assert mode(tmp_path / "run") == 0o700
            assert [mode(path) for path in (tmp_path / "run").iterdir()] == [0o600, 0o600]
    finally:
        os.umask(before)


def test_files_are_private_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions are set before the key is written."""
    made = []

    def watched(path: Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            made.append((mode, bool(flags & os.O_EXCL)))
        return opened(path, flags, mode, dir_fd=dir_fd)

    opened = os.open
    monkeypatch.setattr(os, "open", watched)
    with run_security(tmp_path / "run"):
        assert made == [(0o600, True)] * 2


def test_nothing_is_left(tmp_path: Path) -> None:
    made = []

    def fail() -> None:
        with run_security(tmp_path / "run") as security:
            made.append(Path(security.tls_worker_key).is_file())  # type: ignore[attr-defined]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert made == [True]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").touch()
    with pytest.raises(FileExistsError), run_security(tmp_path / "run"):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_the_certificate(tmp_path: Path) -> None:
    with run_security(tmp_path / "run") as security:
        certificate = x509.load_pem_x509_certificate(Path(security.tls_ca_file).read_bytes())  # type: ignore[attr-defined]
    certificate.verify_directly_issued_by(certificate)
    now = datetime.now(UTC)
    assert certificate.not_valid_before_utc < now - timedelta(hours=1), "the clocks of hosts differ"
    assert timedelta(days=30) < certificate.not_valid_after_utc - now < timedelta(days=100)


def test_each_run_has_its_own(tmp_path: Path) -> None:
    with run_security(tmp_path / "one") as one, run_security(tmp_path / "other") as other:
        assert handshake(one.get_listen_args("scheduler"), one.get_connection_args("worker"))
        with pytest.raises(ssl.SSLError):
            handshake(one.get_listen_args("scheduler"), other.get_connection_args("worker"))


def handshake(server: dict[str, ssl.SSLContext], client: dict[str, ssl.SSLContext]) -> bool:
    """Return whether two ends agree, without a network."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client["ssl_context"].wrap_bio(to_client, to_server),
        server["ssl_context"].wrap_bio(to_server, to_client, server_side=True),
    ]
    agreed = set()
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
                agreed.add(end)
            except ssl.SSLWantReadError:
                pass
    return len(agreed) == 2
