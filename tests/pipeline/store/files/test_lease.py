"""Test that an output has one run at a time: who may take a lease, from whom, and what the previous holder may still do."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import in_order

from emseg_core.box import Box
from emseg_core.errors import OrphanError, OutputError
from emseg_core.specs.heads import classes_head
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files import lease as leases
from emseg_core.store.files.atomic_folder import atomic_folder
from emseg_core.store.files.files import HeldFiles, LocalFiles
from emseg_core.store.files.lease import STALE_SECONDS, Holder, Lease, Token, lease_state, newest_run, take_lease
from emseg_core.store.files.ownership import OwnedFiles
from emseg_core.store.files.records import Records
from emseg_core.store.outputs.layout import OutputLayout
from emseg_core.store.outputs.lifecycle import create_output, open_output


@pytest.fixture(autouse=True)
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stop the heartbeats of all leases that a test took."""
    taken: list[Lease] = []

    class Watched(Lease):
        def __init__(self, *some: Any, **more: Any) -> None:
            taken.append(self)
            super().__init__(*some, **more)

    monkeypatch.setattr(leases, "Lease", Watched)
    yield
    for lease in taken:
        lease._stop()


class Memory(OwnedFiles):
    """Files in memory with the operations of an object store only. The test moves the clock."""

    place = Path("labels.zarr")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[bytes, float]] = {}
        self.now = 0.0

    def create(self, name: str, document: bytes) -> bool:
        self.check_owner()
        with self._lock:
            if name in self._kept:
                return False
            self._kept[name] = (document, self.now)
            return True

    def put(self, name: str, document: bytes) -> None:
        self.check_owner()
        with self._lock:
            self._kept[name] = (document, self.now)

    def read(self, name: str) -> bytes | None:
        return self._kept.get(name, (None, 0.0))[0]

    def size(self, name: str) -> int | None:
        return len(self._kept[name][0]) if name in self._kept else None

    def modified(self, name: str) -> float | None:
        return self._kept[name][1] if name in self._kept else None

    def clock(self, folder: str) -> float:
        return self.now

    def entries(self, folder: str = "") -> list[str]:
        return sorted({name.removeprefix(f"{folder}/").partition("/")[0] for name in self.names(f"{folder}/")})

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self._kept if name.startswith(prefix))

    def remove(self, name: str) -> None:
        self.check_owner()
        with self._lock:
            self._kept.pop(name, None)

    def remove_all(self, folder: str) -> None:
        for name in self.names(f"{folder}/"):
            self.remove(name)


