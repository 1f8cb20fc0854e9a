"""Test that the size of tiles and the number of workers per GPU depend on the machine, not on the number of workers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from emseg import launch
from emseg.launch import MAX_CPU_TILE_BYTES, MAX_GPU_TILE_BYTES, default_workers, tile_budget, with_shared_gpus
from emseg.placement import Placement
from emseg_core.grid.layout import DEFAULT_TILE_BYTES, SMALL_TILE_BYTES

GIB = 2**30


def machine(monkeypatch: pytest.MonkeyPatch, cores: int, memory: int) -> None:
    monkeypatch.setattr(launch, "usable_cores", lambda: cores)
    monkeypatch.setattr(launch, "usable_memory", lambda: memory)


@pytest.mark.parametrize(
    ("cores", "memory", "threads", "budget"),
    [
        (8, 8 * GIB, 1, SMALL_TILE_BYTES),
        (8, 16 * GIB, 1, GIB // 2),
        (2, 24 * GIB, 1, 4 * GIB),
        (64, 512 * GIB, 1, 2 * GIB),
        (64, 512 * GIB, 4, MAX_CPU_TILE_BYTES),
        (1, 4000 * GIB, 1, MAX_CPU_TILE_BYTES),
        (96, GIB, 1, SMALL_TILE_BYTES),
    ],
)
def test_a_third_of_the_memory_of_a_core(
    cores: int, memory: int, threads: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not depend on the number of workers."""
    machine(monkeypatch, cores, memory)
    for workers in (None, 0, 1, 50):
        assert tile_budget(Placement(workers), threads, "cpu") == budget
    assert tile_budget(Placement(adapt=(1, 4)), threads, "cpu") == budget


@pytest.mark.parametrize(
    ("memory", "budget"),
    [
        (None, GIB),
        (8 * GIB, GIB // 2),
        (24 * GIB, GIB),
        (80 * GIB, 4 * GIB),
        (1000 * GIB, MAX_GPU_TILE_BYTES),
        (GIB, SMALL_TILE_BYTES),
    ],
)
def test_a_sixteenth_of_the_memory_of_a_gpu(memory: int | None, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "smallest_gpu_memory", lambda: memory)
    for placement in (Placement(cluster="cuda"), Placement(workers=0), Placement(cluster="cuda", workers_per_gpu=4)):
        assert tile_budget(placement, 1, "cuda") == budget


def test_what_every_machine_has_where_workers_are_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2, 1000 * GIB)
    for placement in (Placement(scheduler="tcp://there:1"), Placement(2, cluster="slurm"), Placement(2, cluster="srun")):
        assert tile_budget(placement, 1, "cpu") == DEFAULT_TILE_BYTES


def test_workers_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are as many as the cores can feed, unless the user sets a number."""
    monkeypatch.setattr(launch, "_cuda", lambda: SimpleNamespace(default_workers_per_gpu=lambda gpus: 3))
    cuda = Placement(cluster="cuda")
    assert cuda.most_per_gpu == 1
    assert with_shared_gpus(cuda).most_per_gpu == 3
    asked = replace(cuda, workers_per_gpu=2)
    assert with_shared_gpus(asked) is asked
    assert with_shared_gpus(Placement()).most_per_gpu == 1


def test_each_core_has_its_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8, 8 * GIB)
    assert [default_workers(threads) for threads in (1, 3, 8, 9)] == [8, 2, 1, 1]
