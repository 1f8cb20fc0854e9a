"""Test that files on disk and on an object store behave the same."""

from __future__ import annotations

import pickle
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID
from object_store import BUCKET, ObjectStore, object_store

from emseg_core.errors import OutputError, VolumeError
from emseg_core.installation import install_hint
from emseg_core.store.files import remote
from emseg_core.store.files.faults import StoreError
from emseg_core.store.files.files import Files, LocalFiles, open_files
from emseg_core.store.files.place import Place, parse_place


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture(params=["disk", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path, store: ObjectStore) -> Iterator[Place]:
    """Make an empty place of each kind."""
    yield tmp_path if request.param == "disk" else parse_place(store.address(f"{request.node.name} #1"))
    store.willing()


@pytest.fixture
def files(place: Place) -> Files:
    return open_files(place)


def test_what_is_put_is_read(files: Files) -> None:
    assert files.read("a/b.json") is None
    assert files.size("a/b.json") is None
    assert files.modified("a/b.json") is None
    files.put("a/b.json", b"one")
    files.put("a/b.json", memoryview(b"three"))
    files.put("top", bytes(range(256)))
    assert (files.read("a/b.json"), files.size("a/b.json")) == (b"three", 5)
    with files.reading("top") as stream:
        assert stream.read() == bytes(range(256))
    with pytest.raises(FileNotFoundError), files.reading("none"):
        pass
    assert files.read("top/inside a file") is None
    assert files.size("top/inside a file") is None


def test_what_is_written_in_pieces_is_there_in_the_end(files: Files) -> None:
    with files.writing("a/table.csv") as stream:
        for number in range(1000):
            stream.write(b"%d," % number)
        assert files.read("a/table.csv") is None
    assert files.read("a/table.csv") == b"".join(b"%d," % number for number in range(1000))


def test_what_is_refused_at_the_last_moment_is_not_put(files: Files) -> None:
    def refuse() -> None:
        raise OutputError("no more")

    files.put("a/0", b"old", lambda: None)
    with pytest.raises(OutputError, match="no more"):
        files.put("a/0", b"new", refuse)
    assert files.read("a/0") == b"old"
    assert files.entries("a") == ["0"]


def test_of_many_who_create_one_succeeds(place: Place) -> None:
    for attempt in range(5):
        made: list[bytes] = []
        together = threading.Barrier(6)

        def create(
            number: int, attempt: int = attempt, made: list[bytes] = made, together: threading.Barrier = together
        ) -> None:
            files, document = open_files(place), b"%d" % number
            together.wait()
            if files.create(f"run-{attempt}/lease.json", document):
                made.append(document)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made == [open_files(place).read(f"run-{attempt}/lease.json")]


def test_names_sizes_and_entries(files: Files) -> None:
    assert [files.entries(), files.names(), list(files.sizes("c"))] == [[], [], []]
    for name in ("c/0/0", "c/0/1", "c/10/0", "emseg/run-0001/a", "emseg/run-0001/b", "emseg/running", "zarr.json"):
        files.put(name, b"x" * len(name))
    assert sorted(files.sizes("c")) == [("0/0", 5), ("0/1", 5), ("10/0", 6)]
    assert files.entries() == ["c", "emseg", "zarr.json"]
    assert files.entries("emseg") == ["run-0001", "running"]
    assert files.entries("none") == []
    assert files.names("emseg/run-") == ["emseg/run-0001/a", "emseg/run-0001/b"]
    assert files.names("emseg/run") == ["emseg/run-0001/a", "emseg/run-0001/b", "emseg/running"]
    assert len(files.names()) == 7


def test_what_is_removed_is_gone(files: Files) -> None:
    for name in ("c/0", "c/1", "d/0"):
        files.put(name, b"x")
    files.remove("c/0")
    files.remove("c/0")
    files.remove("c/1/none")
    files.remove_all("d")
    files.remove_all("d")
    assert files.names() == ["c/1"]


def test_what_is_renamed_has_the_new_name_alone(files: Files) -> None:
    for name in ("scratch/image/zarr.json", "scratch/image/0/zarr.json", "scratch/image/0/c/0/0", "scratch/table", "table"):
        files.put(name, name.encode())
    files.rename("scratch/table", "table")
    files.rename_all("scratch/image", "labels")
    assert files.read("table") == b"scratch/table"
    assert files.names() == ["labels/0/c/0/0", "labels/0/zarr.json", "labels/zarr.json", "table"]
    assert files.read("labels/0/c/0/0") == b"scratch/image/0/c/0/0"


def test_age_is_told_by_one_clock(files: Files) -> None:
    files.put("emseg/a", b"x")
    then = files.modified("emseg/a")
    assert then is not None
    assert -1 <= files.clock("emseg") - then < 60
    assert files.names() == ["emseg/a"]


def test_tidying_keeps_what_is_whole(files: Files) -> None:
    files.put("labels/zarr.json", b"{}")
    if isinstance(files, LocalFiles):
        for left in (".a.0f.partial", "labels/.zarr.json.0f.partial"):
            (files.place / left).touch()
    files.tidy(deep=False)
    files.tidy("labels")
    assert files.names() == ["labels/zarr.json"]
    if isinstance(files, LocalFiles):
        assert sorted(path.name for path in files.place.rglob("*")) == ["labels", "zarr.json"]


def test_a_copy_for_another_process_is_of_the_same_place(files: Files, place: Place) -> None:
    files.put("a", b"x")
    packed = pickle.dumps(files)
    assert b"AWS" not in packed
    assert b"aws" not in packed
    again = pickle.loads(packed)
    assert (again.place, again.read("a")) == (place, b"x")


@pytest.fixture
def remote_files(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Files]:
    monkeypatch.setitem(remote.SHORT_RETRIES, "max_retries", 0)
    yield open_files(parse_place(store.address(request.node.name)))
    store.willing()


def test_a_million_units_take_a_thousand_requests(remote_files: Files, store: ObjectStore) -> None:
    """The test has two and a half thousand units; each request lists a thousand."""
    kept = get_backend("s3")[DEFAULT_ACCOUNT_ID]["global"]
    for number in range(2500):
        kept.put_object(BUCKET, f"{remote_files.place.name}/c/{number}", b"x")
    with store.counting() as asked:
        assert len(list(remote_files.sizes("c"))) == 2500
    assert len(asked) == 3
    assert all("list-type=2" in request for request in asked)


def test_a_renaming_that_was_cut_off_goes_on(remote_files: Files, store: ObjectStore) -> None:
    """It stops at each request. No incomplete node is visible at the new path."""
    names = ["zarr.json", "0/zarr.json", "0/c/0"]
    for after in range(12):
        folder, asked = f"s{after}", 0
        for name in names:
            remote_files.put(f"{folder}/image/{name}", name.encode())

        def refuse(key: str, signed: bool) -> str:
            nonlocal asked
            asked += 1
            return "403 Forbidden" if asked > after else ""  # noqa: B023

        store.refuse = refuse
        try:
            remote_files.rename_all(f"{folder}/image", f"{folder}/labels")
        except StoreError:
            store.willing()
            if remote_files.size(f"{folder}/labels/zarr.json") is not None:
                assert remote_files.read(f"{folder}/labels/0/c/0") == b"0/c/0"
            if remote_files.size(f"{folder}/image/zarr.json") is not None:
                remote_files.remove_all(f"{folder}/labels")
                remote_files.rename_all(f"{folder}/image", f"{folder}/labels")
        else:
            assert after > 5
        store.willing()
        for name in names:
            assert remote_files.read(f"{folder}/labels/{name}") == name.encode()
        assert remote_files.size(f"{folder}/image/zarr.json") is None


def test_the_lost_answer_to_a_creation(remote_files: Files) -> None:
    """The store has created it, but the answer was lost, and the client asks again."""
    remote_files.put("lease.json", b"mine")
    assert remote_files.create("lease.json", b"mine")
    assert not remote_files.create("lease.json", b"theirs")


def test_a_store_that_overwrites_what_is_only_to_be_created(remote_files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    store = remote_files.store  # type: ignore[union-attr]

    class Heedless:
        def put(self, name: str, document: bytes, *, mode: str, use_multipart: bool) -> None:
            assert mode == "create"
            store.put(name, document, use_multipart=use_multipart)

    monkeypatch.setattr(remote_files, "store", Heedless())
    with pytest.raises(StoreError, match="it does not support If-None-Match") as caught:
        remote_files.create("lease.json", b"mine")
    assert caught.value.permanent


def test_a_store_that_refuses_says_so(remote_files: Files, store: ObjectStore) -> None:
    store.refuse = lambda key, signed: "403 Forbidden"
    for act in (
        lambda: remote_files.read("a"),
        lambda: remote_files.size("a"),
        lambda: remote_files.put("a", b""),
        lambda: remote_files.create("a", b""),
        lambda: remote_files.modified("a"),
        lambda: remote_files.entries("a"),
        lambda: list(remote_files.sizes("a")),
        lambda: remote_files.remove("a"),
        lambda: remote_files.rename("a", "b"),
    ):
        with pytest.raises(StoreError) as caught:
            act()
        assert "403 Forbidden" in str(caught.value.strerror)
        assert caught.value.remedy.startswith("set credentials that permit it")


def test_no_bucket(store: ObjectStore) -> None:
    files = open_files(parse_place("s3://no-such-bucket/a"))
    for act in (lambda: files.read("a"), lambda: files.put("a", b""), files.entries):
        with pytest.raises(StoreError, match="no such bucket"):
            act()


def test_without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(VolumeError, match=re.escape(install_hint("remote"))):
        open_files(parse_place("s3://bucket/a"))
