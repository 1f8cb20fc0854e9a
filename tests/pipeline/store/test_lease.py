"""One run per output: who may take a lease, from whom, and what the one before may still do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emseg.box import Box
from emseg.errors import OrphanError, OutputError
from emseg.specs.volume import VolumeSpec
from emseg.store import lease as leases
from emseg.store.files import LocalFiles
from emseg.store.lease import STALE, Holder, Lease, Token, newest_run, take_lease, tenure
from emseg.store.output import Form, create_output, open_output
from emseg.store.records import Records


@pytest.fixture(autouse=True)
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No lease that a test took beats on in the tests after it."""
    taken: list[Lease] = []

    class Watched(Lease):
        def __init__(self, records: Records, run: int, holder: Holder) -> None:
            taken.append(self)
            super().__init__(records, run, holder)

    monkeypatch.setattr(leases, "Lease", Watched)
    yield
    for lease in taken:
        lease._stop()


class ObjectStore:
    """Records in memory, with what an object store has and no more; its clock is moved by hand."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[bytes, float]] = {}
        self.now = 0.0

    def create(self, name: str, document: bytes) -> bool:
        """Keep a document unless there is one."""
        with self._lock:
            if name in self._kept:
                return False
            self._kept[name] = (document, self.now)
            return True

    def put(self, name: str, document: bytes) -> None:
        """Keep a document."""
        with self._lock:
            self._kept[name] = (document, self.now)

    def get(self, name: str) -> bytes | None:
        """The document."""
        return self._kept.get(name, (None, 0.0))[0]

    def has(self, name: str) -> bool:
        """Whether it is there."""
        return name in self._kept

    def age(self, name: str) -> float | None:
        """Seconds since it was put."""
        return self.now - self._kept[name][1] if name in self._kept else None

    def names(self, prefix: str = "") -> list[str]:
        """All names."""
        return sorted(name for name in self._kept if name.startswith(prefix))

    def remove(self, name: str) -> None:
        """Forget it."""
        with self._lock:
            self._kept.pop(name, None)


class Shelf:
    """Records of one kind, and a way to make them older."""

    def __init__(self, records: Records, pass_time: Callable[[float], None]) -> None:
        self.records = records
        self.pass_time = pass_time

    def take(self) -> Lease:
        """A lease."""
        return take_lease(self.records, Path("labels.zarr"))

    def hold(self, run: int, holder: Holder, *, released: bool = False) -> None:
        """Let somebody have a lease."""
        document = {"holder": asdict(holder), "beats": 3, "released": released}
        self.records.put(name(run), json.dumps(document).encode())


def name(run: int) -> str:
    return f"run-{run:04d}/lease.json"


@pytest.fixture(params=["folder", "object store"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    if request.param == "folder":

        def turn_back(seconds: float) -> None:
            for file in tmp_path.rglob("lease.json"):
                then = file.stat().st_mtime - seconds
                os.utime(file, (then, then))

        return Shelf(Records(LocalFiles(tmp_path)), turn_back)
    store = ObjectStore()

    def go_on(seconds: float) -> None:
        store.now += seconds

    return Shelf(store, go_on)


ELSEWHERE = Holder("node17", "another boot", 4711, "123")


def test_the_first_lease(shelf: Shelf) -> None:
    assert tenure(shelf.records).run == newest_run(shelf.records) == 0
    taken = shelf.take()
    assert (taken.run, taken.lost) == (1, False)
    now = tenure(shelf.records)
    assert (now.run, now.state, now.holder) == (1, "held", Holder.here())
    assert now.holder is not None
    assert now.holder.near
    assert now.holder.process == os.getpid()


@pytest.mark.parametrize("age", [0.0, 10 * STALE])
def test_a_live_holder_on_this_host_refuses_however_long_it_was_silent(shelf: Shelf, age: float) -> None:
    shelf.take()
    shelf.pass_time(age)
    with pytest.raises(
        OutputError, match=rf"labels.zarr is in use by run 1, process {os.getpid()} on .*: wait for it or stop it$"
    ):
        shelf.take()
    assert shelf.records.names() == [name(1)]


SLEEPER = """
import sys, time
from pathlib import Path
from emseg.store.lease import take_lease
from emseg.store.files import LocalFiles
from emseg.store.records import Records
with take_lease(Records(LocalFiles(Path(sys.argv[1]))), Path("o")).held():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_holder_on_this_host_is_followed_at_once(tmp_path: Path) -> None:
    records = Records(LocalFiles(tmp_path))
    with subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match=f"in use by run 1, process {holder.pid} on "):
            take_lease(records, tmp_path)
        holder.kill()
        while tenure(records).state == "held":  # until the kernel has ended it; nobody has collected its exit code yet
            time.sleep(0.01)
        assert holder.returncode is None
        assert tenure(records).state == "dead"
        assert tenure(records).age < STALE
        assert take_lease(records, tmp_path).run == 2


