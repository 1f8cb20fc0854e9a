"""One run per output: a lease with a heartbeat, whose number is the token that workers check before they write.

    OUT/emseg/run-0001/lease.json     taken by whoever creates it first; its holder puts it anew every few seconds
    OUT/emseg/run-0002/lease.json     taken later: from now on run 1 is an orphan, and must not write any more

Creating a document that must not exist is all the locking there is, so it holds on shared file systems and on object
stores. Who has created one makes the output his own, by the file that names its owner (see `emseg.store.ownership`); each
change of the output looks at that first. A lease is free when its holder gave it back, when its holder's process is seen to
be dead, or when it has not been put anew for `STALE` seconds by the clock of the store; clocks of hosts are never compared.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from time import monotonic, sleep
from typing import Any, Literal

from emseg.errors import OrphanError, OutputError
from emseg.store.files import Files
from emseg.store.ownership import IDENTITY, identity_document, output_named
from emseg.store.place import Place
from emseg.store.records import Records
from emseg.store.staging import output_error

BEAT = 5.0
"""Seconds between two heartbeats."""
STALE = 60.0
"""Seconds without a heartbeat after which a holder on another host counts as dead."""

LOOK = 1.0
"""Seconds between two looks at a heartbeat that only a second look can judge."""
IDENTITY_RECORD = PurePosixPath(IDENTITY).name
"""What the file that names the owner is called among the records."""

State = Literal["held", "released", "dead"]


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lease."""

    host: str
    machine: str
    """Boot of the host and process namespace, within which a process number means something."""
    process: int
    born: str
    """When the process began: its number may be used again after its end."""
    job: str = ""
    """Number of its SLURM job, if it is in one."""
    restarts: int = 0
    """How often that job had been queued again: it keeps its number, and its former self is gone."""

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        job, restarts = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "")
        restarted = int(restarts) if restarts.isdecimal() else 0
        return cls(socket.gethostname(), _machine(), os.getpid(), _born(os.getpid()), job, restarted)

    @property
    def near(self) -> bool:
        """Whether this process would see that one."""
        return self.machine != "" and self.machine == _machine()

    def dead(self, age: float) -> bool:
        """Whether the process has ended: seen, told by SLURM, or concluded from the seconds since its last heartbeat."""
        me = Holder.here()
        if self.job and self.job == me.job and self.restarts < me.restarts:
            return True
        return _born(self.process) != self.born if self.near else age > STALE

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}" + (f" in job {self.job}" if self.job else "")


@dataclass(frozen=True, slots=True)
class Token:
    """The right of one run to write; small, travels to each worker."""

    records: Records
    """Those of the output, whose files belong to the run: each change of them asks whether they still do."""
    run: int

    @property
    def files(self) -> Files:
        """Those of the output."""
        return self.records.files

    def check(self) -> None:
        """Nothing, if the output still belongs to the run.

        Raises
        ------
        OrphanError
            If it does not.
        OutputError
            If the store refuses to tell.
        """
        try:
            self.files.check_owner()
        except OSError as error:
            raise output_error(self.files.place, error) from error


