"""Test that the page, JSON and metrics of a run agree with `emseg status`."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dashboards import Door
from distributed import Client
from runs import PLANAR, run_emseg, save_random_model, save_volume, shards, texture

from emseg.clusters.local import LOOPBACK, local_cluster
from emseg.dashboard import reporter
from emseg.dashboard.board import RunDescription
from emseg.dashboard.drawing import MAX_SLICE_PIXELS, draw_slice
from emseg.flows.segment import segment
from emseg.flows.status import status
from emseg.runs.events import BlockEnded, Event, Noticed, RunEnded, RunStarted
from emseg_core.box import Box
from emseg_core.errors import OutputError, PlanError
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (25, 77, 79)
METRIC = re.compile(r"^(emseg_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume and a model."""
    folder = tmp_path_factory.mktemp("dashboard")
    save_volume(folder / "volume.zarr", texture(SHAPE))
    save_random_model(folder / "model.safetensors", PLANAR)
    return folder


@contextmanager
def scheduler(folder: Path, *words: str, **environment: str) -> Iterator[str]:
    """Start a scheduler in a separate process, with one worker, and return its address."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    dask, place = (sys.executable, "-m", "dask"), ("--scheduler-file", str(file))
    commands = [
        (*dask, "scheduler", "--host", LOOPBACK, "--port", "0", *words, *place),
        (*dask, "worker", "--nthreads", "2", "--no-nanny", "--no-dashboard", "--death-timeout", "30", *place),
    ]
    quiet: dict[str, Any] = {"cwd": folder, "stderr": subprocess.DEVNULL, "env": {**os.environ, **environment}}
    processes = [subprocess.Popen(command, **quiet) for command in commands]
    try:
        with Client(scheduler_file=str(file), timeout="30s") as client:
            address = client.scheduler_info()["address"]
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


def get(link: str, path: str) -> str:
    """Return what the dashboard behind a link shows at a path."""
    return Door.of(link).text(path)


def newest(started: RunStarted) -> dict[str, Any]:
    """Return what the page knows of the newest run."""
    assert started.map is not None
    return dict(json.loads(get(started.map, "/json/emseg.json"))["runs"][-1])


def metrics(started: RunStarted) -> dict[tuple[str, str], float]:
    """Return each number on /metrics by its name and its state or stage."""
    assert started.map is not None
    found = {}
    for name, labels, value in METRIC.findall(get(started.map, "/metrics")):
        what = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if what["output"] == str(started.output):
            found[name, what.get("state") or what.get("stage", "")] = float(value)
    return found


def test_what_the_page_knows_is_what_status_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They agree during a run and at its end, on emseg's own cluster."""
    monkeypatch.setattr(reporter, "UPDATE_SECONDS", 0.0)
    output = folder / "own.zarr"
    started: list[RunStarted] = []
    stages: list[float] = []
    looks = 0

    def watch(event: Event) -> None:
        nonlocal looks
        match event:
            case RunStarted():
                started.append(event)
                assert event.map == event.dashboard.replace("/status", "/emseg")  # type: ignore[union-attr]
            case BlockEnded(outcome):
                stages.append(outcome.seconds.predict)
                if len(stages) % 8 != 3:
                    return
                page, told = newest(started[0]), status(output)
                looks += 1
                assert (page["blocks"], page["done"], page["failed"]) == (told.blocks, len(stages), 0)
                assert page["waiting"] + page["running"] + page["done"] == page["blocks"]
                assert 0 <= told.done - page["done"] <= 4 * 2, "blocks that are written, and not yet told of"
                assert not page["over"]
            case RunEnded():
                page, told = newest(started[0]), status(output)
                assert page["over"]
                assert (page["blocks"], page["done"], page["failed"], page["waiting"]) == (told.blocks, told.done, 0, 0)
                text = get(started[0].map or "", "/emseg")
                assert "emseg" in text
                assert re.findall(r'(?:src|href)="https?://(?!127)[^"]*"', text) == [
                    'href="https://dask.org/"',
                    'href="https://docs.dask.org/en/stable/"',
                ], "links for people alone"
                assert 'href="emseg"' in get(started[0].dashboard or "", "/status"), "other pages link to ours"
                numbers = metrics(started[0])
                assert numbers["emseg_blocks", "done"] == told.done
                assert numbers["emseg_voxels_total", ""] == 25 * 77 * 79
                assert numbers["emseg_failures_total", ""] == 0
                assert numbers["emseg_stage_seconds_total", "predict"] == pytest.approx(sum(stages))

    with local_cluster(2, 2) as client:
        segment(folder / "volume.zarr", output, model=folder / "model.safetensors", client=client, on_event=watch)
    assert looks >= 2
    assert len(stages) == status(output).blocks >= 24


