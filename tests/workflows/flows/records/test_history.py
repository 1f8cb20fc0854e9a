"""Test the combined records of several runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import PLANAR, plan_of, save_random_model, save_volume, texture

from emseg.flows.records.history import MAX_BINS, MAX_SLOW_BLOCKS, History, Speed, read_history
from emseg.flows.segment import segment
from emseg_core.outcome import Outcome, Seconds
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (9, 61, 67)
PLAN = plan_of(SHAPE, PLANAR)
BEGAN = datetime(2024, 5, 1, 12, tzinfo=UTC)
NEVER = {"failed": 0, "left": 0, "unbuilt": 0, "signal": 0, "seconds": 100.0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("history")
    save_volume(folder / "volume.zarr", texture(SHAPE))
    model = save_random_model(folder / "model.safetensors", PLANAR)
    segment(folder / "volume.zarr", folder / "out.zarr", model=model, workers=0)
    return folder / "out.zarr"


@pytest.fixture
def output(whole: Path, tmp_path: Path) -> Path:
    """Make an output whose records are lost."""
    output = Path(shutil.copytree(whole, tmp_path / "out.zarr"))
    shutil.rmtree(output / "emseg" / "run-0001")
    return output


def started(output: Path, **more: Any) -> tuple[float, dict[str, Any]]:
    return 0.0, {"event": "started", "fingerprint": open_output(output).attributes["fingerprint"], **more}


def ended(at: float, block: int, **more: Any) -> tuple[float, dict[str, Any]]:
    """Return a block that ended some seconds after its run started."""
    outcome = replace(Outcome(block, "done", 1_000_000, Seconds(1, 2, 3, 4, 5), worker="host:1", peak_bytes=7), **more)
    return at, {"event": "block", **outcome.to_json()}


def record(output: Path, run: int, *lines: tuple[float, dict[str, Any]] | str) -> None:
    """Write the record of a run that started on the day of its number."""
    folder = output / "emseg" / f"run-{run:04d}"
    folder.mkdir(exist_ok=True)
    (folder / "lease.json").write_text('{"released": true}')
    began = BEGAN + timedelta(days=run)
    dated = (
        line if isinstance(line, str) else json.dumps({"at": (began + timedelta(seconds=line[0])).isoformat(), **line[1]})
        for line in lines
    )
    (folder / "00000.jsonl").write_text("".join(f"{line}\n" for line in dated))


def history(output: Path) -> History:
    return read_history(open_output(output), PLAN)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e5), st.integers(0, 10**9)), max_size=60))
def test_voxels_are_spread_and_none_is_lost(blocks: list[tuple[float, float, int]]) -> None:
    speed = Speed()
    for start, length, voxels in blocks:
        speed.add(start, start + length, voxels)
    assert len(speed.voxels) <= MAX_BINS
    assert sum(speed.voxels) == pytest.approx(sum(voxels for *_, voxels in blocks), abs=1e-3)
    assert speed.end <= speed.width * max(1, len(speed.voxels)) * (1 + 1e-9)
    assert len(speed.megavoxels_per_second) == len(speed.voxels)


def test_a_steady_run_has_a_steady_speed() -> None:
    speed = Speed()
    for block in range(1000):
        speed.add(10.0 * block, 10.0 * block + 10, 20_000_000)
    assert speed.width == 128
    assert speed.megavoxels_per_second == pytest.approx([2.0] * 79)


def test_a_block_counts_in_the_seconds_in_which_it_was_computed() -> None:
    speed = Speed()
    speed.add(0.5, 2.5, 4_000_000)
    assert speed.voxels == [1_000_000, 2_000_000, 1_000_000]
    assert speed.megavoxels_per_second == [1, 2, 1], "the last second is a whole one"


def test_runs_follow_one_another_without_the_time_between(output: Path) -> None:
    record(output, 1, started(output), ended(20, 0), ended(40, 1), (90, {"event": "ended", "report": NEVER}))
    record(output, 2, started(output, host="two"), ended(15, 2), ended(30, 3, status="failed", cause="why", worker="host:2"))
    found = history(output)
    assert found.begins == ((1, 0.0), (2, 40.0))
    assert found.speed.end == 55.0
    assert sum(found.speed.voxels) == pytest.approx(3_000_000)
    assert [run.work.done for run in found.runs] == [2, 1]
    assert (found.work.done, found.work.failed, found.work.worker_peak_bytes) == (3, 1, 7)
    assert found.work.phases == Seconds(4, 8, 12, 16, 20)
    assert [run.work.seconds for run in found.runs] == [100.0, 30.0], "as it has told, else until its last block"
    assert found.idle == pytest.approx(1 - 12 / (100 * 1 + 30 * 2))
    assert [run.start.get("host") for run in found.runs] == [None, "two"]
    assert [run.end for run in found.runs] == ["all blocks done", None]


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"failed": 2, "left": 1}, "2 failed, 1 left"),
        ({"left": 3, "signal": 15}, "stopped by SIGTERM: 3 left"),
        ({"unbuilt": 4, "signal": 2}, "stopped by SIGINT: 4 units of coarser levels left"),
        ({"signal": 2}, "all blocks done"),
        ({"left": 1, "signal": 99}, "stopped by 99: 1 left"),
    ],
)
def test_how_a_run_ended(output: Path, report: dict[str, int], words: str) -> None:
    record(output, 1, started(output), (1, {"event": "ended", "report": {**NEVER, **report}}))
    assert [run.end for run in history(output).runs] == [words]


def test_the_slowest_are_those_that_worked_longest(output: Path) -> None:
    times = [3.0, 9.0, 1.0, 7.0]
    blocks = [ended(n, n % len(PLAN), seconds=Seconds(predict=times[n % 4] + n / 100, wait=100 - n)) for n in range(40)]
    record(output, 1, started(output), *blocks)
    found = history(output).slowest
    spent = [slow.outcome.seconds.predict for slow in found]
    expected = sorted((times[n % 4] + n / 100 for n in range(40)), reverse=True)[:MAX_SLOW_BLOCKS]
    assert spent == expected
    assert found[0].box == str(PLAN.block(found[0].outcome.block).write)


def test_another_outputs_blocks_do_not_count(output: Path) -> None:
    record(output, 1, (0, {"event": "started", "fingerprint": "of before"}), ended(5, 0), ended(6, 10**6))
    found = history(output)
    assert (found.runs[0].current, found.work.done, found.speed.voxels, found.slowest) == (False, 0, [], ())
    assert found.runs[0].lost == 0


def test_damaged_lines_are_counted(output: Path) -> None:
    good = ended(1, 0)[1]
    damaged = [
        {**good, **change} for change in ({"block": len(PLAN)}, {"voxels": -1}, {"seconds": {"read": "x"}}, {"status": 1})
    ]
    damaged += [{"event": "ended", "report": [1]}, {"event": "ended", "report": {**NEVER, "seconds": float("inf")}}]
    damaged += [{"event": "retried", "block": "x", "cause": ""}, {"event": "noticed"}, {"no": "event"}]
    record(output, 1, started(output), *((1.0, line) for line in damaged), "{torn", '"text"', ended(2, 1), '{"event": "block"}')
    (run,) = history(output).runs
    assert (run.lost, run.work.done, run.end) == (len(damaged) + 3, 1, None)


def test_a_lease_without_a_record_is_no_run(output: Path) -> None:
    record(output, 1, started(output), (1, {"event": "noticed", "message": "slow disk"}))
    (output / "emseg" / "run-0002").mkdir()
    (output / "emseg" / "run-0002" / "lease.json").write_text('{"released": true}')
    (run,) = history(output).runs
    assert (run.number, run.notices) == (1, ("slow disk",))
