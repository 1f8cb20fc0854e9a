"""Who gets which block, and what follows when one fails, hangs or kills its worker. No Dask here, no clock, no waiting.

An executor tells what happens (`join`, `leave`, `ended`) and asks what to do (`assign`, `overdue`). Every time is given
by the caller, in seconds of any one clock.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count

from emseg.grid.blocks import Block
from emseg.outcome import Outcome
from emseg_workflows.events import BlockEnded, BlockRetried

AHEAD = 2
"""Blocks assigned for each thread of a worker: one in hand and one to come."""
BACK_OFF = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds before each further try of a block whose store failed, and before a worker gets a block after its store failed."""
OUTAGE = 600.0
"""Seconds in which stores fail and no block is done, anywhere, after which a run ends."""
SUSPECT = 3
"""Deaths of workers that a block may have been running in before it is tried alone."""
LONE = 3
"""Deaths of workers on which it ran alone before it is given up."""
RECENT = 100
"""Blocks whose longest tells how long another may take."""
HANGS = 2
"""Times that a block may run out of time."""
AS_LONG = 0.9
"""Part of the longest time that any worker had, with which another has about as much."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient a run is."""

    block_timeout: float = 1800.0
    """Seconds that a block may run before its worker is started anew."""
    max_failures: int | None = None
    """Failed blocks after which no more are handed out; None for any number."""
    more_to_come: bool = False
    """Whether workers stay that have nothing to do, as they are needed right after."""


@dataclass(slots=True)
class Attempt:
    """One block on one worker."""

    number: int
    """Counts all attempts of a run."""
    block: Block
    worker: str
    alone: bool
    """Whether no other block is on the worker meanwhile."""
    since: float | None = None
    """When it can have begun to run: there was a free thread."""


@dataclass(slots=True)
class Trouble:
    """What a block has been through; most blocks have no such thing."""

    retries: int = 0
    """Times that its store failed it, while it served others."""
    served: int = -1
    """Blocks that were done when its store failed it last."""
    deaths: int = 0
    lone_deaths: int = 0
    hangs: int = 0


@dataclass(slots=True)
class Slots:
    """A worker, with its attempts in the order in which it runs them."""

    threads: int
    attempts: list[Attempt] = field(default_factory=list)
    reserved: bool = False
    """Kept free for a suspect block."""
    outages: int = 0
    """Times that its store failed without a block done in between; until one is, it gets one block at a time."""
    resume: float = 0.0
    """When it gets a block again."""
    end: float | None = None
    """When it will be gone, if that is known."""
    fresh: bool = True
    """Whether no block has ended on it yet."""
    longest: bool = False
    """Whether no other had more time when it came."""
    strand: Sequence[Block] = ()
    """Blocks that it gets before others do, one after another."""

    @property
    def room(self) -> int:
        """Most attempts at once."""
        return 1 if self.outages else AHEAD * self.threads


