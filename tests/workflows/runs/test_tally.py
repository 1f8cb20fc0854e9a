"""Test that a report counts every block once: done, skipped, failed or left."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import PLANAR, plan_of

from emseg.runs.tally import MAX_LISTED, Report, Tally
from emseg_core.outcome import Outcome, Seconds

PLAN = plan_of((7, 29, 31), PLANAR)


def outcome(block: int, status: str, peak: int = 0) -> Outcome:
    failed = status == "failed"
    voxels = PLAN.block(block).write.voxels
    return Outcome(block, "failed" if failed else "done", voxels, Seconds(1, 2, 3, 4), "why" if failed else None, "", peak)


@given(st.lists(st.sampled_from(["done", "failed", "skipped", "left"]), min_size=len(PLAN), max_size=len(PLAN)))
def test_every_block_is_counted_once(fates: list[str]) -> None:
    tally = Tally(PLAN, fates.count("skipped"))
    ended = [outcome(block, fate, peak=block) for block, fate in enumerate(fates) if fate in ("done", "failed")]
    for one in ended:
        tally.count(one)
    report = tally.report(2.0)
    for fate in ("done", "failed", "skipped", "left"):
        assert getattr(report, fate) == fates.count(fate)
    assert report.blocks == len(PLAN)
    assert report.exit_code == (0 if set(fates) <= {"done", "skipped"} else 3)
    assert report.voxels == sum(one.voxels for one in ended if one.status == "done")
    assert report.megavoxels_per_second == pytest.approx(report.voxels / 2e6)
    assert report.worker_peak_bytes == max((one.block for one in ended), default=0)
    assert report.phases == Seconds(*(seconds * len(ended) for seconds in (1, 2, 3, 4)))
    assert [failure.block for failure in report.failures] == [i for i, fate in enumerate(fates) if fate == "failed"]


def test_a_failure_is_named_as_a_region_is_typed() -> None:
    tally = Tally(PLAN, 0)
    tally.count(outcome(5, "failed"))
    (failure,) = tally.report(1.0).failures
    box = PLAN.block(5).write
    assert failure.box == ",".join(f"{a}:{b}" for a, b in zip(box.start, box.stop, strict=True))
    assert failure.cause == "why"


def test_most_failures_are_only_counted() -> None:
    tally = Tally(PLAN, 0)
    for _ in range(MAX_LISTED + 7):
        tally.count(outcome(0, "failed"))
    report = tally.report(1.0)
    assert (report.failed, len(report.failures)) == (MAX_LISTED + 7, MAX_LISTED)


def test_a_block_that_was_done_at_last_is_named_with_its_worker_and_what_went_before() -> None:
    tally = Tally(PLAN, 0)
    for block, cause in (
        (2, "its worker a died"),
        (4, "its worker a died"),
        (2, "its worker b died"),
        (5, "its store is away"),
    ):
        tally.retry(block, cause)
    tally.count(replace(outcome(2, "done"), worker="c"))
    tally.count(replace(outcome(3, "done"), worker="c"))
    tally.count(outcome(4, "failed"))
    report = tally.report(1.0)
    assert report.retried == 4
    (retry,) = report.retries
    assert (retry.block, retry.box, retry.cause, retry.worker) == (2, str(PLAN.block(2).write), "its worker b died", "c")


def test_nothing_to_do_is_done() -> None:
    report = Tally(PLAN, len(PLAN)).report(0.0)
    assert (report.exit_code, report.left, report.megavoxels_per_second) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("spent", "seconds", "idle", "bottleneck"),
    [
        (Seconds(1, 0, 9, 1), 5.0, 0.1, "predict"),
        (Seconds(9, 0, 4, 3), 10.0, 0.8, "read"),
        (Seconds(3, 5, 4, 9), 10.0, 0.8, "write"),
        (Seconds(3, 0, 4, 2, 9), 10.0, 0.8, "stitch"),
        (Seconds(0, 0, 10.001, 0), 5.0, 0.0, "predict"),
    ],
)
def test_what_holds_a_run_up(spent: Seconds, seconds: float, idle: float, bottleneck: str) -> None:
    """There are two workers, each with a predictor."""
    tally = Tally(PLAN, 0)
    for worker in ("a", "b"):
        half = Seconds(*(getattr(spent, field.name) / 2 for field in fields(Seconds)))
        tally.count(replace(outcome(0, "done"), worker=worker, seconds=half))
    report = tally.report(seconds)
    assert report.workers == 2
    assert report.idle == pytest.approx(idle, abs=1e-9)
    assert report.bottleneck == bottleneck


def test_nothing_holds_up_a_run_without_blocks() -> None:
    report = Tally(PLAN, len(PLAN)).report(0.0)
    assert (report.idle, report.bottleneck) == (None, "")


def test_json() -> None:
    tally = Tally(PLAN, 1)
    tally.count(outcome(3, "failed"))
    report: Report = tally.report(1.5)
    told = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert told["failures"] == [{"block": 3, "box": report.failures[0].box, "cause": "why"}]
    assert told["left"] == len(PLAN) - 2
    assert told["phases"] == {"read": 1, "wait": 2, "predict": 3, "write": 4, "stitch": 0}