class Seen(Memory):
    """The same files, opened by another process."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._lock, self._kept, self._memory = memory._lock, memory._kept, memory

    @property
    def now(self) -> float:
        return self._memory.now if hasattr(self, "_memory") else 0.0

    @now.setter
    def now(self, seconds: float) -> None:
        """Ignore the value, since all processes share a clock."""


class Shelf:
    """Records of one kind, and a way to age them."""

    def __init__(self, opened: Callable[[], Any], pass_time: Callable[[float], None]) -> None:
        self._opened = opened
        self.records = Records(opened())
        """The records as seen by a process that does not own them."""
        self.pass_time = pass_time

    def take(self) -> Lease:
        """Take a lease as another process would."""
        return take_lease(Records(self._opened()), Path("labels.zarr"))

    def hold(self, run: int, holder: Holder, *, released: bool = False) -> None:
        """Give a lease to another holder."""
        document = {"holder": asdict(holder), "beats": 3, "released": released}
        self.records.put(name(run), json.dumps(document).encode())


def name(run: int) -> str:
    return f"run-{run:04d}/lease.json"


@pytest.fixture(params=["folder", "object store"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    if request.param == "folder":

        def turn_back(seconds: float) -> None:
            for file in sorted(tmp_path.rglob("*"), reverse=True):
                then = file.stat().st_mtime - seconds
                os.utime(file, (then, then))

        return Shelf(lambda: HeldFiles(tmp_path), turn_back)
    memory = Memory()

    def go_on(seconds: float) -> None:
        memory.now += seconds

    return Shelf(lambda: Seen(memory), go_on)


ELSEWHERE = Holder("node17", "another boot", 4711, "123")


def test_the_first_lease(shelf: Shelf) -> None:
    assert lease_state(shelf.records).run == newest_run(shelf.records) == 0
    taken = shelf.take()
    assert (taken.run, taken.loss) == (1, "")
    now = lease_state(shelf.records)
    assert (now.run, now.state, now.holder) == (1, "held", Holder.here())
    assert now.holder is not None
    assert now.holder.on_this_machine
    assert now.holder.process == os.getpid()


@pytest.mark.parametrize("age", [0.0, 10 * STALE_SECONDS])
def test_a_live_holder_on_this_host_refuses_however_long_it_was_silent(shelf: Shelf, age: float) -> None:
    shelf.take()
    shelf.pass_time(age)
    with pytest.raises(
        OutputError, match=rf"labels.zarr is in use by run 1, process {os.getpid()} on .*: wait for it or stop it$"
    ):
        shelf.take()
    assert shelf.records.names() == ["identity.json", name(1)]


SLEEPER = """
import sys, time
from pathlib import Path
from emseg_core.store.files.lease import take_lease
from emseg_core.store.files.files import LocalFiles
from emseg_core.store.files.records import Records
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
        while lease_state(records).state == "held":  # until the kernel has ended it; no process has collected its exit code yet
            time.sleep(0.01)
        assert holder.returncode is None
        assert lease_state(records).state == "dead"
        assert lease_state(records).age < STALE_SECONDS
        assert take_lease(records, tmp_path).run == 2


def test_a_process_number_used_again_is_not_the_holder(shelf: Shelf) -> None:
    """This process has the number of the holder, but another start time."""
    shelf.hold(1, replace(Holder.here(), born="1"))
    assert lease_state(shelf.records).state == "dead"
    assert shelf.take().run == 2


def test_a_holder_elsewhere_is_judged_by_its_heartbeat(shelf: Shelf) -> None:
    shelf.hold(1, ELSEWHERE)
    shelf.pass_time(STALE_SECONDS - 10)
    with pytest.raises(OutputError, match=r"in use by run 1, process 4711 on node17, last seen 5\d s ago: .*try again in 60 s"):
        shelf.take()
    shelf.pass_time(10.5)
    assert lease_state(shelf.records).state == "dead"
    assert shelf.take().run == 2


def test_a_released_lease_is_free_at_once(shelf: Shelf) -> None:
    with shelf.take().held() as lease:
        assert lease.run == 1
        assert lease_state(shelf.records).state == "held"
    assert lease_state(shelf.records).state == "released"
    assert shelf.take().run == 2
    shelf.hold(2, ELSEWHERE, released=True)
    assert shelf.take().run == 3


def test_a_run_that_fails_releases_too(shelf: Shelf) -> None:
    with pytest.raises(KeyError), shelf.take().held():
        raise KeyError
    assert lease_state(shelf.records).state == "released"


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
    """Its creator may be about to write it."""
    shelf.records.create(name(1), damaged)
    with pytest.raises(OutputError, match="in use by run 1, which is just starting, last seen 0 s ago") as caught:
        shelf.take()
    assert "\n" not in str(caught.value)
    shelf.pass_time(STALE_SECONDS + 1)
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
        together = threading.Barrier(2)
        won: list[Lease] = []
        lost: list[str] = []

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
    """Both processes saw a free lease, and the other one was faster."""
    free = lease_state(shelf.records)
    shelf.take()
    monkeypatch.setattr(leases, "lease_state", lambda _: free)
    with pytest.raises(OutputError, match=r"labels\.zarr was taken by another run at the same moment: wait for it or stop it"):
        shelf.take()


