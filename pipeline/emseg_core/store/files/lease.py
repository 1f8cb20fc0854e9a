"""Leases: one run per output, kept alive by a heartbeat, with a number that workers check before they write.

    OUT/emseg/run-0001/lease.json     held by the process that creates it first, which rewrites it every few seconds
    OUT/emseg/run-0002/lease.json     taken later: from now on run 1 is an orphan, and must not write any more

The only lock is the creation of a document that must not exist, so it works on shared file systems and on object stores.
The process that creates one becomes the owner of the output, by writing the identity file (see
`emseg_core.store.files.ownership`); each change of the output checks that file first. A lease is free if its holder has
released it, if its holder's process is seen to be dead, or if its last heartbeat is more than `STALE_SECONDS` old by the clock
of the store. Clocks of different hosts are never compared.
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

from emseg_core.errors import OrphanError, OutputError
from emseg_core.store.files.atomic_write import translate_oserror
from emseg_core.store.files.files import Files
from emseg_core.store.files.ownership import IDENTITY, identity_document, output_identity
from emseg_core.store.files.place import Place
from emseg_core.store.files.records import Records

HEARTBEAT_SECONDS = 5.0
"""Seconds between two heartbeats."""
STALE_SECONDS = 60.0
"""Seconds without a heartbeat after which a holder on another host counts as dead."""
POLL_SECONDS = 1.0
"""Seconds between two readings of a heartbeat while waiting for it to change."""
IDENTITY_RECORD = PurePosixPath(IDENTITY).name
"""Name of the identity file among the records."""

State = Literal["held", "released", "dead"]
"""Whether a lease is held by a live process, was released, or is held by a dead process."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lease."""

    host: str
    """Name of the host."""
    machine: str
    """Boot of the host and process namespace, within which a process id is unique."""
    process: int
    """Process id."""
    born: str
    """Start time of the process, as its id may be reused after its end."""
    job: str = ""
    """Id of its SLURM job; empty outside of one."""
    restarts: int = 0
    """How often that job has been requeued: it keeps its id, and its earlier processes are gone."""

    @classmethod
    def here(cls) -> Holder:
        """Return the description of the current process."""
        job, restarts = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "")
        restarted = int(restarts) if restarts.isdecimal() else 0
        return cls(socket.gethostname(), _machine(), os.getpid(), _born(os.getpid()), job, restarted)

    @property
    def on_this_machine(self) -> bool:
        """Whether the holder runs where this process could see it."""
        return self.machine != "" and self.machine == _machine()

    def dead(self, age: float) -> bool:
        """Return whether the process has ended.

        Parameters
        ----------
        age
            Seconds since its last heartbeat, which decide for a process on another machine.

        Returns
        -------
        bool
            Whether it is gone from this machine, its SLURM job was requeued, or its heartbeat is stale.
        """
        me = Holder.here()
        if self.job and self.job == me.job and self.restarts < me.restarts:
            return True
        return _born(self.process) != self.born if self.on_this_machine else age > STALE_SECONDS

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}" + (f" in job {self.job}" if self.job else "")


@dataclass(frozen=True, slots=True)
class Token:
    """The right of one run to write, which is small and sent to each worker."""

    records: Records
    """Records of the output. Its files belong to the run, and each change checks that they still do."""
    run: int
    """Number of the run."""

    @property
    def files(self) -> Files:
        """Files of the output."""
        return self.records.files

    def check(self) -> None:
        """Check that the output still belongs to the run.

        Raises
        ------
        OrphanError
            If it does not.
        OutputError
            If the store refuses to read who owns it.
        """
        with translate_oserror(self.files.place):
            self.files.check_owner()


