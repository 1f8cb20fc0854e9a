"""Test speed, remaining time and its error, idle devices and the slowest worker, with a simulated clock."""

from __future__ import annotations

import pytest
from runs import PLANAR, plan_of

from emseg.runs.events import BlockEnded, BlocksInProgress, WorkerJoined, WorkerLeft
from emseg.runs.pace import MIN_RECENT_BLOCKS, RECENT_SECONDS, Pace, format_duration, format_time_left
from emseg_core.outcome import Outcome, Seconds

PLAN = plan_of((15, 61, 63), PLANAR)
VOXELS = PLAN.region.voxels


def ended(block: int, voxels: int = 100, seconds: Seconds | None = None, worker: str = "", status: str = "done") -> BlockEnded:
    return BlockEnded(Outcome(block, status, voxels, seconds or Seconds(), worker=worker))  # type: ignore[arg-type]


def test_before_the_first_block() -> None:
    pace = Pace(PLAN, 0, 2, 100.0)
    assert pace.to_json(100.0) == pace.to_json(150.0)
    assert set(pace.to_json(100.0).values()) == {0.0, None}
    assert format_time_left(None, None) == "?"


def test_speed_and_time_left() -> None:
    pace = Pace(PLAN, 0, 2, 100.0)
    for block in range(10):
        pace.record(ended(block), 102.0 + 2 * block)
    assert pace.speed(120.0) == pytest.approx(50)
    left = pace.seconds_left(120.0)
    assert left is not None
    assert left[0] == pytest.approx((VOXELS - 1000) / 50)
    assert left[1] is None
    assert (pace.done, pace.failed, pace.left) == (10, 0, len(PLAN) - 10)


def test_a_resumed_run_has_less_to_do() -> None:
    pace = Pace(PLAN, len(PLAN) // 2, 2, 0.0)
    pace.record(ended(0), 2.0)
    left, _ = pace.seconds_left(2.0) or (0, 0)
    assert left == pytest.approx((VOXELS * (1 - len(PLAN) // 2 / len(PLAN)) - 100) / 50)


def test_even_blocks_make_the_time_left_sure_and_uneven_ones_do_not() -> None:
    errors = []
    for slow in (1, 3):
        pace, now = Pace(PLAN, 0, 2, 0.0), 0.0
        for block in range(40):
            now += slow if block % 10 < 5 else 1
            pace.record(ended(block), now)
        _, error = pace.seconds_left(now) or (0.0, None)
        assert error is not None
        errors.append(error)
    even, uneven = errors
    assert even < 0.2 * uneven
    assert format_time_left(11_040, 125.0) == "3 h 04 min +- 2 min 05 s"


def test_speed_is_that_of_the_last_minute_or_of_some_blocks() -> None:
    pace = Pace(PLAN, 0, 2, 0.0)
    for block in range(MIN_RECENT_BLOCKS + 60):
        pace.record(ended(block, 7), 10_000.0 + block)
    assert pace.speed(10_000.0 + MIN_RECENT_BLOCKS + 59) == pytest.approx(7)
    slow = Pace(PLAN, 0, 2, 0.0)
    for block in range(MIN_RECENT_BLOCKS + 5):
        slow.record(ended(block), RECENT_SECONDS * (block + 1))
    assert slow.speed(RECENT_SECONDS * (MIN_RECENT_BLOCKS + 5)) == pytest.approx(100 / RECENT_SECONDS)


def test_a_run_that_stands_slows_down() -> None:
    pace = Pace(PLAN, 0, 2, 0.0)
    for block in range(10):
        pace.record(ended(block), 1.0 + block)
    assert pace.speed(10.9) == pace.speed(10.0)
    assert pace.speed(110.0) < 0.2 * pace.speed(10.0)


def test_failed_blocks_are_no_speed() -> None:
    pace = Pace(PLAN, 0, 2, 0.0)
    pace.record(ended(0), 1.0)
    pace.record(ended(1, status="failed"), 2.0)
    assert pace.speed(2.0) == 50
    assert (pace.done, pace.failed) == (1, 1)


def test_idle_devices() -> None:
    """Two workers predict half of the time; then one of them leaves."""
    pace = Pace(PLAN, 0, 2, 0.0)
    for block in range(10):
        pace.record(ended(block, seconds=Seconds(1, 2, 1, 0)), 1.0 + block)
    assert pace.idle(10.0) == pytest.approx(0.5)
    assert pace.shares() == {"read": 0.25, "wait": 0.5, "predict": 0.25, "write": 0.0, "stitch": 0.0}
    for worker in ("a", "b"):
        pace.record(WorkerJoined(worker, None), 10.0)
    assert pace.idle(10.0) == pytest.approx(0.5)
    pace.record(WorkerLeft("a", "it died"), 10.0)
    assert pace.idle(10.0) == 0.0


def test_the_slowest_worker() -> None:
    pace = Pace(PLAN, 0, 3, 0.0)
    for block in range(12):
        worker = "abc"[block % 3]
        pace.record(ended(block, seconds=Seconds(0, 5, 4 if worker == "b" else 1), worker=worker), 1.0 + block)
    assert str(pace.slowest()) == "b, at 0.25 of the median speed"
    pace.record(BlocksInProgress((13,), "tcp://c", 90.0), 13.0)
    assert str(pace.slowest()) == "tcp://c, 1 min 30 s on one block"
    pace.record(BlocksInProgress((13,), "tcp://c", 3.0), 13.0)
    assert str(pace.slowest()).startswith("b, ")


def test_one_worker_is_not_compared() -> None:
    pace = Pace(PLAN, 0, 1, 0.0)
    pace.record(ended(0, seconds=Seconds(1, 1, 1), worker="a"), 1.0)
    assert pace.slowest() is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (7.84, "7.8 s"), (306, "5 min 06 s"), (11_040, "3 h 04 min"), (93_600, "1 d 2 h"), (59.97, "1 min 00 s")],
)
def test_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