def has_beaten(shelf: Shelf, beats: int) -> bool:
    return bool(read(shelf, 1)["beats"] >= beats)


def test_the_heart_beats_until_the_end(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    before = set(threading.enumerate())
    lease = shelf.take()
    shelf.pass_time(STALE_SECONDS)
    with lease.held():
        for beats in (1, 5):
            wait_for(partial(has_beaten, shelf, beats))
        assert lease_state(shelf.records).age < STALE_SECONDS
        beats = read(shelf, 1)["beats"]
        assert read(shelf, 1) == {"holder": asdict(Holder.here()), "beats": beats, "released": False, "taking": lease.taking}
    last = read(shelf, 1)
    assert last["released"] is True
    assert set(threading.enumerate()) <= before
    assert read(shelf, 1) == last


def test_a_store_that_is_away_for_a_while_does_not_stop_the_heart(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    put, away = Records.put, 0

    def refuse(records: Records, name: str, document: bytes) -> None:
        nonlocal away
        away -= 1
        if away >= 0:
            raise OutputError("the server does not answer")
        put(records, name, document)

    monkeypatch.setattr(Records, "put", refuse)
    with shelf.take().held():
        away = 3
        wait_for(lambda: read(shelf, 1)["beats"] > 3)
    assert lease_state(shelf.records).state == "released"


def test_who_was_followed_notices_and_leaves_the_new_lease_alone(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    with shelf.take().held() as old:
        shelf.hold(2, ELSEWHERE)
        wait_for(lambda: bool(old.loss))
        before = read(shelf, 1), read(shelf, 2)
        time.sleep(0.05)
    assert (read(shelf, 1), read(shelf, 2)) == before
    assert (lease_state(shelf.records).run, lease_state(shelf.records).state) == (2, "held")


def read(shelf: Shelf, run: int) -> dict[str, Any]:
    """Return the content of a lease."""
    found: dict[str, Any] = json.loads(shelf.records.get(name(run)) or b"")
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds. If it never does, the test's own time limit ends it."""
    while not condition():
        time.sleep(0.002)


# -- tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_is_good_until_the_next_run(shelf: Shelf) -> None:
    first = shelf.take().token
    first.check()
    shelf.hold(1, ELSEWHERE, released=True)
    first.check()
    second = shelf.take().token
    second.check()
    with pytest.raises(OrphanError, match="run 1 may not write any more, as run 2 has taken over the output: stop it"):
        first.check()


@pytest.mark.parametrize("late", [False, True], ids=["before it writes", "while it writes"])
def test_an_orphan_leaves_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    """It also does if it is replaced when its bytes are on disk, but not yet at their final path."""
    box, path = Box((0, 0, 0), (8, 16, 16)), empty_output(tmp_path / "o")
    old = open_output(path, lease_on(path).token)
    ones, both = np.ones(box.shape, np.uint8), np.ones((2, *box.shape), np.uint8)
    old.write(box, in_order(ones, both))
    before = voxels(path)
    assert len(before) == 2

    def follow() -> Token:
        Shelf(lambda: HeldFiles(path), lambda _: None).hold(1, ELSEWHERE, released=True)
        return lease_on(path).token

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
        old.write(box, in_order(0 * ones, 2 * both))
    assert voxels(path) == before
    assert not [file for file in path.rglob("*") if file.name.endswith(".partial")]
    open_output(path, tokens[0]).write(box, in_order(0 * ones, 2 * both))
    assert (open_output(path).read_labels(box) == 0).all()
    assert (open_output(path).read_probabilities(box) == 2).all()


def empty_output(path: Path) -> Path:
    """Make an output of one block."""
    box = Box((0, 0, 0), (8, 16, 16))
    create_output(
        path,
        OutputLayout(
            VolumeSpec(box.shape, "uint8", box.shape), box, (classes_head(("a", "b")),), box.shape, box.shape, True, {}
        ),
    )
    return path


def lease_on(path: Path) -> Lease:
    """Return the right to write to an output."""
    return take_lease(Records(HeldFiles(path)), path)


def voxels(path: Path) -> dict[Path, bytes]:
    """Return the files with voxels, and their content."""
    return {file: file.read_bytes() for file in path.rglob("c/**/*") if file.is_file()}


def test_a_job_that_was_queued_again_knows_that_its_former_self_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on any node, and does not wait until its own heartbeat is stale."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    away = Holder("node3", "another boot", 4711, "1", "7", 1)
    assert away.dead(0.0)
    for other in (replace(away, restarts=2), replace(away, job="8"), replace(away, job="", restarts=0)):
        assert not other.dead(0.0)
        assert other.dead(STALE_SECONDS + 1)
    here = Holder.here()
    assert (here.job, here.restarts) == ("7", 2)
    assert str(here).endswith("in job 7")
    assert not here.dead(0.0)


# -- whose output it is ---------------------------------------------------------------------------------------------


def identity(shelf: Shelf) -> dict[str, Any]:
    """Return the content of the file that identifies the owner."""
    found: dict[str, Any] = json.loads(shelf.records.get("identity.json") or b"")
    return found


def test_an_output_keeps_its_identity_from_run_to_run(shelf: Shelf) -> None:
    with shelf.take().held():
        first = identity(shelf)
    with shelf.take().held():
        second = identity(shelf)
    assert first["output"] == second["output"]
    assert (first["run"], second["run"]) == (1, 2)
    assert first["holder"] != second["holder"]


@pytest.mark.parametrize("damaged", [None, b"", b"{", b"[]", b'{"output": 7}'])
def test_without_one_it_gets_one_at_the_next_run(shelf: Shelf, damaged: bytes | None) -> None:
    old = shelf.take()
    with old.held():
        pass
    shelf.records.remove("identity.json") if damaged is None else shelf.records.put("identity.json", damaged)
    with pytest.raises(OrphanError):
        old.token.check()
    with shelf.take().held():
        assert len(identity(shelf)["output"]) == 32


def test_restored_without_its_runs_it_is_another_output(shelf: Shelf) -> None:
    """A run that is still active has the number of the next one. It no longer writes or sends heartbeats."""
    old = shelf.take()
    before = identity(shelf)
    shelf.records.remove(name(1))
    new = shelf.take()
    assert new.run == old.run == 1
    assert identity(shelf)["output"] != before["output"]
    with pytest.raises(OrphanError, match="run 1 may not write any more, as another output is in its place: stop it"):
        old.token.check()
    kept = read(shelf, 1)
    old._put(released=True)
    assert old.loss == "run 1 may not write any more, as another output is in its place"
    assert read(shelf, 1) == kept
    new.token.check()


def test_where_no_identity_can_be_read_nothing_is_written(shelf: Shelf) -> None:
    lease = shelf.take()
    shelf.records.remove("identity.json")
    files, before = lease.token.files, shelf.records.names()
    changes: list[Callable[[], object]] = [
        lambda: files.put("x", b""),
        lambda: files.create("x", b""),
        lambda: files.remove("zarr.json"),
    ]
    for change in changes:
        with pytest.raises(OrphanError, match=r"the output was removed, or has lost its emseg/identity\.json"):
            change()
    lease.check_now()
    assert "was removed" in lease.loss
    assert shelf.records.names() == before


def test_a_refused_run_takes_the_identity_that_it_gave_away_again(shelf: Shelf) -> None:
    shelf.take().withdraw()
    assert shelf.records.names() == []
    with shelf.take().held():
        before = identity(shelf)
    shelf.take().withdraw()
    assert shelf.records.names() == ["identity.json", name(1)]
    assert identity(shelf) == before


# -- an output that is removed, and another one in its place ----------------------------------------------------------


def test_a_removed_output_takes_no_file_and_neither_does_the_next_one(tmp_path: Path) -> None:
    """Every way to change a file on disk is tried."""
    path = empty_output(tmp_path / "o")
    lease = lease_on(path)
    files = lease.token.files
    files.put("kept", b"")
    shutil.rmtree(path)
    changes: list[Callable[[], object]] = [
        lambda: files.put("x/y", b"old"),
        lambda: files.create("x", b"old"),
        lambda: files.remove("zarr.json"),
        lambda: files.remove_all("labels"),
        lambda: files.rename("zarr.json", "old"),
        lambda: files.rename_all("labels", "old"),
        files.tidy,
        lambda: files.writing("x").__enter__(),
        lambda: open_output(path, lease.token).write(
            Box((0, 0, 0), (8, 16, 16)), in_order(np.ones((8, 16, 16), np.uint8), np.ones((2, 8, 16, 16), np.uint8))
        ),
    ]

    def refused() -> None:
        for change in changes[:-1]:
            with pytest.raises(OrphanError, match="the output was removed"):
                change()
        with pytest.raises((OrphanError, OutputError)):  # its own metadata no longer exist
            changes[-1]()

    refused()
    assert not path.exists()
    empty_output(path)
    new = lease_on(path)
    (path / "x").write_bytes(b"new")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    refused()
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    new.token.check()


def test_a_worker_that_comes_late_opens_the_output_that_lies_there_and_leaves_it(tmp_path: Path) -> None:
    """Its token was on the way while another output was created."""
    path = empty_output(tmp_path / "o")
    late = pickle.dumps(lease_on(path).token)
    shutil.rmtree(path)
    token = pickle.loads(late)
    with pytest.raises(OutputError, match="it is no longer there"):  # to it, this looks like an outage
        token.check()
    empty_output(path)
    with pytest.raises(OrphanError, match="the output was removed, or has lost its"):  # before the other's first run
        token.check()
    new = lease_on(path)
    with pytest.raises(OrphanError, match="another output is in its place"):
        token.check()
    new.token.check()


def test_an_output_that_is_moved_takes_its_files_along(tmp_path: Path) -> None:
    path = empty_output(tmp_path / "o")
    files = lease_on(path).token.files
    path.rename(tmp_path / "moved")
    empty_output(path)
    files.put("x", b"old")
    assert (tmp_path / "moved/x").read_bytes() == b"old"
    assert not (path / "x").exists()


def test_a_disk_that_was_away_is_opened_anew_if_the_output_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file handle on a network disk stays invalid after the disk returns."""
    path = empty_output(tmp_path / "o")
    lease = lease_on(path)
    files, read = lease.token.files, HeldFiles.read
    assert isinstance(files, LocalFiles)
    stale = str(files.root)

    def stale_read(self: HeldFiles, name: str) -> bytes | None:
        if self is files and str(Path(stale).readlink()) == str(path):
            raise OSError(errno.ESTALE, "stale file handle")
        return read(self, name)

    monkeypatch.setattr(HeldFiles, "read", stale_read)
    path.rename(tmp_path / "away")
    (tmp_path / "away").rename(path)
    lease.token.check()
    monkeypatch.undo()
    files.put("x", b"mine")
    assert (path / "x").read_bytes() == b"mine"


# -- leases that are lost, or from the future --------------------------------------------------------------------------


def test_a_lost_lease_does_not_lock_an_output_for_ever(shelf: Shelf) -> None:
    """The age of the run's newest file counts."""
    for run in (1, 2):
        shelf.hold(run, ELSEWHERE)
    shelf.records.put("run-0002/00000.jsonl", b"{}")
    shelf.records.remove(name(2))
    assert lease_state(shelf.records).run == 2
    with pytest.raises(OutputError, match=r"in use by run 2, which is just starting, last seen 0 s ago: .* try again in 60 s"):
        shelf.take()
    shelf.pass_time(STALE_SECONDS + 1)
    assert lease_state(shelf.records).state == "dead"
    assert shelf.take().run == 3


def test_a_run_folder_with_nothing_in_it_counts_by_its_own_age(tmp_path: Path) -> None:
    (tmp_path / "emseg/run-0001").mkdir(parents=True)
    records = Records(LocalFiles(tmp_path))
    assert lease_state(records).state == "held"
    os.utime(tmp_path / "emseg/run-0001", (0, time.time() - STALE_SECONDS - 1))
    assert lease_state(records).state == "dead"
    assert lease_on(tmp_path).run == 2


@pytest.mark.parametrize("begins", [False, True])
def test_whoever_was_killed_before_it_had_its_lease_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    """Its folder is empty. A live process writes its lease within two heartbeats."""
    (tmp_path / "emseg/run-0001").mkdir(parents=True)
    shelf, now, looks = Shelf(lambda: HeldFiles(tmp_path), lambda _: None), iter(range(10**6)), list[float]()

    def look(seconds: float) -> None:
        looks.append(seconds)
        if begins and len(looks) == 3:
            shelf.hold(1, ELSEWHERE)

    monkeypatch.setattr(leases, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(leases, "sleep", look)
    if begins:
        with pytest.raises(OutputError, match="in use by run 1, process 4711"):
            shelf.take()
        return
    assert shelf.take().run == 2
    assert 3 < len(looks) < STALE_SECONDS


def test_a_heart_puts_a_lost_lease_back(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    with shelf.take().held():
        shelf.records.remove(name(1))
        wait_for(lambda: shelf.records.get(name(1)) is not None)
        assert lease_state(shelf.records).state == "held"


@pytest.mark.parametrize("beats", [False, True])
def test_a_heartbeat_from_the_future_is_judged_by_whether_it_moves(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    shelf.hold(1, ELSEWHERE)
    shelf.pass_time(-1e6)
    assert lease_state(shelf.records).from_the_future
    looks = 0

    def look(_: float) -> None:
        nonlocal looks
        looks += 1
        if beats and looks == 3:
            shelf.hold(1, ELSEWHERE)

    now = iter(range(10**6))
    monkeypatch.setattr(leases, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(leases, "sleep", look)
    if beats:
        with pytest.raises(OutputError, match="in use by run 1, process 4711 on node17, last seen 0 s ago"):
            shelf.take()
        assert looks == 3
    else:
        assert shelf.take().run == 2
        assert looks >= STALE_SECONDS - 1


def test_of_six_that_race_for_a_new_place_one_wins_and_never_none(tmp_path: Path) -> None:
    """When the losers clean up, they remove nothing from the winner."""
    for turn in range(20):
        path, together, won = tmp_path / f"{turn}", threading.Barrier(6), list[int]()

        def race(path: Path = path, together: threading.Barrier = together, won: list[int] = won) -> None:
            together.wait()
            with suppress(OutputError), atomic_folder(path) as work:
                work.mkdir()
                won.append(1)

        racers = [threading.Thread(target=race) for _ in range(6)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert won == [1]
        assert path.is_dir()
        assert not list(tmp_path.glob(".emseg-*"))


@pytest.mark.parametrize(
    "odd",
    [
        {"process": "4711"},
        {"process": 10**400},
        {"host": 7},
        {"restarts": None},
        {"machine": ["a"]},
        {"born": {}},
        {"job": 1.5},
        {"more": 1},
    ],
)
def test_an_odd_holder_is_none(shelf: Shelf, odd: dict[str, Any]) -> None:
    shelf.records.put(name(1), json.dumps({"holder": {**asdict(ELSEWHERE), **odd}, "beats": 1, "released": False}).encode())
    now = lease_state(shelf.records)
    assert now.state == "held"
    assert now.holder is None