class Lease:
    """The exclusive right to run on an output, with a heartbeat from `take_lease` until it is released, withdrawn or lost."""

    def __init__(self, records: Records, run: int, holder: Holder, taking: str, before: bytes | None) -> None:
        self.token = Token(records, run)
        """The right to write, for workers."""
        self.run = run
        """Number of the run: each later lease has a higher one."""
        self.loss = ""
        """Why the run may not write any more, once that has been noticed; empty until then."""
        self._records = records
        self._holder = holder
        self.taking = taking
        """Random text that distinguishes this attempt to take a lease from all others."""
        self._before = before
        self._beats = 0
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="emseg-lease", daemon=True)
        self._heart.start()

    @contextmanager
    def held(self) -> Iterator[Lease]:
        """Release the lease at the end of the ``with``.

        Yields
        ------
        Lease
            This lease.
        """
        try:
            yield self
        finally:
            self._stop()
            with suppress(OutputError):  # the next run will see a dead process instead
                self._put(released=True)

    def withdraw(self) -> None:
        """Undo the taking of the lease, for a run that was refused before it wrote anything.

        Raises
        ------
        OutputError
            If the store refuses.
        """
        self._stop()
        try:
            if newest_run(self._records) > self.run:  # its number must stay in use, or an orphan might write again
                self._put(released=True)
                return
            self._records.remove(_lease(self.run))
            if self._before is None:
                self._records.remove(IDENTITY_RECORD)
            else:
                self._records.put(IDENTITY_RECORD, self._before)
        except OrphanError:  # the output belongs to another run by now
            return

    def check_now(self) -> None:
        """Check at once, not only at the next heartbeat, whether the output still belongs to the run."""
        with suppress(OutputError):
            self._check()

    def _stop(self) -> None:
        """End the heartbeat."""
        self._end.set()
        self._heart.join()

    def _beat(self) -> None:
        """Write a heartbeat every few seconds until the end; runs in a thread."""
        while not self._end.wait(HEARTBEAT_SECONDS):
            with suppress(OutputError):  # the store is unavailable for a while; voxels are safe without the lease
                self._put(released=False)

    def _put(self, *, released: bool) -> None:
        """Rewrite the lease, unless it is lost."""
        self._beats += 1
        self._check()
        if not self.loss:
            with self._noticing_loss():
                document = _document(self._holder, self._beats, released=released, taking=self.taking)
                self._records.put(_lease(self.run), document)

    def _check(self) -> None:
        """Keep in `loss` why the output no longer belongs to the run, if so."""
        with self._noticing_loss():
            self.token.check()
            if self._records.has(_lease(self.run + 1)):
                raise OrphanError(f"run {self.run} may not write any more, as run {self.run + 1} has taken over the output")

    @contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        """Keep in `loss` why the output is lost, if that is noticed within the ``with``."""
        try:
            yield
        except OrphanError as error:
            self.loss = self.loss or str(error).removesuffix(": stop it")


@dataclass(frozen=True, slots=True)
class LeaseState:
    """The state of the newest lease of an output."""

    run: int
    """Number of the run; 0 if there was none."""
    state: State
    """Whether it is held, and by a live process."""
    holder: Holder | None
    """Its holder; None if it cannot be read."""
    age: float
    """Seconds since its last heartbeat; negative if the clock of the store was put back since then."""

    @property
    def from_the_future(self) -> bool:
        """Whether the heartbeat is later than now, so only watching it can tell whether the holder is alive."""
        return self.state == "held" and self.age < -HEARTBEAT_SECONDS and not (self.holder and self.holder.on_this_machine)


def lease_state(records: Records) -> LeaseState:
    """Return who holds an output, or held it last.

    Parameters
    ----------
    records
        Records of the output.

    Returns
    -------
    LeaseState
        State of the newest lease.

    Raises
    ------
    OutputError
        If the store refuses.
    """
    run = newest_run(records)
    if run == 0:
        return LeaseState(0, "released", None, 0.0)
    document = records.get(_lease(run))
    age = _age_of_run(records, run) if document is None else records.age(_lease(run)) or 0.0
    holder, released = _parse(document or b"")
    if released:
        return LeaseState(run, "released", holder, age)
    dead = age > STALE_SECONDS if holder is None else holder.dead(age)
    return LeaseState(run, "dead" if dead else "held", holder, age)