def test_a_process_number_used_again_is_not_the_holder(shelf: Shelf) -> None:
    """This process has the number of the holder, but began at another time."""
    shelf.hold(1, replace(Holder.here(), born="1"))
    assert tenure(shelf.records).state == "dead"
    assert shelf.take().run == 2


def test_a_holder_elsewhere_is_judged_by_its_heartbeat(shelf: Shelf) -> None:
    shelf.hold(1, ELSEWHERE)
    shelf.pass_time(STALE - 10)
    with pytest.raises(OutputError, match=r"in use by run 1, process 4711 on node17, seen 5\d s ago: .*try again in 60 s"):
        shelf.take()
    shelf.pass_time(10.5)
    assert tenure(shelf.records).state == "dead"
    assert shelf.take().run == 2


def test_a_released_lease_is_free_at_once(shelf: Shelf) -> None:
    with shelf.take().held() as lease:
        assert lease.run == 1
        assert tenure(shelf.records).state == "held"
    assert tenure(shelf.records).state == "released"
    assert shelf.take().run == 2
    shelf.hold(2, ELSEWHERE, released=True)
    assert shelf.take().run == 3


def test_a_run_that_fails_releases_too(shelf: Shelf) -> None:
    with pytest.raises(KeyError), shelf.take().held():
        raise KeyError
    assert tenure(shelf.records).state == "released"


def test_a_withdrawn_lease_was_never_taken(shelf: Shelf) -> None:
    shelf.take().withdraw()
    assert shelf.records.names() == []
    assert shelf.take().run == 1


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[]",
        b"null",
        b"{}",
        b'{"holder": {}, "released": true}',
        b'{"holder": 1, "released": 1}',
        b"[" * 10**5,
    ],
)
def test_a_lease_that_says_nothing_is_held_until_it_is_stale(shelf: Shelf, damaged: bytes) -> None:
    """Its maker may be about to write it."""
    shelf.records.create(name(1), damaged)
    with pytest.raises(OutputError, match="in use by run 1, which is just starting, seen 0 s ago") as caught:
        shelf.take()
    assert "\n" not in str(caught.value)
    shelf.pass_time(STALE + 1)
    assert shelf.take().run == 2


def test_only_the_newest_lease_counts(shelf: Shelf) -> None:
    shelf.hold(9, Holder.here())
    shelf.hold(10, ELSEWHERE, released=True)
    shelf.records.put("run-0007/report.json", b"{}")
    shelf.records.put("running/lease.json", b"{}")
    assert newest_run(shelf.records) == 10
    assert shelf.take().run == 11


