"""Test that outcomes are small and that their seconds add up."""

from __future__ import annotations

import json

import pytest

import emseg_core.outcome
from emseg_core.outcome import Outcome, Seconds, Stopwatch


def test_json_names_everything() -> None:
    outcome = Outcome(3, "failed", 512, Seconds(1.0, 2.0, 3.0, 4.0), "disk full", "host:1", 2**30, "store", "0123456789abcdef")
    assert json.loads(json.dumps(outcome.to_json())) == {
        "block": 3,
        "status": "failed",
        "voxels": 512,
        "seconds": {"read": 1.0, "wait": 2.0, "predict": 3.0, "write": 4.0, "stitch": 0.0},
        "cause": "disk full",
        "worker": "host:1",
        "peak_bytes": 2**30,
        "fault": "store",
        "read": "0123456789abcdef",
    }


OUTCOME = Outcome(3, "failed", 512, Seconds(1.0, 2.0, 3.0, 4.0), "disk full", "host:1", 2**30, "store")


@pytest.mark.parametrize("outcome", [OUTCOME, Outcome(0, "done", 8), Outcome(0, "done", 8, read="0123456789abcdef")])
def test_json_and_back(outcome: Outcome) -> None:
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_an_older_record_tells_no_digest() -> None:
    older = {name: value for name, value in OUTCOME.to_json().items() if name != "read"}
    assert Outcome.from_json(older) == OUTCOME


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"block": -1}, ValueError, "block, voxels and bytes must be counts"),
        ({"block": "three"}, ValueError, "block, voxels and bytes must be counts"),
        ({"status": "skipped"}, ValueError, "status skipped"),
        ({"voxels": None}, ValueError, "block, voxels and bytes must be counts"),
        ({"seconds": None}, TypeError, "not iterable"),
        ({"seconds": {"dream": 1.0}}, TypeError, "dream"),
        ({"seconds": {"read": -1.0}}, ValueError, "negative or impossibly long"),
        ({"seconds": {"read": float("nan")}}, ValueError, "negative or impossibly long"),
        ({"seconds": {"read": "long"}}, TypeError, "not supported"),
        ({"cause": 7}, TypeError, "worker and cause must be text"),
        ({"worker": None}, TypeError, "worker and cause must be text"),
        ({"peak_bytes": -1}, ValueError, "block, voxels and bytes must be counts"),
        ({"fault": "mine"}, ValueError, "fault mine"),
    ],
)
def test_what_is_no_outcome(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Outcome.from_json({**OUTCOME.to_json(), **change})


@pytest.mark.parametrize("name", sorted(set(OUTCOME.to_json()) - {"read"}))
def test_an_outcome_with_a_field_missing(name: str) -> None:
    incomplete = {key: value for key, value in OUTCOME.to_json().items() if key != name}
    with pytest.raises(KeyError, match=name):
        Outcome.from_json(incomplete)


def test_all_of_the_time() -> None:
    assert Seconds(1, 2, 4, 8, 16).total == 31


def test_phases_add_up_also_those_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(emseg_core.outcome, "perf_counter", lambda: now[0])
    watch = Stopwatch()
    assert watch.seconds() == Seconds(0, 0, 0, 0)
    for _ in range(2):
        with watch.phase("read"):
            now[0] += 1.5
    now[0] += 50  # between phases: counted nowhere

    def fail() -> None:
        now[0] += 4
        raise OSError("full")

    with pytest.raises(OSError, match="full"), watch.phase("write"):
        fail()
    assert watch.seconds() == Seconds(read=3.0, write=4.0)


def test_a_phase_within_another_interrupts_that(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(emseg_core.outcome, "perf_counter", lambda: now[0])
    watch = Stopwatch()
    with watch.phase("stitch"):
        now[0] += 1
        for _ in range(2):
            with watch.phase("wait"):
                now[0] += 10
            with watch.phase("predict"):
                now[0] += 100
            now[0] += 1
    assert watch.seconds() == Seconds(wait=20, predict=200, stitch=3)


def test_a_phase_is_a_field_of_seconds() -> None:
    watch = Stopwatch()
    with watch.phase("dream"):
        pass
    with pytest.raises(TypeError, match="dream"):
        watch.seconds()