def take_lease(records: Records, output: Place, notify: Callable[[str], None] = lambda _: None) -> Lease:
    """Take the lease of an output, whose files belong to this run alone from then on.

    Parameters
    ----------
    records
        Records of the output.
    output
        The output, for messages.
    notify
        Called with a message if taking the lease takes long.

    Returns
    -------
    Lease
        The lease, whose heartbeat has started.

    Raises
    ------
    OutputError
        If another run holds it that is, or may be, alive.
    """
    now, me = lease_state(records), Holder.here()
    if now.from_the_future:
        notify(
            f"{output} has a heartbeat from the future, as a clock was put back: "
            f"watching for {STALE_SECONDS:.0f} s whether it changes"
        )
        now = _watched(records, now, STALE_SECONDS)
    elif now.state == "held" and now.holder is None and not records.names(f"run-{now.run:04d}/"):
        # its process was killed before it wrote the lease, or the lease was lost: then a heartbeat writes it again
        notify(f"{output} has an empty record of run {now.run}: watching for {2 * HEARTBEAT_SECONDS:.0f} s whether it starts")
        now = _watched(records, now, 2 * HEARTBEAT_SECONDS)
    if now.state == "held":
        here = now.holder and now.holder.on_this_machine
        wait = "" if here else f"; if that host is dead, try again in {STALE_SECONDS:.0f} s"
        who, seen = now.holder or "which is just starting", max(0.0, now.age)
        raise OutputError(
            f"{output} is in use by run {now.run}, {who}, last seen {seen:.0f} s ago: wait for it or stop it{wait}"
        )
    run, taking = now.run + 1, secrets.token_hex(8)
    taken = OutputError(f"{output} was taken by another run at the same moment: wait for it or stop it")
    if not records.create(_lease(run), _document(me, 0, released=False, taking=taking)):
        raise taken
    try:
        before = records.get(IDENTITY_RECORD)
        known = output_identity(before)
        if not known or now.run == 0:  # a new output, an older one, or one restored without the records of its runs
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
    """Return the number of the newest run; 0 if there was none.

    Parameters
    ----------
    records
        Records of the output.

    Returns
    -------
    int
        Number of the run.

    Raises
    ------
    OutputError
        If the store refuses.
    """
    return max(records.runs(), default=0)


def _age_of_run(records: Records, run: int) -> float:
    """Return the seconds since a run whose lease is lost last wrote anything, or since the lease was lost."""
    ages = [records.age(name) for name in records.names(f"run-{run:04d}/")] or [records.age(f"run-{run:04d}")]
    return min((age for age in ages if age is not None), default=0.0)


def _watched(records: Records, before: LeaseState, seconds: float) -> LeaseState:
    """Watch a lease until it changes; if its heartbeat does not move for so many seconds, its holder is dead."""
    end, seen = monotonic() + seconds, records.modified(_lease(before.run))
    while monotonic() < end:
        sleep(POLL_SECONDS)
        now = lease_state(records)
        if now.run != before.run or now.state != "held" or records.modified(_lease(now.run)) != seen:
            return now
    return replace(before, state="dead")


def _lease(run: int) -> str:
    """Return the name of a run's lease among the records."""
    return f"run-{run:04d}/lease.json"


def _document(holder: Holder, beats: int, *, released: bool, taking: str = "") -> bytes:
    """Return the content of a lease; `taking` distinguishes one attempt to take it from all others."""
    document = {"holder": asdict(holder), "beats": beats, "released": released, **({"taking": taking} if taking else {})}
    return (json.dumps(document, indent=2) + "\n").encode()


def _parse(document: bytes) -> tuple[Holder | None, bool]:
    """Parse a lease: its holder, None if the document is being written or damaged, and whether it was released."""
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
    """Identify the boot of this host and the process namespace; empty if the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(process: int) -> str:
    """Return the start time of a process in ticks since boot; empty if there is no such process."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