def test_a_scheduler_of_others(folder: Path, tmp_path: Path) -> None:
    """It is in another process, outlives the run, and shows failed blocks and several runs."""
    volume = save_volume(tmp_path / "volume.zarr", texture(SHAPE))
    started: list[RunStarted] = []

    def watch(event: Event) -> None:
        if isinstance(event, RunStarted):
            started.append(event)
            for chunk in (volume / "c" / "4").rglob("*"):  # the last slices, after they were sampled
                if chunk.is_file():
                    chunk.write_bytes(b"no chunk")

    def run(name: str) -> dict[str, Any]:
        model = folder / "model.safetensors"
        report = segment(volume, tmp_path / name, model=model, scheduler=address, on_event=watch, roi=region)
        page, told = newest(started[-1]), json.loads(run_emseg("status", tmp_path / name, "--json").stdout)
        assert page["over"]
        assert page["failed"] == len(told["failed"]) == report.failed
        assert (page["blocks"], page["done"], page["waiting"]) == (told["blocks"], told["done"], told["left"])
        assert metrics(started[-1])["emseg_blocks", "failed"] == report.failed
        assert metrics(started[-1])["emseg_failures_total", ""] == report.failed
        get(started[-1].map or "", "/emseg")
        return page

    with scheduler(tmp_path, "--dashboard-address", f"{LOOPBACK}:0") as address:
        region = "8:25,:,:"
        assert run("failed.zarr")["failed"] >= 1
        region = "0:8,:,:"
        (volume / "c" / "4").rename(tmp_path / "away")
        assert run("sound.zarr")["failed"] == 0
        runs = json.loads(get(started[-1].map or "", "/json/emseg.json"))["runs"]
    assert [Path(known["output"]).name for known in runs] == ["failed.zarr", "sound.zarr"]