class Dispatch:
    """Hands out the blocks of one run until each has ended, or the run is stopped.

    Each worker draws from a strand of its own, whose blocks read the same chunks; see `emseg.grid.reading`. Where no strand
    is left, the longest is cut in half, so that all have something to do from the first block to the last.
    """

    def __init__(self, strands: Iterator[Sequence[Block]], policy: Policy) -> None:
        """Strands hold at least one block each."""
        self._strands = strands
        self._next = next(strands, None)
        self._dropped: list[Sequence[Block]] = []
        self.policy = policy
        self._again: list[tuple[float, int, Block]] = []
        self._suspects: deque[Block] = deque()
        self._workers: dict[str, Slots] = {}
        self._troubles: dict[int, Trouble] = {}
        self._numbers = count()
        self._failed = self._served = 0
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._outage_began: float | None = None
        self._most_time = 0.0
        self.stopped = False
        """Whether no more blocks are handed out."""
        self.outage = ""
        """Why the run ends before its time: a store that does not come back; empty if there is none."""

    @property
    def finished(self) -> bool:
        """Whether nothing is in hand, and nothing will be."""
        nothing_left = not self._fresh and not self._again and not self._suspects
        return not self.in_hand and (self.stopped or nothing_left)

    @property
    def in_hand(self) -> list[Attempt]:
        """Attempts that have not ended."""
        return [attempt for slots in self._workers.values() for attempt in slots.attempts]

    @property
    def workers(self) -> set[str]:
        """Workers that have joined and not left."""
        return set(self._workers)

    @property
    def idle(self) -> set[str]:
        """Workers that have nothing in hand."""
        return {worker for worker, slots in self._workers.items() if not slots.attempts}

    @property
    def useful(self) -> int | None:
        """How many workers have something to do; None for any number."""
        if self._fresh:
            return None
        return len(self._workers) - len(self.idle) + len(self._again) + len(self._suspects)

    @property
    def _fresh(self) -> bool:
        """Whether there is a block that was never handed out."""
        return self._next is not None or bool(self._dropped) or any(slots.strand for slots in self._workers.values())

    def stop(self) -> None:
        """Hand out no more blocks."""
        self.stopped = True

    def join(self, worker: str, threads: int, now: float, end: float | None = None) -> None:
        """A worker is there, and gets blocks from now on; such as it can finish before its end, if that is known.

        Where a block takes longer than any worker has, each gets one in spite of that: none that come later have more time.
        """
        time = 0.0 if end is None else end - now
        self._most_time = max(self._most_time, time)
        self._workers[worker] = Slots(max(1, threads), end=end, longest=time >= AS_LONG * self._most_time)

    def spent(self, now: float) -> set[str]:
        """Workers that have nothing in hand and too little time left for another block."""
        return {worker for worker in self.idle if not self._ends_in_time(self._workers[worker], now)}

    def hurried(self, worker: str, now: float) -> float | None:
        """Seconds that blocks took of late, if that is longer than a worker has which just came, and than any has."""
        slots, seconds = self._workers[worker], max(self._seconds, default=0.0)
        return seconds if slots.longest and slots.end is not None and now + seconds >= slots.end else None

    def assign(self, now: float) -> list[Attempt]:
        """New attempts, to be started by the caller."""
        if self.stopped:
            return []
        if self._suspects and self._workers and not any(slots.reserved for slots in self._workers.values()):
            min(self._workers.values(), key=lambda slots: len(slots.attempts)).reserved = True
        made = []
        for worker, slots in self._workers.items():
            if slots.reserved and not slots.attempts:
                if self._suspects and self._has_room(slots, now):
                    made.append(self._start(worker, slots, self._suspects.popleft(), alone=True, now=now))
                else:
                    slots.reserved = False
        while more := self._deal(now):
            made += more
        return made

    def _deal(self, now: float) -> list[Attempt]:
        """A block for each worker that has room, the emptiest first: else one would wait for another's second block."""
        free = [(worker, slots) for worker, slots in self._workers.items() if not slots.reserved and self._has_room(slots, now)]
        free.sort(key=lambda pair: len(pair[1].attempts) / pair[1].threads)
        blocks = ((worker, slots, self._take(slots, now)) for worker, slots in free)
        return [self._start(worker, slots, block, alone=False, now=now) for worker, slots, block in blocks if block is not None]

    def ended(self, attempt: Attempt, outcome: Outcome, now: float) -> tuple[BlockEnded | BlockRetried, bool]:
        """What an outcome means, and whether the worker must be started anew."""
        self._remove(attempt, now)
        if outcome.fault == "device":
            return self._died(attempt, outcome, now), True
        if outcome.fault == "store" and not self.stopped:
            return self._store_failed(attempt, outcome, now), False
        if outcome.status == "done":
            self._served += 1
            self._seconds.append(sum(asdict(outcome.seconds).values()))
            self._outage_began = None
            if attempt.worker in self._workers:
                self._workers[attempt.worker].outages = 0
                self._workers[attempt.worker].fresh = False
        return self._settle(outcome), False

    def leave(self, worker: str, now: float, *, blame: bool = True) -> list[BlockEnded | BlockRetried]:
        """A worker has died; its blocks are handed out again. With `blame`, those that were running may be the cause."""
        slots = self._workers.pop(worker, None)
        if slots is None:
            return []
        if slots.strand:
            self._dropped.append(slots.strand)
        events: list[BlockEnded | BlockRetried] = []
        for attempt in slots.attempts:
            lost = Outcome(attempt.block.index, "failed", attempt.block.write.voxels, cause=f"its worker {worker} died")
            if blame and attempt.since is not None:
                events.append(self._died(attempt, lost, now))
            else:
                heapq.heappush(self._again, (now, attempt.block.index, attempt.block))
        return events

    def overdue(self, now: float) -> set[str]:
        """Workers with a block that runs too long: start them anew, and tell `hung`."""
        limit = now - self.policy.block_timeout
        return {attempt.worker for attempt in self.in_hand if attempt.since is not None and attempt.since < limit}

    def hung(self, worker: str, now: float) -> list[BlockEnded | BlockRetried]:
        """A worker was started anew, or given up, as a block ran too long on it; the others are handed out again."""
        limit, seconds = now - self.policy.block_timeout, self.policy.block_timeout
        events: list[BlockEnded | BlockRetried] = []
        for attempt in [a for a in self.in_hand if a.worker == worker and a.since is not None and a.since < limit]:
            self._workers[worker].attempts.remove(attempt)
            trouble = self._troubles.setdefault(attempt.block.index, Trouble())
            trouble.hangs += 1
            cause = f"it ran longer than {seconds:.0f} s, {trouble.hangs} times: raise --block-timeout if it is only slow"
            if trouble.hangs >= HANGS:
                outcome = Outcome(attempt.block.index, "failed", attempt.block.write.voxels, cause=cause, fault="block")
                events.append(self._settle(outcome))
            else:
                heapq.heappush(self._again, (now, attempt.block.index, attempt.block))
                events.append(BlockRetried(attempt.block.index, cause, 0.0))
        return events + self.leave(worker, now, blame=False)

    def _has_room(self, slots: Slots, now: float) -> bool:
        return now >= slots.resume and len(slots.attempts) < slots.room and self._ends_in_time(slots, now)

    def _ends_in_time(self, slots: Slots, now: float) -> bool:
        """Whether one block more would end before its worker does, if it takes as long as the longest of late."""
        if slots.end is None or (slots.fresh and slots.longest and not slots.attempts):
            return True
        rounds = len(slots.attempts) // slots.threads + 1
        return now + rounds * max(self._seconds, default=0.0) < slots.end

    def _store_failed(self, attempt: Attempt, outcome: Outcome, now: float) -> BlockEnded | BlockRetried:
        """A store failed: the fault of the block if others are served meanwhile, an outage at its worker or everywhere if not.

        A worker whose store is away fails fast; without a pause it would fail every block of the volume.
        """
        slots = self._workers.get(attempt.worker)
        if slots is not None and now >= slots.resume:
            slots.resume = now + BACK_OFF[min(slots.outages, len(BACK_OFF) - 1)]
            slots.outages += 1
        self._outage_began = now if self._outage_began is None else self._outage_began
        if now > self._outage_began + OUTAGE:
            self.stop()
            self.outage = f"for {OUTAGE:.0f} s no block could be read or written ({outcome.cause})"
            return self._settle(outcome)
        trouble = self._troubles.setdefault(attempt.block.index, Trouble())
        if trouble.served < self._served:
            trouble.retries += 1
            trouble.served = self._served
        if trouble.retries > len(BACK_OFF):
            return self._settle(outcome)
        delay = BACK_OFF[trouble.retries - 1]
        heapq.heappush(self._again, (now + delay, attempt.block.index, attempt.block))
        return BlockRetried(outcome.block, outcome.cause or "", delay)

    def _take(self, slots: Slots, now: float) -> Block | None:
        """The next block for a worker: one that is due again, else a fresh one."""
        if self._again and self._again[0][0] <= now:
            return heapq.heappop(self._again)[2]
        slots.strand = slots.strand or self._strand()
        block, slots.strand = next(iter(slots.strand), None), slots.strand[1:]
        return block

    def _strand(self) -> Sequence[Block]:
        """A strand for a worker that has none: a whole one, else the far half of the longest; empty if nothing is left."""
        if self._dropped:
            return self._dropped.pop()
        if self._next is not None:
            strand, self._next = self._next, next(self._strands, None)
            return strand
        longest = max(self._workers.values(), key=lambda slots: len(slots.strand))
        half = len(longest.strand) // 2
        longest.strand, strand = longest.strand[:half], longest.strand[half:]
        return strand

    def _start(self, worker: str, slots: Slots, block: Block, *, alone: bool, now: float) -> Attempt:
        attempt = Attempt(next(self._numbers), block, worker, alone)
        slots.attempts.append(attempt)
        self._mark(slots, now)
        return attempt

    def _remove(self, attempt: Attempt, now: float) -> None:
        slots = self._workers.get(attempt.worker)
        if slots is not None and attempt in slots.attempts:
            slots.attempts.remove(attempt)
            slots.reserved = slots.reserved and (not attempt.alone or bool(self._suspects))
            self._mark(slots, now)

    def _mark(self, slots: Slots, now: float) -> None:
        """A worker runs its attempts in order, as many at once as it has threads."""
        for attempt in slots.attempts[: slots.threads]:
            if attempt.since is None:
                attempt.since = now

    def _died(self, attempt: Attempt, lost: Outcome, now: float) -> BlockEnded | BlockRetried:
        """A worker died, or its device broke, while a block was running: in vain, suspect, or chance."""
        trouble = self._troubles.setdefault(attempt.block.index, Trouble())
        trouble.deaths += 1
        trouble.lone_deaths += attempt.alone
        if trouble.lone_deaths >= LONE:
            cause = (
                f"{lost.cause}; so it went {trouble.deaths} times, {trouble.lone_deaths} of them with no other block beside it"
            )
            return self._settle(replace(lost, cause=cause))
        if trouble.deaths >= SUSPECT:
            self._suspects.append(attempt.block)
        else:
            heapq.heappush(self._again, (now, attempt.block.index, attempt.block))
        return BlockRetried(attempt.block.index, lost.cause or "", 0.0)

    def _settle(self, outcome: Outcome) -> BlockEnded:
        self._troubles.pop(outcome.block, None)
        self._failed += outcome.status == "failed"
        if self.policy.max_failures is not None and self._failed >= self.policy.max_failures:
            self.stop()
        return BlockEnded(outcome)
