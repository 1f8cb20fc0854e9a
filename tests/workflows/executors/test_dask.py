"""Test that the Dask executor respects its window and loopback, and recovers when processes die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from distributed import Client, as_completed
from distributed.spans import Span
from runs import PLANAR, bytes_of, save_random_model, save_volume, shape_of_many_blocks, shards, texture

from emseg.clusters.local import local_cluster, running_cluster
from emseg.executors import dask
from emseg.flows.segment import segment
from emseg.runs.dispatch import BLOCKS_PER_THREAD
from emseg.runs.events import BlockEnded, Event, RunStarted, WorkerJoined
from emseg_core.errors import InputError

RELEASED_SECONDS = 10.0
"""Time that the scheduler has to forget tasks that the client has released."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local_cluster(2, 2) as client:
        yield client


def test_the_scheduler_never_knows_more_than_the_window(client: Client, tmp_path: Path) -> None:
    """But for tasks that the client has just released: they leave without a new one."""
    save_volume(tmp_path / "volume.zarr", texture(shape_of_many_blocks(PLANAR)))
    model = save_random_model(tmp_path / "model.safetensors", PLANAR)
    window = BLOCKS_PER_THREAD * sum(client.nthreads().values())
    known, started = [], []

    def tasks() -> int:
        found: list[Any] = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))
        return sum("segment" in str(key) for key in found)

    def watch(event: Event) -> None:
        if isinstance(event, BlockEnded):  # no task is submitted before this returns
            end = monotonic() + RELEASED_SECONDS
            while (count := tasks()) > window and monotonic() < end:
                sleep(0.01)
            known.append(count)
        if isinstance(event, RunStarted):
            started.append(event)

    report = segment(tmp_path / "volume.zarr", model=model, client=client, on_event=watch)
    assert report.exit_code == 0
    assert report.done >= 24
    assert started[0].workers == 2
    assert max(known) <= window
    assert report.blocks > window


def test_the_scheduler_keeps_nothing_of_tasks_that_have_ended(client: Client) -> None:
    """Each block is a separate task, so anything kept per task would be kept ten million times."""

    def kept(dask_scheduler: Any) -> dict[str, int]:
        spans = dask_scheduler.extensions["spans"].spans.values()
        return {
            "metadata": sum(len((span._metadata or {"collections": []})["collections"]) for span in spans),
            "submissions": len(getattr(Span, "_metadata_seen", ())),  # until distributed 2026.7
            "code": sum(len(span._code) for span in spans),
            "metrics": max(len(span._cumulative_worker_metrics) for span in spans),
        }

    def run(tasks: range) -> dict[str, int]:
        for _, result in as_completed([client.submit(abs, task, pure=False) for task in tasks], with_results=True):
            assert result in tasks
        found: dict[str, int] = client.run_on_scheduler(kept)
        return found

    before, after = run(range(10)), run(range(300))
    metrics = after.pop("metrics")
    assert after == {name: before[name] for name in after}
    assert after["metadata"] == after["code"] == 0
    assert metrics < 100  # one for each kind of task and each of its phases


def test_as_many_workers_as_there_are_blocks_for(tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", texture(shape_of_many_blocks(PLANAR)))
    model = save_random_model(tmp_path / "model.safetensors", PLANAR)
    alone, output = tmp_path / "alone.zarr", tmp_path / "out.zarr"
    blocks = segment(tmp_path / "volume.zarr", alone, model=model, workers=0).blocks
    segment(tmp_path / "volume.zarr", output, model=model, workers=0)
    for shard in shards(output)[:2]:
        shard.unlink()
    events: list[Event] = []
    report = segment(tmp_path / "volume.zarr", output, model=model, adapt=(1, 3), on_event=events.append)
    assert (report.exit_code, report.done, report.skipped) == (0, 2, blocks - 2)
    assert [event.workers for event in events if isinstance(event, RunStarted)] == [2]
    assert bytes_of(output) == bytes_of(alone)


@pytest.mark.timeout(60)
def test_a_client_that_is_not_the_newest(client: Client, tmp_path: Path) -> None:
    """Dask would wait on the loop of the newest client, for ever."""
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    model = save_random_model(tmp_path / "model.safetensors", PLANAR)
    with local_cluster(1, 1) as newest:
        assert newest.loop is not client.loop
        assert segment(tmp_path / "volume.zarr", model=model, client=client).exit_code == 0


def test_the_bench_is_released(client: Client, tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    model = save_random_model(tmp_path / "model.safetensors", PLANAR)
    segment(tmp_path / "volume.zarr", model=model, client=client)
    assert set(client.run(lambda: len(dask._contexts)).values()) == {0}


def test_no_scheduler() -> None:
    with pytest.raises(InputError, match="no Dask scheduler answers"), running_cluster("not an address"):
        pass


def test_a_worker_that_hangs_before_it_is_ready(tmp_path: Path) -> None:
    """The others do its share, and the end of the run waits neither for it nor for its restart after half an hour."""
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    model = save_random_model(tmp_path / "model.safetensors", PLANAR)
    with local_cluster(2, 1) as client:
        hanging, _ = client.run(os.getpid).values()
        started: list[Event] = []

        def watch(event: Event) -> None:
            if isinstance(event, RunStarted):
                os.kill(hanging, signal.SIGSTOP)
            started.append(event)

        report = segment(tmp_path / "volume.zarr", model=model, client=client, on_event=watch)
        assert report.exit_code == 0
        assert sum(isinstance(event, WorkerJoined) for event in started) <= 2
