"""Assign blocks to workers, and decide what follows when a block fails, hangs or kills its worker.

There is no Dask here, no clock and no waiting: an executor reports what happens (`Dispatch.join`, `Dispatch.leave`,
`Dispatch.ended`) and asks what to do (`Dispatch.assign`, `Dispatch.overdue`). The caller supplies every time, in seconds
of one clock of its choice.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count

from emseg.runs.events import BlockEnded, BlockRetried
from emseg.runs.tally import quantity
from emseg_core.grid.blocks import Block
from emseg_core.outcome import Outcome

BLOCKS_PER_THREAD = 2
"""Blocks assigned to each thread of a worker: one that runs and one that waits."""
RETRY_DELAYS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Delays before successive retries of a block whose store failed, and before its worker gets another block."""
MAX_OUTAGE_SECONDS = 600.0
"""A run ends when stores have failed for this long and no block was done anywhere."""
DEATHS_BEFORE_ISOLATION = 3
"""Worker deaths that a block may have caused before it is tried on a worker of its own."""
MAX_ISOLATED_DEATHS = 3
"""Worker deaths while no other block ran there after which a block is given up."""
RECENT_BLOCKS = 100
"""Number of recent blocks whose longest predicts how long the next may take."""
MAX_HANGS = 2
"""Timeouts after which a block is given up."""
SIMILAR_LIFETIME = 0.9
"""Fraction of the longest lifetime of any worker from which on another is considered as long-lived."""
RESUME_HINT = "finished blocks are kept; run the same command again to continue"
"""Ends messages about a run that ends early."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits for slow and failing blocks."""

    block_timeout: float = 1800.0
    """Seconds that a block may run before its worker is restarted."""
    max_failures: int | None = None
    """Number of failed blocks after which no more are assigned; None for no limit."""
    keep_idle_workers: bool = False
    """Whether idle workers are kept, because more work follows right after."""


@dataclass(slots=True)
class Attempt:
    """One attempt to run a block on a worker."""

    number: int
    """Number of the attempt; unique within a run."""
    block: Block
    worker: str
    alone: bool
    """Whether the worker runs no other block meanwhile."""
    since: float | None = None
    """Time from which the block can have been running, as a thread was free; None before that."""


@dataclass(slots=True)
class FailureHistory:
    """Failures of one block; kept only for blocks that have failed."""

    retries: int = 0
    """Times that its store failed for this block while other blocks were done."""
    done_before: int = -1
    """Number of blocks done when its store last failed."""
    deaths: int = 0
    isolated_deaths: int = 0
    hangs: int = 0


@dataclass(slots=True)
class WorkerState:
    """A worker and its attempts, in the order in which it runs them."""

    threads: int
    attempts: list[Attempt] = field(default_factory=list)
    reserved: bool = False
    """Whether the worker is kept free for a suspect block."""
    outages: int = 0
    """Store failures since it last completed a block; while there are any, it gets one block at a time."""
    paused_until: float = 0.0
    """Time before which it gets no block."""
    end: float | None = None
    """Time at which the worker will end, if known."""
    unproven: bool = True
    """Whether it has not completed a block yet."""
    longest_lived: bool = False
    """Whether no other worker had notably more time when this one joined."""
    sequence: Sequence[Block] = ()
    """Blocks reserved for this worker, in order."""

    @property
    def room(self) -> int:
        """Maximum number of attempts at once."""
        return 1 if self.outages else BLOCKS_PER_THREAD * self.threads