def test_a_scheduler_that_has_forgotten_the_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restarted scheduler is like this. It gets all information again."""
    monkeypatch.setattr(reporter, "UPDATE_SECONDS", 0.0)
    pages: list[dict[str, Any]] = []
    started: list[RunStarted] = []

    def watch(event: Event) -> None:
        match event:
            case RunStarted():
                started.append(event)
            case BlockEnded():
                pages.append(newest(started[0]))
                if len(pages) == 5:
                    client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.extensions["emseg"].known.clear())

    with local_cluster(1, 2) as client:
        segment(
            folder / "volume.zarr", tmp_path / "out.zarr", model=folder / "model.safetensors", client=client, on_event=watch
        )
    assert [page["done"] for page in pages] == list(range(1, len(pages) + 1))


@pytest.mark.parametrize(("lacking", "why"), [("a dashboard", "the scheduler has no dashboard"), ("our page", "dashboard")])
def test_a_scheduler_that_shows_no_map(lacking: str, why: str, folder: Path, tmp_path: Path) -> None:
    """The run reports this and continues."""
    said: list[str] = []

    def watch(event: Event) -> None:
        match event:
            case Noticed(message):
                said.append(message)
            case RunStarted():
                assert event.map is None

    hide = "import sys\nif 'scheduler' in sys.orig_argv: sys.modules['emseg.dashboard'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hide if lacking == "our page" else "")
    words = ("--no-dashboard",) if lacking == "a dashboard" else ("--dashboard-address", f"{LOOPBACK}:0")
    with scheduler(tmp_path, *words, PYTHONPATH=str(tmp_path)) as address:
        model, region, output = folder / "model.safetensors", "0:4,:,:", tmp_path / "out.zarr"
        report = segment(folder / "volume.zarr", output, model=model, roi=region, scheduler=address, on_event=watch)
    assert report.exit_code == 0
    (message,) = [message for message in said if "no map of blocks" in message]
    assert why in message


def test_a_performance_report_needs_nothing_from_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report.html"
    modes = []

    def watched(*place: Any, **more: Any) -> Any:
        if not more.get("dir"):  # others are not files of Dask: the token's file has its folder in the name
            modes.append(stat.S_IMODE(Path(tempfile.gettempdir()).stat().st_mode))
        return made(*place, **more)

    made = tempfile.mkstemp
    monkeypatch.setattr(tempfile, "mkstemp", watched)
    segment(
        folder / "volume.zarr",
        tmp_path / "out.zarr",
        model=folder / "model.safetensors",
        roi="0:4,:,:",
        workers=1,
        performance_report=file,
    )
    assert modes, "Dask has made it in a temporary file"
    assert set(modes) == {0o700}
    text = file.read_text()
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", text.partition("<body")[0])
    assert tags
    assert [tag for tag in tags if re.search(r'(?:src|href)="?(?:https?:)?//', tag)] == []
    assert re.findall(r"<script[^>]*\bsrc=", text) == []
    assert "Dask Performance Report" in text
    assert "segment" in text, "the tasks of blocks"
    assert str(Path(__file__).parent) not in text, "nobody's source is told"


def test_a_performance_report_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    inputs: dict[str, Any] = {"model": folder / "model.safetensors", "roi": "0:4,:,:"}
    with pytest.raises(PlanError, match="0 workers"):
        segment(folder / "volume.zarr", tmp_path / "out.zarr", workers=0, performance_report="r.html", **inputs)
    with pytest.raises(OutputError, match="cannot be written"):
        segment(
            folder / "volume.zarr", tmp_path / "out.zarr", workers=1, performance_report=tmp_path / "no" / "r.html", **inputs
        )
    assert list(tmp_path.iterdir()) == []
    done = run_emseg(
        "run", folder / "volume.zarr", "-o", tmp_path / "out.zarr", "--workers", 0, "--performance-report", "r.html"
    )
    assert done.returncode == 2
    assert "--performance-report" in done.stderr


def test_the_newest_slice(folder: Path, tmp_path: Path) -> None:
    """It shows raw beside labels around the block, reduced to a few pixels."""
    volume, out = save_volume(tmp_path / "volume.zarr", texture((3, 700, 90))), tmp_path / "out.zarr"
    segment(volume, out, model=folder / "model.safetensors", workers=0)
    stored = open_output(out)
    region, unit = stored.region, stored.unit
    description = RunDescription("run", str(volume), str(out), region, (1, 1, 1), unit, (1, 1, 1), b"")
    raw, both, box = draw_slice(description, region)
    assert raw.shape == both.shape == (234, 30)
    assert max(raw.shape) <= MAX_SLICE_PIXELS
    assert str(box) == "1:2,0:700,0:90"
    assert len({*raw.ravel().tolist()}) > 50
    labels = stored.read_labels(box)[0, ::3, ::3]
    assert ((raw == both) == (labels == 0)).mean() > 0.99
    block = Box((0, 512, 80), (3, 528, 90))
    assert str(draw_slice(description, block)[2]) == "1:2,392:648,0:90"
    for shard in shards(out):
        shard.unlink()
    raw, both, _ = draw_slice(description, block)
    assert (raw == both).all(), "what is not computed has no colour"
    with pytest.raises(OutputError, match="/nowhere"):
        draw_slice(replace(description, output="/nowhere"), box)
