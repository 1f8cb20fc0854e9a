"""Test that each block ends once, whatever happens to workers, and that only bad blocks are called bad."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import pytest
from fakes import plan_by_hand
from hypothesis import given
from hypothesis import strategies as st

from emseg.runs.dispatch import (
    BLOCKS_PER_THREAD,
    DEATHS_BEFORE_ISOLATION,
    MAX_ISOLATED_DEATHS,
    MAX_OUTAGE_SECONDS,
    RETRY_DELAYS_SECONDS,
    Attempt,
    Dispatch,
    Policy,
)
from emseg.runs.events import BlockEnded, BlockRetried
from emseg_core.errors import Fault
from emseg_core.grid.blocks import Block
from emseg_core.outcome import Outcome, Seconds
from emseg_core.specs.model import ModelSpec

PLAN = plan_by_hand(ModelSpec.unet(width=1, depth=0), (4, 8, 24), (1, 4, 4), (1, 8, 8))
TIMEOUT = 100.0


def one_sequence(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    return iter([list(blocks)])


def done(block: Block) -> Outcome:
    return Outcome(block.index, "done", block.write.voxels)


def broken(block: Block, fault: Fault) -> Outcome:
    return Outcome(block.index, "failed", block.write.voxels, cause="broken", fault=fault)


@dataclass
class Cluster:
    """Workers that run their tasks, with a simulated clock. `deadly` and `hanging` blocks ruin each worker."""

    dispatch: Dispatch
    threads: int = 2
    deadly: frozenset[int] = frozenset()
    hanging: frozenset[int] = frozenset()
    now: float = 0.0
    born: int = 0
    ended: list[Outcome] = field(default_factory=list)
    retried: int = 0
    begun: list[Attempt] = field(default_factory=list)

    def grow(self) -> None:
        self.born += 1
        self.dispatch.join(f"worker {self.born}", self.threads, self.now)

    def tell(self, *events: BlockEnded | BlockRetried) -> None:
        for event in events:
            if isinstance(event, BlockEnded):
                self.ended.append(event.outcome)
            else:
                self.retried += 1

    def assign(self) -> None:
        self.begun += self.dispatch.assign(self.now)

    def kill(self, worker: str) -> None:
        self.tell(*self.dispatch.leave(worker, self.now))

    def running(self, worker: str) -> list[Attempt]:
        return [a for a in self.dispatch.in_progress if a.worker == worker][: self.threads]

    def work(self, worker: str) -> None:
        """Return the next task of this worker."""
        running = self.running(worker)
        if any(a.block.index in self.deadly for a in running):
            self.kill(worker)
            self.grow()
        elif ready := [a for a in running if a.block.index not in self.hanging]:
            event, _ = self.dispatch.ended(ready[0], done(ready[0].block), self.now)
            self.tell(event)

    def run(self, rng: random.Random, kills: int = 0) -> None:
        for _ in range(100_000):
            if self.dispatch.finished:
                return
            self.assign()
            for worker in sorted(self.dispatch.workers):
                if kills and rng.random() < 0.1:
                    kills -= 1
                    self.kill(worker)
                    self.grow()
                else:
                    self.work(worker)
            self.now += 1.0
            for worker in self.dispatch.overdue(self.now):
                self.tell(*self.dispatch.hung(worker, self.now))
                self.grow()
        raise AssertionError("the run does not end")


def cluster(workers: int = 2, policy: Policy | None = None, **more: Any) -> Cluster:
    made = Cluster(Dispatch(one_sequence(PLAN), policy or Policy(TIMEOUT)), **more)
    for _ in range(workers):
        made.grow()
    return made


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 30), st.integers(0, 2**32))
def test_each_block_is_done_once_however_many_workers_are_killed(workers: int, threads: int, kills: int, seed: int) -> None:
    made = cluster(workers, threads=threads)
    made.run(random.Random(seed), kills)
    assert sorted(outcome.block for outcome in made.ended) == list(range(len(PLAN)))
    assert sum(outcome.status == "failed" for outcome in made.ended) <= kills // (
        DEATHS_BEFORE_ISOLATION + MAX_ISOLATED_DEATHS - 1
    )
    assert len(made.begun) <= len(PLAN) + kills * BLOCKS_PER_THREAD * threads


@given(
    st.sets(st.integers(0, len(PLAN) - 1), max_size=4), st.sets(st.integers(0, len(PLAN) - 1), max_size=3), st.integers(1, 3)
)
def test_only_blocks_that_kill_or_hang_are_given_up(deadly: set[int], hanging: set[int], workers: int) -> None:
    hanging -= deadly
    made = cluster(workers, deadly=frozenset(deadly), hanging=frozenset(hanging))
    made.run(random.Random(0))
    assert {outcome.block for outcome in made.ended if outcome.status == "failed"} == deadly | hanging
    assert sorted(outcome.block for outcome in made.ended) == list(range(len(PLAN)))


def test_a_suspect_is_tried_with_nothing_beside_it() -> None:
    made = cluster(1, deadly=frozenset({3}))
    made.run(random.Random(0))
    lone = [attempt for attempt in made.begun if attempt.alone]
    assert [attempt.block.index for attempt in lone].count(3) == MAX_ISOLATED_DEATHS
    (bad,) = [outcome for outcome in made.ended if outcome.status == "failed"]
    assert "no other block on the worker" in (bad.cause or "")


def test_no_worker_has_more_than_its_window() -> None:
    made = cluster(3)
    made.assign()
    assert [len([a for a in made.dispatch.in_progress if a.worker == worker]) for worker in made.dispatch.workers] == [
        BLOCKS_PER_THREAD * 2
    ] * 3


def test_a_block_whose_store_fails_while_it_serves_others_is_tried_with_longer_and_longer_pauses() -> None:
    made = cluster(1)
    pauses, since = [], 0.0
    while not any(outcome.status == "failed" for outcome in made.ended):
        made.assign()
        tries = [attempt for attempt in made.dispatch.in_progress if attempt.block.index == 0]
        others = [attempt for attempt in made.dispatch.in_progress if attempt.block.index != 0]
        if tries:
            pauses.append(made.now - since)
            since = made.now
            event, restart = made.dispatch.ended(tries[0], broken(tries[0].block, "store"), made.now)
            assert not restart
            made.tell(event)
        else:
            made.now += 0.5
        if others and (tries or made.now >= since + RETRY_DELAYS_SECONDS[len(pauses) - 1]):
            made.tell(made.dispatch.ended(others[0], done(others[0].block), made.now)[0])
    assert pauses[1:] == list(RETRY_DELAYS_SECONDS)
    assert made.retried == len(RETRY_DELAYS_SECONDS)
    assert not made.dispatch.outage


def serve(made: Cluster, *, away: frozenset[str], seconds: float) -> None:
    """Let each worker do its tasks; those without access to the store fail at once."""
    end = made.now + seconds
    while made.now < end and not made.dispatch.finished:
        made.assign()
        for attempt in made.dispatch.in_progress:
            lost = attempt.worker in away
            outcome = broken(attempt.block, "store") if lost else done(attempt.block)
            made.tell(made.dispatch.ended(attempt, outcome, made.now)[0])
        made.now += 0.5


def test_an_outage_costs_each_worker_its_window_and_a_block_at_a_time() -> None:
    made = cluster(2)
    serve(made, away=frozenset({"worker 1", "worker 2"}), seconds=MAX_OUTAGE_SECONDS - 1)
    assert not made.ended
    assert len({attempt.block.index for attempt in made.begun}) <= 2 * BLOCKS_PER_THREAD * 2 + 2
    assert made.retried <= 2 * (
        BLOCKS_PER_THREAD * 2 + len(RETRY_DELAYS_SECONDS) + MAX_OUTAGE_SECONDS / RETRY_DELAYS_SECONDS[-1]
    )
    made.run(random.Random(0))
    assert {outcome.status for outcome in made.ended} == {"done"}
    assert len(made.ended) == len(PLAN)


def test_an_outage_that_does_not_end_ends_the_run() -> None:
    made = cluster(2)
    serve(made, away=frozenset({"worker 1", "worker 2"}), seconds=2 * MAX_OUTAGE_SECONDS)
    assert made.dispatch.finished
    assert "broken" in made.dispatch.outage
    assert len(made.ended) <= 2


def test_a_worker_that_alone_does_not_see_the_store_spoils_no_block() -> None:
    """It takes no blocks from the others, and gets one now and then to try again."""
    made = cluster(2)
    serve(made, away=frozenset({"worker 1"}), seconds=MAX_OUTAGE_SECONDS)
    assert made.dispatch.finished
    assert not made.dispatch.outage
    assert {outcome.status for outcome in made.ended} == {"done"}
    assert sum(attempt.worker == "worker 1" for attempt in made.begun) <= BLOCKS_PER_THREAD * 2 + len(RETRY_DELAYS_SECONDS)


def test_what_is_broken_for_good_is_not_tried_again() -> None:
    made = cluster(1)
    made.assign()
    attempt = made.dispatch.in_progress[0]
    event, restart = made.dispatch.ended(attempt, broken(attempt.block, "block"), 0.0)
    assert isinstance(event, BlockEnded)
    assert not restart


def test_a_broken_device_restarts_its_worker_and_the_block_is_tried_again() -> None:
    made = cluster(1)
    made.assign()
    attempt = made.dispatch.in_progress[0]
    event, restart = made.dispatch.ended(attempt, broken(attempt.block, "device"), 0.0)
    assert isinstance(event, BlockRetried)
    assert restart


@pytest.mark.parametrize("most", [1, 3])
def test_most_failures(most: int) -> None:
    made = cluster(1, Policy(TIMEOUT, most))
    while not made.dispatch.finished:
        made.assign()
        for attempt in made.dispatch.in_progress:
            made.tell(made.dispatch.ended(attempt, broken(attempt.block, "block"), 0.0)[0])
    assert most <= len(made.ended) <= most - 1 + BLOCKS_PER_THREAD * 2


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 40))
def test_no_worker_gets_a_second_block_while_another_has_none(workers: int, threads: int, blocks: int) -> None:
    dispatch = Dispatch(one_sequence(islice(cycle(PLAN), blocks)), Policy(TIMEOUT))
    for number in range(workers):
        dispatch.join(f"worker {number}", threads, 0.0)
    made = Counter(attempt.worker for attempt in dispatch.assign(0.0))
    held = [made[f"worker {number}"] for number in range(workers)]
    assert sum(held) == min(blocks, workers * threads * BLOCKS_PER_THREAD)
    assert max(held) - min(held) <= 1


def test_what_a_dead_worker_held_is_dealt_to_all_others() -> None:
    made = Cluster(Dispatch(one_sequence(islice(PLAN, 6)), Policy(TIMEOUT)))
    made.grow()
    made.assign()
    assert len(made.dispatch.in_progress) == BLOCKS_PER_THREAD * 2
    made.grow()
    made.grow()
    made.assign()
    made.kill("worker 1")
    made.assign()
    assert Counter(attempt.worker for attempt in made.dispatch.in_progress) == {"worker 2": 3, "worker 3": 3}


def test_asked_to_stop_it_waits_for_what_is_in_hand_alone() -> None:
    made = cluster(2)
    made.assign()
    made.dispatch.stop()
    in_progress = len(made.dispatch.in_progress)
    assert not made.dispatch.finished
    made.run(random.Random(0))
    assert len(made.ended) == in_progress < len(PLAN)


def test_a_worker_near_its_end_gets_no_block_that_it_cannot_finish() -> None:
    dispatch = Dispatch(one_sequence(PLAN), Policy(TIMEOUT))
    dispatch.join("short", 1, 0.0, end=100.0)
    dispatch.join("endless", 1, 0.0)
    first = dispatch.assign(0.0)
    for attempt in first:
        outcome = Outcome(attempt.block.index, "done", attempt.block.write.voxels, Seconds(predict=10.0))
        dispatch.ended(attempt, outcome, 10.0)
    for now, wanted in ((75.0, 2), (85.0, 1), (91.0, 0)):
        made = [attempt for attempt in dispatch.assign(now) if attempt.worker == "short"]
        assert len(made) == wanted, f"{wanted} blocks of 10 s fit from {now} to 100"
        assert (not made) == (dispatch.expiring(now) == {"short"})
        for attempt in dispatch.in_progress:
            dispatch.ended(attempt, done(attempt.block), now)
    assert any(attempt.worker == "endless" for attempt in dispatch.assign(1000.0))


def long_block(dispatch: Dispatch, attempt: Attempt, now: float) -> None:
    """End a block that took a minute."""
    outcome = Outcome(attempt.block.index, "done", attempt.block.write.voxels, Seconds(predict=60.0))
    dispatch.ended(attempt, outcome, now)


def test_a_worker_that_no_other_outlasts_is_tried_with_a_block_that_takes_longer_than_it_has() -> None:
    """Otherwise workers would come, get nothing, and be dismissed for ever."""
    dispatch = Dispatch(one_sequence(PLAN), Policy(TIMEOUT))
    dispatch.join("first", 1, 0.0, end=50.0)
    assert dispatch.block_seconds_if_too_long("first", 0.0) is None, "nobody knows yet how long a block takes"
    for attempt in dispatch.assign(0.0):
        long_block(dispatch, attempt, 61.0)
    assert dispatch.expiring(61.0) == {"first"}
    dispatch.leave("first", 61.0, blame=False)
    dispatch.join("as long", 1, 61.0, end=110.0)
    dispatch.join("shorter", 1, 61.0, end=90.0)
    assert dispatch.block_seconds_if_too_long("as long", 61.0) == 60.0
    assert dispatch.block_seconds_if_too_long("shorter", 61.0) is None
    made = dispatch.assign(61.0)
    assert [attempt.worker for attempt in made] == ["as long"]
    assert dispatch.expiring(61.0) == {"shorter"}
    long_block(dispatch, made[0], 105.0)
    assert dispatch.assign(105.0) == []
    assert dispatch.expiring(105.0) == {"as long", "shorter"}


def test_workers_are_of_use_as_long_as_there_is_a_block_for_each() -> None:
    made = cluster(4, threads=1)
    for _ in range(len(PLAN)):
        made.assign()
        busy = {attempt.worker for attempt in made.dispatch.in_progress}
        assert made.dispatch.idle == made.dispatch.workers - busy
        if len(made.begun) < len(PLAN):
            assert made.dispatch.useful is None
        else:
            assert made.dispatch.useful == len(busy)
        made.work(sorted(busy)[0])
    assert made.dispatch.finished
    assert made.dispatch.useful == 0


def test_a_block_to_be_tried_again_makes_a_worker_useful() -> None:
    made = cluster(1, threads=1)
    while len(made.begun) < len(PLAN):
        made.assign()
        made.work("worker 1")
    in_progress = len(made.dispatch.in_progress)
    assert in_progress
    made.kill("worker 1")
    assert made.dispatch.useful == in_progress


# -- sequences ---------------------------------------------------------------------------------------------------------


def in_turn(dispatch: Dispatch, workers: int, threads: int = 1) -> dict[str, list[int]]:
    """Return the blocks that each of several workers gets, if each block takes the same time."""
    got: dict[str, list[int]] = {f"worker {number}": [] for number in range(workers)}
    for worker in got:
        dispatch.join(worker, threads, 0.0)
    while not dispatch.finished:
        for attempt in dispatch.assign(0.0):
            got[attempt.worker].append(attempt.block.index)
        for worker in got:
            mine = [attempt for attempt in dispatch.in_progress if attempt.worker == worker]
            for attempt in mine[:threads]:
                dispatch.ended(attempt, done(attempt.block), 0.0)
    return got


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=9)


def sequences(sizes: list[int]) -> list[list[Block]]:
    blocks = cycle(PLAN)
    made = [list(islice(blocks, size)) for size in sizes]
    return [[Block(100 * number + place, block.write) for place, block in enumerate(s)] for number, s in enumerate(made)]


@given(lengths, st.integers(1, 5), st.integers(1, 2))
def test_no_sequence_is_cut_while_there_are_others(sizes: list[int], workers: int, threads: int) -> None:
    made = sequences(sizes)
    got = in_turn(Dispatch(iter(made), Policy(TIMEOUT)), workers, threads)
    assert sorted(itertools.chain(*got.values())) == sorted(block.index for sequence in made for block in sequence)
    parts = sum(1 + sum(b != a + 1 for a, b in itertools.pairwise(blocks)) for blocks in got.values() if blocks)
    assert parts <= len(sizes) + workers * max(sizes).bit_length(), "each worker cuts a few at the end"
    if workers == 1:
        assert parts == len(sizes)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5))
def test_sequences_enough_for_all_stay_whole(size: int, rounds: int, workers: int) -> None:
    got = in_turn(Dispatch(iter(sequences([size] * rounds * workers)), Policy(TIMEOUT)), workers)
    for blocks in got.values():
        assert [index % 100 for index in blocks] == list(range(size)) * rounds


@given(lengths, st.integers(2, 6))
def test_workers_end_together_however_the_sequences_are(sizes: list[int], workers: int) -> None:
    counts = sorted(map(len, in_turn(Dispatch(iter(sequences(sizes)), Policy(TIMEOUT)), workers).values()))
    assert counts[-1] - counts[0] <= BLOCKS_PER_THREAD


@given(lengths, st.integers(1, 4), st.integers(0, 20), st.integers(0, 2**32))
def test_sequences_of_workers_that_die_go_to_others(sizes: list[int], workers: int, kills: int, seed: int) -> None:
    made = Cluster(Dispatch(iter(sequences(sizes)), Policy(TIMEOUT)))
    for _ in range(workers):
        made.grow()
    made.run(random.Random(seed), kills)
    ended = [outcome.block for outcome in made.ended]
    assert sorted(ended) == sorted(block.index for sequence in sequences(sizes) for block in sequence)


def test_a_dead_workers_sequence_goes_whole_to_one_other() -> None:
    made = Cluster(Dispatch(iter(sequences([6, 6, 6])), Policy(TIMEOUT)), threads=1)
    made.grow()
    made.assign()
    assert [attempt.block.index for attempt in made.begun] == [0, 1]
    made.dispatch.leave("worker 1", 0.0, blame=False)
    made.grow()
    while len(made.begun) < 10:
        made.assign()
        made.work("worker 2")
    assert [attempt.block.index for attempt in made.begun[2:8]] == [0, 1, 2, 3, 4, 5]
    assert made.dispatch.useful is None