class Dispatch:
    """Assign the blocks of one run until each has ended or the run is stopped.

    Each worker draws from its own sequence of blocks, which read the same chunks; see `emseg_core.grid.reading`. When no
    sequence is left, the longest is split in half, so that all workers stay busy from the first block to the last.
    """

    def __init__(self, sequences: Iterator[Sequence[Block]], policy: Policy) -> None:
        """Create the dispatch.

        Parameters
        ----------
        sequences
            Sequences of blocks; each holds at least one block.
        policy
            Limits for slow and failing blocks.
        """
        self._sequences = sequences
        self._upcoming = next(sequences, None)
        self._returned: list[Sequence[Block]] = []
        self.policy = policy
        self._retry_queue: list[tuple[float, int, Block]] = []
        self._suspects: deque[Block] = deque()
        self._workers: dict[str, WorkerState] = {}
        self._histories: dict[int, FailureHistory] = {}
        self._attempt_numbers = count()
        self._failed = self._done = 0
        self._recent_seconds: deque[float] = deque(maxlen=RECENT_BLOCKS)
        self._outage_began: float | None = None
        self._longest_lifetime = 0.0
        self.stopped = False
        """Whether no more blocks are assigned."""
        self.outage = ""
        """Why the run ends early: a store that stays unavailable. Empty if there is no such outage."""

    @property
    def finished(self) -> bool:
        """Whether no block is in progress and none will be assigned."""
        nothing_left = not self._any_unassigned and not self._retry_queue and not self._suspects
        return not self.in_progress and (self.stopped or nothing_left)

    @property
    def in_progress(self) -> list[Attempt]:
        """Attempts that have not ended."""
        return [attempt for state in self._workers.values() for attempt in state.attempts]

    @property
    def workers(self) -> set[str]:
        """Workers that have joined and not left."""
        return set(self._workers)

    @property
    def idle(self) -> set[str]:
        """Workers without an attempt."""
        return {worker for worker, state in self._workers.items() if not state.attempts}

    @property
    def useful(self) -> int | None:
        """Number of workers that have something to do; None if any number has."""
        if self._any_unassigned:
            return None
        return len(self._workers) - len(self.idle) + len(self._retry_queue) + len(self._suspects)

    @property
    def _any_unassigned(self) -> bool:
        """Whether there is a block that was never assigned."""
        return self._upcoming is not None or bool(self._returned) or any(state.sequence for state in self._workers.values())

    def stop(self) -> None:
        """Assign no more blocks."""
        self.stopped = True

    def join(self, worker: str, threads: int, now: float, end: float | None = None) -> None:
        """Add a worker, which gets blocks from now on: only such as it can finish before its `end`, if that is known.

        If a block takes longer than any worker lives, each worker still gets one: later workers will not have more time.

        Parameters
        ----------
        worker
            Address of the worker.
        threads
            Number of threads of the worker.
        now
            The time, in seconds.
        end
            When the worker ends, in seconds by the same clock; None if that is not known.
        """
        time = 0.0 if end is None else end - now
        self._longest_lifetime = max(self._longest_lifetime, time)
        self._workers[worker] = WorkerState(
            max(1, threads), end=end, longest_lived=time >= SIMILAR_LIFETIME * self._longest_lifetime
        )

    def expiring(self, now: float) -> set[str]:
        """Return the idle workers that have too little time left for another block.

        Parameters
        ----------
        now
            The time, in seconds.

        Returns
        -------
        set of str
            Addresses of the workers.
        """
        return {worker for worker in self.idle if not self._ends_in_time(self._workers[worker], now)}

    def block_seconds_if_too_long(self, worker: str, now: float) -> float | None:
        """Return the longest recent block time if it exceeds the time left of a new worker that has as much time as any.

        Parameters
        ----------
        worker
            Address of the new worker.
        now
            The time, in seconds.

        Returns
        -------
        float or None
            Seconds, or None if the worker has enough time or others have more.
        """
        state, seconds = self._workers[worker], max(self._recent_seconds, default=0.0)
        return seconds if state.longest_lived and state.end is not None and now + seconds >= state.end else None

    def assign(self, now: float) -> list[Attempt]:
        """Assign blocks to workers that have room.

        Parameters
        ----------
        now
            The time, in seconds.

        Returns
        -------
        list of Attempt
            New attempts, to be started by the caller.
        """
        if self.stopped:
            return []
        if self._suspects and self._workers and not any(state.reserved for state in self._workers.values()):
            min(self._workers.values(), key=lambda state: len(state.attempts)).reserved = True
        made = []
        for worker, state in self._workers.items():
            if state.reserved and not state.attempts:
                if self._suspects and self._has_room(state, now):
                    made.append(self._start(worker, state, self._suspects.popleft(), alone=True, now=now))
                else:
                    state.reserved = False
        while more := self._assign_one_each(now):
            made += more
        return made

    def _assign_one_each(self, now: float) -> list[Attempt]:
        """Assign a block to each worker with room, the emptiest first, so that none waits behind another's second block."""
        free = [(worker, state) for worker, state in self._workers.items() if not state.reserved and self._has_room(state, now)]
        free.sort(key=lambda pair: len(pair[1].attempts) / pair[1].threads)
        blocks = ((worker, state, self._next_block(state, now)) for worker, state in free)
        return [self._start(worker, state, block, alone=False, now=now) for worker, state, block in blocks if block is not None]

    def ended(self, attempt: Attempt, outcome: Outcome, now: float) -> tuple[BlockEnded | BlockRetried, bool]:
        """Take note of the outcome of an attempt.

        Parameters
        ----------
        attempt
            The attempt that ended.
        outcome
            Its outcome.
        now
            The time, in seconds.

        Returns
        -------
        event : BlockEnded or BlockRetried
            What the outcome means for the block.
        broken : bool
            Whether the worker must be restarted.
        """
        self._remove(attempt, now)
        if outcome.fault == "device":
            return self._worker_died(attempt, outcome, now), True
        if outcome.fault == "store" and not self.stopped:
            return self._store_failed(attempt, outcome, now), False
        if outcome.status == "done":
            self._done += 1
            self._recent_seconds.append(sum(asdict(outcome.seconds).values()))
            self._outage_began = None
            if attempt.worker in self._workers:
                self._workers[attempt.worker].outages = 0
                self._workers[attempt.worker].unproven = False
        return self._finish(outcome), False

    def leave(self, worker: str, now: float, *, blame: bool = True) -> list[BlockEnded | BlockRetried]:
        """Remove a worker that has died or is no longer used, and queue its blocks again.

        Parameters
        ----------
        worker
            Its address.
        now
            The time.
        blame
            Whether the blocks that were running may have killed it.

        Returns
        -------
        list of BlockEnded or BlockRetried
            What this means for blocks that are blamed.
        """
        state = self._workers.pop(worker, None)
        if state is None:
            return []
        if state.sequence:
            self._returned.append(state.sequence)
        events: list[BlockEnded | BlockRetried] = []
        for attempt in state.attempts:
            lost = Outcome(attempt.block.index, "failed", attempt.block.write.voxels, cause=f"its worker {worker} died")
            if blame and attempt.since is not None:
                events.append(self._worker_died(attempt, lost, now))
            else:
                heapq.heappush(self._retry_queue, (now, attempt.block.index, attempt.block))
        return events

    def overdue(self, now: float) -> set[str]:
        """Return the workers with a block that has run too long: restart them, then call `hung`.

        Parameters
        ----------
        now
            The time, in seconds.

        Returns
        -------
        set of str
            Addresses of the workers.
        """
        limit = now - self.policy.block_timeout
        return {attempt.worker for attempt in self.in_progress if attempt.since is not None and attempt.since < limit}

    def hung(self, worker: str, now: float) -> list[BlockEnded | BlockRetried]:
        """Remove a worker on which a block ran too long, and queue its other blocks again.

        Parameters
        ----------
        worker
            Address of the worker.
        now
            The time, in seconds.

        Returns
        -------
        list of BlockEnded or BlockRetried
            What this means for the blocks that ran too long.
        """
        limit, seconds = now - self.policy.block_timeout, self.policy.block_timeout
        events: list[BlockEnded | BlockRetried] = []
        for attempt in [a for a in self.in_progress if a.worker == worker and a.since is not None and a.since < limit]:
            self._workers[worker].attempts.remove(attempt)
            history = self._histories.setdefault(attempt.block.index, FailureHistory())
            history.hangs += 1
            hangs = quantity(history.hangs, "time")
            cause = f"it ran longer than {seconds:.0f} s, {hangs}: raise --block-timeout if it is only slow"
            if history.hangs >= MAX_HANGS:
                outcome = Outcome(attempt.block.index, "failed", attempt.block.write.voxels, cause=cause, fault="block")
                events.append(self._finish(outcome))
            else:
                heapq.heappush(self._retry_queue, (now, attempt.block.index, attempt.block))
                events.append(BlockRetried(attempt.block.index, cause, 0.0))
        return events + self.leave(worker, now, blame=False)

    def _has_room(self, state: WorkerState, now: float) -> bool:
        """Return whether a worker can take another block now."""
        return now >= state.paused_until and len(state.attempts) < state.room and self._ends_in_time(state, now)

    def _ends_in_time(self, state: WorkerState, now: float) -> bool:
        """Return whether another block would end before its worker does, if it takes as long as the longest recent block."""
        if state.end is None or (state.unproven and state.longest_lived and not state.attempts):
            return True
        rounds = len(state.attempts) // state.threads + 1
        return now + rounds * max(self._recent_seconds, default=0.0) < state.end

    def _store_failed(self, attempt: Attempt, outcome: Outcome, now: float) -> BlockEnded | BlockRetried:
        """Handle a store failure.

        It is the block's fault if other blocks are done meanwhile, else an outage on its worker or everywhere. A worker whose
        store is unavailable fails fast: without a pause it would fail every block of the volume.
        """
        state = self._workers.get(attempt.worker)
        if state is not None and now >= state.paused_until:
            state.paused_until = now + RETRY_DELAYS_SECONDS[min(state.outages, len(RETRY_DELAYS_SECONDS) - 1)]
            state.outages += 1
        self._outage_began = now if self._outage_began is None else self._outage_began
        if now > self._outage_began + MAX_OUTAGE_SECONDS:
            self.stop()
            self.outage = f"for {MAX_OUTAGE_SECONDS:.0f} s no block could be read or written ({outcome.cause})"
            return self._finish(outcome)
        history = self._histories.setdefault(attempt.block.index, FailureHistory())
        if history.done_before < self._done:
            history.retries += 1
            history.done_before = self._done
        if history.retries > len(RETRY_DELAYS_SECONDS):
            return self._finish(outcome)
        delay = RETRY_DELAYS_SECONDS[history.retries - 1]
        heapq.heappush(self._retry_queue, (now + delay, attempt.block.index, attempt.block))
        return BlockRetried(outcome.block, outcome.cause or "", delay)

    def _next_block(self, state: WorkerState, now: float) -> Block | None:
        """Return the next block for a worker: one that is due for a retry, else a new one."""
        if self._retry_queue and self._retry_queue[0][0] <= now:
            return heapq.heappop(self._retry_queue)[2]
        state.sequence = state.sequence or self._next_sequence()
        block, state.sequence = next(iter(state.sequence), None), state.sequence[1:]
        return block

    def _next_sequence(self) -> Sequence[Block]:
        """Return a sequence for a worker without one: a whole one, else half of the longest; empty if nothing is left."""
        if self._returned:
            return self._returned.pop()
        if self._upcoming is not None:
            sequence, self._upcoming = self._upcoming, next(self._sequences, None)
            return sequence
        longest = max(self._workers.values(), key=lambda state: len(state.sequence))
        half = len(longest.sequence) // 2
        longest.sequence, sequence = longest.sequence[:half], longest.sequence[half:]
        return sequence

    def _start(self, worker: str, state: WorkerState, block: Block, *, alone: bool, now: float) -> Attempt:
        """Create an attempt on a worker."""
        attempt = Attempt(next(self._attempt_numbers), block, worker, alone)
        state.attempts.append(attempt)
        self._mark_running(state, now)
        return attempt

    def _remove(self, attempt: Attempt, now: float) -> None:
        """Remove an attempt that has ended from its worker."""
        state = self._workers.get(attempt.worker)
        if state is not None and attempt in state.attempts:
            state.attempts.remove(attempt)
            state.reserved = state.reserved and (not attempt.alone or bool(self._suspects))
            self._mark_running(state, now)

    def _mark_running(self, state: WorkerState, now: float) -> None:
        """Note which attempts run: a worker runs them in order, as many at once as it has threads."""
        for attempt in state.attempts[: state.threads]:
            if attempt.since is None:
                attempt.since = now

    def _worker_died(self, attempt: Attempt, lost: Outcome, now: float) -> BlockEnded | BlockRetried:
        """Handle a block that was running when its worker died or its device failed: retry it, isolate it or give it up."""
        history = self._histories.setdefault(attempt.block.index, FailureHistory())
        history.deaths += 1
        history.isolated_deaths += attempt.alone
        if history.isolated_deaths >= MAX_ISOLATED_DEATHS:
            deaths = f"{quantity(history.deaths, 'time')}, {history.isolated_deaths} of them with no other block on the worker"
            cause = f"{lost.cause}; this happened {deaths}"
            return self._finish(replace(lost, cause=cause))
        if history.deaths >= DEATHS_BEFORE_ISOLATION:
            self._suspects.append(attempt.block)
        else:
            heapq.heappush(self._retry_queue, (now, attempt.block.index, attempt.block))
        return BlockRetried(attempt.block.index, lost.cause or "", 0.0)

    def _finish(self, outcome: Outcome) -> BlockEnded:
        """Settle a block, and stop the run if too many have failed."""
        self._histories.pop(outcome.block, None)
        self._failed += outcome.status == "failed"
        if self.policy.max_failures is not None and self._failed >= self.policy.max_failures:
            self.stop()
        return BlockEnded(outcome)