def test_of_many_that_race_for_a_lease_one_wins(shelf: Shelf) -> None:
    for before in range(20):
        together, won, lost = threading.Barrier(2), [], []

        def race(together: threading.Barrier = together, won: list[Lease] = won, lost: list[str] = lost) -> None:
            together.wait()
            try:
                won.append(shelf.take())
            except OutputError as error:
                lost.append(str(error))

        racers = [threading.Thread(target=race) for _ in range(2)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert [lease.run for lease in won] == [before + 1]
        assert len(lost) == 1
        assert "labels.zarr is in use by run" in lost[0] or "labels.zarr was taken by another run" in lost[0]
        shelf.hold(before + 1, Holder.here(), released=True)


def test_a_race_lost_at_the_last_moment_is_said(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen that the lease is free; the other was quicker."""
    free = tenure(shelf.records)
    shelf.take()
    monkeypatch.setattr(leases, "tenure", lambda _: free)
    with pytest.raises(OutputError, match=r"labels\.zarr was taken by another run at this very moment: wait for it or stop it"):
        shelf.take()


def test_the_heart_beats_until_the_end(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.01)
    before = set(threading.enumerate())
    lease = shelf.take()
    shelf.pass_time(STALE)
    with lease.held():
        for beats in (1, 5):
            wait_for(lambda beats=beats: read(shelf, 1)["beats"] >= beats)
        assert tenure(shelf.records).age < STALE
        assert read(shelf, 1) == {"holder": asdict(Holder.here()), "beats": read(shelf, 1)["beats"], "released": False}
    last = read(shelf, 1)
    assert last["released"] is True
    assert set(threading.enumerate()) <= before
    assert read(shelf, 1) == last


def test_a_store_that_is_away_for_a_while_does_not_stop_the_heart(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.01)
    put, away = shelf.records.put, 3

    def refuse(name: str, document: bytes) -> None:
        nonlocal away
        away -= 1
        if away >= 0:
            raise OutputError("the server does not answer")
        put(name, document)

    monkeypatch.setattr(shelf.records, "put", refuse)
    with shelf.take().held():
        wait_for(lambda: read(shelf, 1)["beats"] > 3)
    assert tenure(shelf.records).state == "released"


def test_who_was_followed_notices_and_leaves_the_new_lease_alone(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.01)
    with shelf.take().held() as old:
        shelf.hold(2, ELSEWHERE)
        wait_for(lambda: old.lost)
        before = read(shelf, 1), read(shelf, 2)
        time.sleep(0.05)
    assert (read(shelf, 1), read(shelf, 2)) == before
    assert (tenure(shelf.records).run, tenure(shelf.records).state) == (2, "held")


def read(shelf: Shelf, run: int) -> dict[str, Any]:
    """A lease's document."""
    found: dict[str, Any] = json.loads(shelf.records.get(name(run)) or b"")
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    """Returns as soon as it holds; the test's own time limit ends it if it never does."""
    while not condition():
        time.sleep(0.002)


# -- tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_is_good_until_the_next_run(tmp_path: Path) -> None:
    records = Records(LocalFiles(tmp_path))
    first = Token(records, take_lease(records, tmp_path).run)
    first.check()
    Shelf(records, lambda _: None).hold(1, ELSEWHERE, released=True)
    first.check()
    second = Token(records, take_lease(records, tmp_path).run)
    second.check()
    with pytest.raises(OrphanError, match="run 1 may not write any more, as run 2 has taken over the output: stop it"):
        first.check()


@pytest.mark.parametrize("late", [False, True], ids=["before it writes", "while it writes"])
def test_an_orphan_leaves_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    """Also one that is followed when its bytes are on the disk, but not yet in their place."""
    box = Box((0, 0, 0), (8, 16, 16))
    path = tmp_path / "o"
    create_output(path, Form(VolumeSpec(box.shape, "uint8", box.shape), box, ("a", "b"), box.shape, box.shape, True, {}))
    records = Records(LocalFiles(path))
    old = open_output(path, Token(records, take_lease(records, path).run))
    ones, both = np.ones(box.shape, np.uint8), np.ones((2, *box.shape), np.uint8)
    old.write(box, ones, both)
    before = voxels(path)
    assert len(before) == 2

    def follow() -> Token:
        Shelf(records, lambda _: None).hold(1, ELSEWHERE, released=True)
        return Token(records, take_lease(records, path).run)

    tokens: list[Token] = []
    fsync = os.fsync

    def follow_first(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        assert [file for file in path.rglob("*") if file.name.endswith(".partial")]
        tokens.append(follow())

    if late:
        monkeypatch.setattr(os, "fsync", follow_first)
    else:
        tokens.append(follow())
    with pytest.raises(OrphanError, match="run 1 may not write any more"):
        old.write(box, 0 * ones, 2 * both)
    assert voxels(path) == before
    assert not [file for file in path.rglob("*") if file.name.endswith(".partial")]
    open_output(path, tokens[0]).write(box, 0 * ones, 2 * both)
    assert (open_output(path).read_labels(box) == 0).all()
    assert (open_output(path).read_probabilities(box) == 2).all()


def voxels(path: Path) -> dict[Path, bytes]:
    """The files with voxels, and what is in them."""
    return {file: file.read_bytes() for file in path.rglob("c/**/*") if file.is_file()}


def test_a_job_that_was_queued_again_knows_that_its_former_self_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On whichever node that was: it does not wait for its own heartbeat to grow old."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    away = Holder("node3", "another boot", 4711, "1", "7", 1)
    assert away.dead(0.0)
    for other in (replace(away, restarts=2), replace(away, job="8"), replace(away, job="", restarts=0)):
        assert not other.dead(0.0)
        assert other.dead(STALE + 1)
    here = Holder.here()
    assert (here.job, here.restarts) == ("7", 2)
    assert str(here).endswith("in job 7")
    assert not here.dead(0.0)
