"""A feed gives what each step needs in order, ahead of time, and no more than a few."""

from __future__ import annotations

import threading
import time

import pytest

from emseg.training.feed import AHEAD, feeding


def test_in_order_whatever_takes_longer() -> None:
    def make(step: int) -> int:
        time.sleep(0.01 * (step % 3))
        return step * step

    with feeding(make, range(5, 25)) as feed:
        assert [next(feed) for _ in range(20)] == [step * step for step in range(5, 25)]


def test_no_further_ahead_than_said() -> None:
    begun: list[int] = []
    with feeding(begun.append, range(100)) as feed:
        time.sleep(0.1)
        assert len(begun) == AHEAD
        next(feed)
        time.sleep(0.1)
        assert len(begun) == AHEAD + 1
    assert len(begun) <= AHEAD + 1


def test_waiting_is_counted() -> None:
    gate = threading.Event()
    threading.Timer(0.2, gate.set).start()
    with feeding(lambda step: gate.wait(), range(1)) as feed:
        next(feed)
        assert 0.1 < feed.waited < 2


def test_what_fails_is_raised_where_it_is_needed() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("damaged")
        return step

    with feeding(make, range(3)) as feed:
        assert next(feed) == 0
        with pytest.raises(ValueError, match="damaged"):
            next(feed)
