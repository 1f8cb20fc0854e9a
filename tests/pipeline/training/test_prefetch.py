"""Test that a feed delivers each step's input in order, and prepares only a few in advance."""

from __future__ import annotations

import threading
import time

import pytest

from emseg_core.training.prefetch import STEPS_AHEAD, prefetch


def test_in_order_whatever_takes_longer() -> None:
    def make(step: int) -> int:
        time.sleep(0.01 * (step % 3))
        return step * step

    with prefetch(make, range(5, 25)) as feed:
        assert [next(feed) for _ in range(20)] == [step * step for step in range(5, 25)]


def test_no_further_ahead_than_said() -> None:
    begun: list[int] = []

    def settled(expected: int) -> int:
        """Wait until this many have started, and return how many have started some time later."""
        while len(begun) < expected:
            time.sleep(0.001)
        time.sleep(0.1)
        return len(begun)

    with prefetch(begun.append, range(100)) as feed:
        assert settled(STEPS_AHEAD) == STEPS_AHEAD
        next(feed)
        assert settled(STEPS_AHEAD + 1) == STEPS_AHEAD + 1
    assert len(begun) <= STEPS_AHEAD + 1


def test_waiting_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time counts from the request to the arrival."""
    asked, now = threading.Event(), 0.0

    def clock() -> float:
        read = now
        asked.set()
        return read

    def make(step: int) -> int:
        nonlocal now
        asked.wait()
        now = 5.0
        return step

    monkeypatch.setattr("emseg_core.training.prefetch.perf_counter", clock)
    with prefetch(make, range(1)) as feed:
        assert next(feed) == 0
        assert feed.waited == 5.0


def test_what_fails_is_raised_where_it_is_needed() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("damaged")
        return step

    with prefetch(make, range(3)) as feed:
        assert next(feed) == 0
        with pytest.raises(ValueError, match="damaged"):
            next(feed)
