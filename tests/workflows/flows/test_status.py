"""Test that status reports the progress of an output: during a run, after a kill, after failed blocks, at the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from runs import PLANAR, emseg_process, run_emseg, save_random_model, save_volume, shards, snapshot, texture

from emseg.flows import status as module
from emseg.flows.records.run_log import recipe_of
from emseg.flows.segment import segment
from emseg.flows.status import MAX_POLLING_FRACTION, status, watch
from emseg.runs.tally import MAX_SHOWN, Failure
from emseg_core.errors import OutputError
from emseg_core.store.files.lease import Holder, take_lease
from emseg_core.store.outputs.lifecycle import open_output

UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
BEGAN = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume, a model, and the output of a finished run."""
    folder = tmp_path_factory.mktemp("status")
    save_volume(folder / "volume.zarr", texture((9, 61, 67)))
    save_random_model(folder / "model.safetensors", PLANAR)
    report = segment(folder / "volume.zarr", folder / "ended.zarr", model=folder / "model.safetensors", workers=0)
    assert report.blocks >= 4
    return folder


@pytest.fixture
def output(folder: Path, tmp_path: Path) -> Path:
    """Make a copy of the output."""
    return Path(shutil.copytree(folder / "ended.zarr", tmp_path / "out.zarr"))


def hold(output: Path, run: int, holder: Holder, *, released: bool = False) -> None:
    """Take a lease for another process."""
    place = output / "emseg" / f"run-{run:04d}" / "lease.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps({"holder": asdict(holder), "beats": 1, "released": released}))


def record(output: Path, run: int, *lines: dict[str, Any] | str) -> None:
    """Write the record of a run with one line per second. The run is over unless its lease says otherwise."""
    folder = output / "emseg" / f"run-{run:04d}"
    if not (folder / "lease.json").exists():
        hold(output, run, Holder.here(), released=True)
    dated = (
        line if isinstance(line, str) else json.dumps({"at": (BEGAN + timedelta(seconds=number)).isoformat(), **line})
        for number, line in enumerate(lines)
    )
    (folder / "00000.jsonl").write_text("".join(f"{line}\n" for line in dated))


def started(output: Path, **more: Any) -> dict[str, Any]:
    fingerprint = open_output(output).attributes["fingerprint"]
    return {"event": "started", "volume": "/data/v.zarr", "model": "/data/m.safetensors", "fingerprint": fingerprint, **more}


def ended(block: int, state: str = "done", **more: Any) -> dict[str, Any]:
    return {"event": "block", "block": block, "status": state, "voxels": 1_000_000, "cause": None, **more}


def test_ended(folder: Path) -> None:
    found = status(folder / "ended.zarr")
    blocks = len(shards(folder / "ended.zarr"))
    assert (found.blocks, found.done, found.failed, found.left) == (blocks, blocks, (), 0)
    assert (found.run, found.runs, found.state, found.running) == (1, 1, "released", False)
    assert (found.volume, found.model) == (str(folder / "volume.zarr"), str(folder / "model.safetensors"))
    assert found.last_activity is not None
    assert datetime.now(UTC) - datetime.fromisoformat(found.last_activity) < timedelta(hours=1)
    assert found.megavoxels_per_second is None


def test_while_a_run_goes_on(output: Path) -> None:
    files = shards(output)
    files[0].unlink()
    files[3].unlink()
    record(output, 2, started(output), ended(1), ended(2), {"event": "noticed", "message": "slow"}, ended(4))
    stored = open_output(output)
    with take_lease(stored.records, output).held():
        before = snapshot(output)
        found = status(output)
        assert snapshot(output) == before
    assert (found.state, found.run, found.seen < 60) == ("held", 3, True)
    assert found.holder == str(Holder.here())
    assert (found.done, found.left) == (len(files) - 2, 2)