class Lease:
    """The sole right to run on an output, which beats from `take_lease` until it is released, withdrawn or lost."""

    def __init__(self, records: Records, run: int, holder: Holder, taking: str, before: bytes | None) -> None:
        self.token = Token(records, run)
        """The right to write, of this process."""
        self.run = run
        """Number of the run: each later lease has a higher one."""
        self.loss = ""
        """Why it may not write any more, once that was seen."""
        self._records = records
        self._holder = holder
        self.taking = taking
        """Drawn anew each time: tells one attempt to take a lease from all others."""
        self._before = before
        self._beats = 0
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="emseg-lease", daemon=True)
        self._heart.start()

    @contextmanager
    def held(self) -> Iterator[Lease]:
        """Releases the lease at the end of the ``with``."""
        try:
            yield self
        finally:
            self._stop()
            with suppress(OutputError):  # whoever comes next sees a dead process instead
                self._put(released=True)

    def withdraw(self) -> None:
        """Undo the taking, for a run that was refused before it wrote anything."""
        self._stop()
        try:
            if newest_run(self._records) > self.run:  # its number must stay taken, or an orphan might write again
                self._put(released=True)
                return
            self._records.remove(_lease(self.run))
            if self._before is None:
                self._records.remove(IDENTITY_RECORD)
            else:
                self._records.put(IDENTITY_RECORD, self._before)
        except OrphanError:  # somebody else's by now
            return

    def look(self) -> None:
        """See now, not only at the next heartbeat, whether the output still belongs to the run."""
        with suppress(OutputError):
            self._see()

    def _stop(self) -> None:
        """End the heartbeat."""
        self._end.set()
        self._heart.join()

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            with suppress(OutputError):  # a store that is away for a while; voxels are safe without the lease
                self._put(released=False)

    def _put(self, *, released: bool) -> None:
        self._beats += 1
        self._see()
        if not self.loss:
            with self._noticing():
                document = _document(self._holder, self._beats, released=released, taking=self.taking)
                self._records.put(_lease(self.run), document)

    def _see(self) -> None:
        with self._noticing():
            self.token.check()
            if self._records.has(_lease(self.run + 1)):
                raise OrphanError(f"run {self.run} may not write any more, as run {self.run + 1} has taken over the output")

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Keeps why the output is lost, if that turns out within the ``with``."""
        try:
            yield
        except OrphanError as error:
            self.loss = self.loss or str(error).removesuffix(": stop it")


@dataclass(frozen=True, slots=True)
class Tenure:
    """What is known of the newest lease of an output."""

    run: int
    """0 if there never was one."""
    state: State
    holder: Holder | None
    age: float
    """Seconds since its last heartbeat; below 0 if a clock was put back since then."""

    @property
    def from_the_future(self) -> bool:
        """Whether only a second look can tell if the holder lives: its heartbeat is later than now."""
        return self.state == "held" and self.age < -BEAT and not (self.holder and self.holder.near)


def tenure(records: Records) -> Tenure:
    """Who holds an output, or held it last."""
    run = newest_run(records)
    if run == 0:
        return Tenure(0, "released", None, 0.0)
    document = records.get(_lease(run))
    age = _age_of_run(records, run) if document is None else records.age(_lease(run)) or 0.0
    holder, released = _parse(document or b"")
    if released:
        return Tenure(run, "released", holder, age)
    dead = age > STALE if holder is None else holder.dead(age)
    return Tenure(run, "dead" if dead else "held", holder, age)


def take_lease(records: Records, output: Place, tell: Callable[[str], None] = lambda _: None) -> Lease:
    """A lease on `output`, which has these records; from then on its files belong to the run alone.

    `tell` is told what takes long.

    Raises
    ------
    OutputError
        If another run that lives holds it, or may live.
    """
    now, me = tenure(records), Holder.here()
    if now.from_the_future:
        tell(f"{output} has a heartbeat from the future, as a clock was put back: watching for {STALE:.0f} s whether it moves")
        now = _watched(records, now, STALE)
    elif now.state == "held" and now.holder is None and not records.names(f"run-{now.run:04d}/"):
        # killed before it put its lease into its folder, unless that is lost: then a heart puts it back
        tell(f"{output} has an empty record of run {now.run}: watching for {2 * BEAT:.0f} s whether that begins")
        now = _watched(records, now, 2 * BEAT)
    if now.state == "held":
        wait = "" if now.holder and now.holder.near else f"; if that host is dead, try again in {STALE:.0f} s"
        who, seen = now.holder or "which is just starting", max(0.0, now.age)
        raise OutputError(f"{output} is in use by run {now.run}, {who}, seen {seen:.0f} s ago: wait for it or stop it{wait}")
    run, taking = now.run + 1, secrets.token_hex(8)
    taken = OutputError(f"{output} was taken by another run at this very moment: wait for it or stop it")
    if not records.create(_lease(run), _document(me, 0, released=False, taking=taking)):
        raise taken
    try:
        before = records.get(IDENTITY_RECORD)
        known = output_named(before)
        if not known or now.run == 0:  # a new output, an older one, or one that was restored without the records of its runs
            known = secrets.token_hex(16)
        owner = identity_document(known, run, taking)
        if newest_run(records) > run:
            raise taken
        records.put(IDENTITY_RECORD, owner)
    except OutputError:
        with suppress(OutputError):
            records.remove(_lease(run))
        raise
    records.files.owner = owner
    return Lease(records, run, me, taking, before)


def newest_run(records: Records) -> int:
    """Number of the newest run; 0 if there was none."""
    return max(records.runs(), default=0)


def _age_of_run(records: Records, run: int) -> float:
    """Seconds since a run whose lease is lost has put anything, or since that was lost."""
    ages = [records.age(name) for name in records.names(f"run-{run:04d}/")] or [records.age(f"run-{run:04d}")]
    return min((age for age in ages if age is not None), default=0.0)


def _watched(records: Records, before: Tenure, seconds: float) -> Tenure:
    """What is known after as long a look as it takes: a heartbeat that does not move for so many seconds has ended."""
    end, seen = monotonic() + seconds, records.put_at(_lease(before.run))
    while monotonic() < end:
        sleep(LOOK)
        now = tenure(records)
        if now.run != before.run or now.state != "held" or records.put_at(_lease(now.run)) != seen:
            return now
    return replace(before, state="dead")


def _lease(run: int) -> str:
    return f"run-{run:04d}/lease.json"


def _document(holder: Holder, beats: int, *, released: bool, taking: str = "") -> bytes:
    """A lease; `taking` tells one attempt to take it from all others."""
    document = {"holder": asdict(holder), "beats": beats, "released": released, **({"taking": taking} if taking else {})}
    return (json.dumps(document, indent=2) + "\n").encode()


def _parse(document: bytes) -> tuple[Holder | None, bool]:
    """Holder of a lease and whether it gave it back; no holder if the document is being written, or damaged."""
    try:
        read: Any = json.loads(document)
        holder, released = Holder(**read["holder"]), read["released"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, False
    texts = (holder.host, holder.machine, holder.born, holder.job)
    numbers = (holder.process, holder.restarts)
    if not all(isinstance(text, str) for text in texts) or not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
        return None, False
    return holder, released is True


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(process: int) -> str:
    """Start of a process in ticks since boot; empty if there is no such process."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
