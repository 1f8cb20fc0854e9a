"""Test that records use only operations that object stores support."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from emseg_core.errors import OutputError
from emseg_core.store.files.files import LocalFiles
from emseg_core.store.files.records import Records


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(LocalFiles(tmp_path))


def test_what_is_put_is_got(records: Records) -> None:
    assert records.get("run-0001/lease.json") is None
    records.put("run-0001/lease.json", b"one")
    records.put("run-0001/lease.json", b"two")
    records.put("top.json", bytes(range(256)))
    assert records.get("run-0001/lease.json") == b"two"
    assert records.get("top.json") == bytes(range(256))


def test_only_what_is_not_there_is_created(records: Records) -> None:
    assert records.create("run-0001/lease.json", b"first")
    assert not records.create("run-0001/lease.json", b"second")
    assert records.get("run-0001/lease.json") == b"first"
    records.remove("run-0001/lease.json")
    assert records.create("run-0001/lease.json", b"third")


def test_of_many_creators_one_succeeds(tmp_path: Path) -> None:
    """Eight threads race for thirty rounds, each with records of its own, as processes have."""
    for attempt in range(30):
        together, made = threading.Barrier(8), [False] * 8

        def create(
            number: int, attempt: int = attempt, together: threading.Barrier = together, made: list[bool] = made
        ) -> None:
            together.wait()
            made[number] = Records(LocalFiles(tmp_path)).create(f"run-{attempt}/lease.json", b"%d" % number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made.count(True) == 1
        assert Records(LocalFiles(tmp_path)).get(f"run-{attempt}/lease.json") == b"%d" % made.index(True)


def test_readers_see_the_old_or_the_new(records: Records) -> None:
    documents = [bytes([value]) * 100_000 for value in range(2)]
    records.put("a.json", documents[0])
    end, seen = threading.Event(), set()

    def read() -> None:
        while not end.is_set():
            seen.add(records.get("a.json"))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        records.put("a.json", documents[number % 2])
    end.set()
    reader.join()
    assert seen <= set(documents)
    assert seen


def test_a_put_that_fails_keeps_the_old(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.put("a.json", b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=r"cannot be written \(no space left on device\): free some space"):
        records.put("a.json", b"new")
    with pytest.raises(OutputError, match="free some space"):
        records.create("b.json", b"new")
    assert records.get("a.json") == b"old"
    assert [path.name for path in (tmp_path / "emseg").iterdir()] == ["a.json"]


def test_age_counts_from_the_last_put(records: Records, tmp_path: Path) -> None:
    assert records.age("run-0001/lease.json") is None
    records.put("run-0001/lease.json", b"x")
    first = records.age("run-0001/lease.json")
    assert first is not None
    file = tmp_path / "emseg" / "run-0001" / "lease.json"
    for back in (100.0, 5000.0):
        then = file.stat().st_mtime - back
        os.utime(file, (then, then))
        age = records.age("run-0001/lease.json")
        assert age is not None
        assert age >= back
        records.put("run-0001/lease.json", b"x")
        again = records.age("run-0001/lease.json")
        assert again is not None
        assert again < back
    assert records.names() == ["run-0001/lease.json"], "the clock's probe is not a record"
    assert [path.name for path in file.parent.iterdir()] == ["lease.json"]


def test_a_document_of_the_future_has_an_age_below_0(records: Records, tmp_path: Path) -> None:
    records.put("a.json", b"x")
    later = (tmp_path / "emseg" / "a.json").stat().st_mtime + 1000
    os.utime(tmp_path / "emseg" / "a.json", (later, later))
    assert -1000 <= (records.age("a.json") or 0.0) < -990


def test_names_are_sorted_and_begin_with_the_prefix(records: Records, tmp_path: Path) -> None:
    assert records.names() == []
    for name in ("run-0002/b.json", "run-0002/a.json", "run-0010/c.json", "zarr.json"):
        records.put(name, b"")
    (tmp_path / "emseg" / "run-0002" / ".a.json.0f.partial").touch()
    assert records.names() == ["run-0002/a.json", "run-0002/b.json", "run-0010/c.json", "zarr.json"]
    assert records.names("run-") == records.names()[:3]
    assert records.names("run-0002/b") == ["run-0002/b.json"]
    assert records.names("nothing") == []


def test_what_is_removed_is_gone_and_its_folder_too(records: Records, tmp_path: Path) -> None:
    records.put("run-0001/a.json", b"a")
    records.put("run-0001/b.json", b"b")
    records.remove("run-0001/a.json")
    records.remove("run-0001/a.json")
    records.remove("run-0007/never.json")
    assert records.names() == ["run-0001/b.json"]
    records.remove("run-0001/b.json")
    assert records.get("run-0001/b.json") is None
    assert list((tmp_path / "emseg").iterdir()) == []


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Make a folder with one record that anybody may enter but only its owner may write to."""
    folder = Path(tempfile.mkdtemp())
    Records(LocalFiles(folder)).put("a.json", b"a")
    folder.chmod(0o555)
    (folder / "emseg").chmod(0o555)
    if os.getuid() == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(os.getuid())
    folder.chmod(0o755)
    (folder / "emseg").chmod(0o755)
    shutil.rmtree(folder)


def test_permission_denied_is_said_in_one_line(unprivileged: Path) -> None:
    records = Records(LocalFiles(unprivileged))
    assert records.get("a.json") == b"a"
    for action in (
        lambda: records.create("b.json", b""),
        lambda: records.create("run-0001/b.json", b""),
        lambda: records.put("a.json", b""),
        lambda: records.put("run-0001/b.json", b""),
        lambda: records.remove("a.json"),
        lambda: records.age("a.json"),
    ):
        with pytest.raises(OutputError, match=r"\(permission denied\): choose a folder that you may write to") as caught:
            action()
        assert "\n" not in str(caught.value)
    assert records.names() == ["a.json"]