def test_speed_and_time_left(output: Path) -> None:
    files = shards(output)
    for file in files[: len(files) // 2]:
        file.unlink()
    hold(output, 2, Holder.here())
    record(output, 2, started(output), ended(1), ended(2), ended(3, "failed"), ended(4))
    found = status(output)
    assert found.megavoxels_per_second == 3 / 4
    left = 1 - found.done / found.blocks
    assert found.seconds_left == pytest.approx(recipe_of(open_output(output)).plan.region.voxels * left / 0.75e6)
    assert "0.75 Mvoxel/s" in str(found)


def test_speed_is_that_of_the_last_minutes(output: Path) -> None:
    hold(output, 2, Holder.here())
    later = (BEGAN + timedelta(hours=1)).isoformat()
    last = (BEGAN + timedelta(hours=1, seconds=2)).isoformat()
    record(output, 2, started(output), ended(0), ended(1, at=later), ended(2, at=last))
    assert status(output).megavoxels_per_second == 0.5


def test_a_run_that_has_only_begun_has_no_speed(output: Path) -> None:
    hold(output, 2, Holder.here())
    record(output, 2, started(output))
    assert (status(output).running, status(output).megavoxels_per_second) == (True, None)


def test_after_a_kill(output: Path) -> None:
    shards(output)[0].unlink()
    hold(output, 2, replace(Holder.here(), born="another process of this number"))
    found = status(output)
    assert (found.state, found.running, found.left) == ("dead", False, 1)
    assert ", died" in str(found)
    assert found.runs == 1


def test_a_host_that_is_away_is_dead_after_a_while(output: Path) -> None:
    hold(output, 2, Holder("node17", "another boot", 4711, "1"))
    assert status(output).state == "held"
    lease = output / "emseg/run-0002/lease.json"
    then = lease.stat().st_mtime - 300
    os.utime(lease, (then, then))
    found = status(output)
    assert found.state == "dead"
    assert found.holder == "process 4711 on node17"
    assert 290 < found.seen < 400


def test_failed_blocks_are_those_that_failed_last(output: Path) -> None:
    files = shards(output)
    for index in (0, 1, 2, 3):
        files[index].unlink()
    record(output, 2, started(output), ended(0, "failed", cause="bad voxel"), ended(1, "failed", cause="x"), ended(2))
    record(output, 3, started(output), ended(1), ended(2, "failed", cause="disk full"), ended(4, "failed", cause="old"))
    found = status(output)
    assert [(failure.block, failure.cause) for failure in found.failed] == [(0, "bad voxel"), (2, "disk full")]
    assert found.failed[1].box == str(recipe_of(open_output(output)).plan.block(2).write)
    assert (found.left, found.done) == (2, len(files) - 4)
    assert found.failed[0].box in str(found)


def test_records_of_a_former_output_do_not_count(output: Path) -> None:
    shards(output)[0].unlink()
    record(output, 2, started(output, fingerprint="another", volume="/old"), ended(0, "failed", cause="old"))
    found = status(output)
    assert (found.failed, found.left, found.runs) == ((), 1, 2)
    assert found.volume != "/old"


def test_damaged_lines_are_left_out(output: Path) -> None:
    shards(output)[0].unlink()
    odd: list[dict[str, Any] | str] = [
        "{",
        "[1]",
        '{"event": "block"}',
        '{"event": "block", "block": "0", "status": "failed"}',
        '{"event": "started", "volume": 3}',
        ended(0, at="yesterday"),
        ended(0, at="2024-01-01T00:00:00"),
        ended(10**9, "failed"),
        ended(-1, "failed"),
    ]
    record(output, 2, started(output), *odd)
    assert status(output).failed == ()
    record(output, 2, *odd, started(output), ended(0, "failed", cause=None))
    assert [failure.cause for failure in status(output).failed] == ["unknown"]


def test_without_any_record(output: Path) -> None:
    shutil.rmtree(output / "emseg" / "run-0001")
    found = status(output)
    assert (found.run, found.runs, found.state, found.last_activity, found.volume) == (0, 0, "released", None, None)
    assert found.done == found.blocks
    assert "not recorded" in str(found)


def test_text_names_some_and_counts_the_others(folder: Path) -> None:
    found = status(folder / "ended.zarr")
    many = replace(found, blocks=100, failed=(Failure(0, "0:1,0:1,0:1", "bad voxel"),) * (MAX_SHOWN + 5))
    lines = [line for line in str(many).splitlines() if line.startswith("failed")]
    assert len(lines) == MAX_SHOWN + 1
    assert "and 5 more" in lines[-1]
    assert len(many.to_json()["failed"]) == MAX_SHOWN + 5


def test_no_output_is_refused(folder: Path) -> None:
    for place in ("volume.zarr", "nothing"):
        with pytest.raises(OutputError):
            status(folder / place)
    done = run_emseg("status", "volume.zarr", cwd=folder)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "not an output" in line


def test_the_command(output: Path) -> None:
    shards(output)[0].unlink()
    done = run_emseg("status", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(shards(output))} of {len(shards(output)) + 1} done, 0 failed, 1 left" in done.stdout


def test_watching_until_the_run_ends(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a look takes, most of the time is left to other processes."""
    stored = open_output(output)
    slept: list[float] = []
    clock = iter(range(0, 100, 3))
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    monkeypatch.setattr(module, "sleep", slept.append)
    looks = []
    with take_lease(stored.records, output).held() as lease:
        for found in watch(output, 5.0):
            looks.append(found.state)
            if len(looks) == 2:
                lease._stop()
                lease._put(released=True)
    assert looks == ["held", "held", "released"]
    assert slept == [3 / MAX_POLLING_FRACTION] * 2


def test_watching_what_does_not_run(output: Path) -> None:
    done = run_emseg("status", output, "--watch")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("output ") == 1
    shards(output)[0].unlink()
    done = run_emseg("status", output, "--watch", "0.1", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["left"] == 1


def test_watching_is_interrupted(output: Path) -> None:
    stored = open_output(output)
    with take_lease(stored.records, output).held():
        process = emseg_process("status", output, "--watch", "0.1", "--json")
        assert process.stdout is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())["running"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can give up its rights")
def test_an_output_that_may_only_be_read(output: Path) -> None:
    hold(output, 2, Holder.here())
    for place in (output, *output.rglob("*")):
        place.chmod(0o555 if place.is_dir() else 0o444)
    command: list[str | Path] = [*UNPRIVILEGED, sys.executable, "-m", "emseg", "status", output, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    for place in (output, *output.rglob("*")):
        place.chmod(0o755)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["state"], found["run"]) == ("held", 2)
    assert 0 <= found["seen"] < 60
    assert found.keys() == {
        *(
            "output",
            "built",
            "outside",
            "units",
            "blocks",
            "done",
            "failed",
            "flaws",
            "left",
            "run",
            "runs",
            "running",
            "state",
            "holder",
            "seen",
        ),
        *(
            "last_activity",
            "volume",
            "model",
            "megavoxels_per_second",
            "seconds_left",
            "job",
            "outside",
            "units",
            "built",
            "unreadable",
        ),
    }
