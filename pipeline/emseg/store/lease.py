"""One run per output: a lease with a heartbeat, whose number is the token that workers check before they write.

    OUT/emseg/run-0001/lease.json     taken by whoever creates it first; its holder puts it anew every few seconds
    OUT/emseg/run-0002/lease.json     taken later: from now on run 1 is an orphan, and must not write any more

Creating a document that must not exist is all the locking there is, so it holds on shared file systems and on object
stores. A lease is free when its holder gave it back, when its holder's process is seen to be dead, or when it has not
been put anew for `STALE` seconds by the clock of the store; clocks of hosts are never compared.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from emseg.errors import OrphanError, OutputError
from emseg.store.place import Place
from emseg.store.records import Records

BEAT = 5.0
"""Seconds between two heartbeats."""
STALE = 60.0
"""Seconds without a heartbeat after which a holder on another host counts as dead."""

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
    """Those of the output."""
    run: int

    def check(self) -> None:
        """Nothing, if no later run has taken over.

        Raises
        ------
        OrphanError
            If one has.
        OutputError
            If the store refuses to tell.
        """
        if self.records.has(_lease(self.run + 1)):
            raise OrphanError(
                f"run {self.run} may not write any more, as run {self.run + 1} has taken over the output: stop it"
            )


class Lease:
    """The sole right to run on an output, which beats from `take_lease` until it is released, withdrawn or lost."""

    def __init__(self, records: Records, run: int, holder: Holder) -> None:
        self.run = run
        """Number of the run: each later lease has a higher one."""
        self._records = records
        self._holder = holder
        self._beats = 0
        self._end = threading.Event()
        self.lost = False
        """Whether a later run was seen to have taken over."""
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
        if newest_run(self._records) > self.run:  # its number must stay taken, or an orphan might write again
            self._put(released=True)
        else:
            self._records.remove(_lease(self.run))

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
        self.lost = self.lost or self._records.get(_lease(self.run + 1)) is not None
        if not self.lost:
            self._records.put(_lease(self.run), _document(self._holder, self._beats, released=released))


@dataclass(frozen=True, slots=True)
class Tenure:
    """What is known of the newest lease of an output."""

    run: int
    """0 if there never was one."""
    state: State
    holder: Holder | None
    age: float
    """Seconds since its last heartbeat."""


def tenure(records: Records) -> Tenure:
    """Who holds an output, or held it last."""
    run = newest_run(records)
    if run == 0:
        return Tenure(0, "released", None, 0.0)
    document, age = records.get(_lease(run)), records.age(_lease(run)) or 0.0
    holder, released = _parse(document or b"")
    if released:
        return Tenure(run, "released", holder, age)
    dead = age > STALE if holder is None else holder.dead(age)
    return Tenure(run, "dead" if dead else "held", holder, age)


def take_lease(records: Records, output: Place) -> Lease:
    """A lease on `output`, which has these records.

    Raises
    ------
    OutputError
        If another run that lives holds it, or may live.
    """
    now, me = tenure(records), Holder.here()
    if now.state == "held":
        wait = "" if now.holder and now.holder.near else f"; if that host is dead, try again in {STALE:.0f} s"
        raise OutputError(
            f"{output} is in use by run {now.run}, {now.holder or 'which is just starting'}, seen {now.age:.0f} s ago: "
            f"wait for it or stop it{wait}"
        )
    if not records.create(_lease(now.run + 1), _document(me, 0, released=False, taking=secrets.token_hex(8))):
        raise OutputError(f"{output} was taken by another run at this very moment: wait for it or stop it")
    return Lease(records, now.run + 1, me)


def newest_run(records: Records) -> int:
    """Number of the newest run; 0 if there was none."""
    found = (re.match(r"run-(\d+)/", name) for name in records.names("run-"))
    return max((int(match[1]) for match in found if match), default=0)


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
        return Holder(**read["holder"]), bool(read["released"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, False


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
