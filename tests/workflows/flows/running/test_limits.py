"""Test that what does not fit is refused with both sizes in the message."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from runs import PLANAR, plan_of, save_random_model, save_volume, shards, snapshot, texture

from emseg.executors.serial import SerialExecutor
from emseg.flows.records.run_log import recipe_of
from emseg.flows.running.limits import check_chunks, check_gpus, check_memory, check_space
from emseg.flows.segment import segment
from emseg.runs.events import Event, Noticed
from emseg.tasks import trial
from emseg_core.errors import DeviceError, OutputError, PlanError, VolumeError
from emseg_core.grid.cost import Cost, cost_of
from emseg_core.grid.plan import Plan
from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.model.device import Gpu
from emseg_core.specs.model import FLOAT32_BYTES
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.volumes.volume import open_volume

LARGE = VolumeSpec((2048, 2048, 2048), "uint8", (1024, 1024, 1024))


def test_chunks() -> None:
    check_chunks(LARGE, Path("v.zarr"), 2 * 2**30)
    with pytest.raises(VolumeError, match=r"1024 x 1024 x 1024 voxels, 1\.0 GiB, but a worker has 1\.9 GiB.*fewer workers"):
        check_chunks(LARGE, Path("v.zarr"), int(1.9 * 2**30))
    both = replace(LARGE, channel=1, together=2)
    with pytest.raises(VolumeError, match=r"2 x 1024 x 1024 x 1024 voxels, 2\.0 GiB, but a worker has 3\.9 GiB"):
        check_chunks(both, Path("v.zarr"), int(3.9 * 2**30))
    with pytest.raises(VolumeError, match="but this machine has"):
        check_chunks(VolumeSpec((2**20,) * 3, "uint8", (2**17,) * 3), Path("v.zarr"))


def small_plan() -> tuple[Plan, Cost]:
    plan = plan_of((7, 29, 31), PLANAR)
    return plan, cost_of(plan, VolumeSpec((7, 29, 31), "uint8", (5, 16, 16)), False)


def test_memory() -> None:
    plan, cost = small_plan()
    check_memory(cost, None, plan, 1)
    check_memory(cost, cost.bytes_per_worker, plan, 1)
    with pytest.raises(PlanError, match="use fewer workers than 3"):
        check_memory(cost, cost.bytes_per_worker - 1, plan, 3)


def test_two_workers_on_one_gpu() -> None:
    plan, cost = small_plan()
    one, two = Gpu("GPU-1", "H100", 2**30), Gpu("GPU-2", "H100", 2**30)
    check_gpus({}, 1, cost, plan, "cpu")
    check_gpus({"a": one, "b": two}, 1, cost, plan, "cuda")
    check_gpus({"a": one, "b": two, "c": one}, 2, cost, plan, "cuda")
    with pytest.raises(DeviceError, match=r"workers a and c share the GPU GPU-1, but at most 1 may.*--workers-per-gpu 2"):
        check_gpus({"a": one, "b": two, "c": one}, 1, cost, plan, "cpu")


def test_memory_of_a_gpu() -> None:
    plan, cost = small_plan()
    needed = FLOAT32_BYTES * PLANAR.parameters + plan.batch * PLANAR.activation_bytes(plan.tile)
    assert cost.bytes_per_predictor == needed
    just, short = Gpu("GPU-1", "H100", needed), Gpu("GPU-2", "H100", needed - 1)
    check_gpus({"a": just}, 1, cost, plan, "cuda")
    check_gpus({"a": short}, 1, cost, plan, "cpu")
    with pytest.raises(PlanError, match=r"the GPU H100 \(GPU-2\) has 0.0 GiB free for it: run on a GPU with more memory free"):
        check_gpus({"a": just, "b": short}, 1, cost, plan, "cuda")
    with pytest.raises(PlanError, match="run with --workers-per-gpu 1 instead of 2"):
        check_gpus({"a": just, "b": just}, 2, cost, plan, "cuda")


def test_space(tmp_path: Path) -> None:
    check_space(tmp_path / "out.zarr", 10**6)
    with pytest.raises(OutputError, match="before compression, but only"):
        check_space(tmp_path / "out.zarr", 10**18)


def test_a_worker_too_small_for_a_chunk_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is checked before anything is written."""
    volume, model = save_volume(tmp_path / "v.zarr", texture((7, 29, 31))), save_random_model(tmp_path / "m", PLANAR)
    monkeypatch.setattr(SerialExecutor, "memory", 2 * 5 * 16 * 16 - 1)
    before = snapshot(tmp_path)
    with pytest.raises(VolumeError, match="a chunk of"):
        segment(volume, model=model, workers=0)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("tta", [False, True])
def test_blocks_are_made_smaller_where_a_predictor_is_slow(tta: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None runs longer than ten minutes. The plan is stored, and a resumed run uses it."""
    volume, model = save_volume(tmp_path / "v.zarr", texture((7, 61, 63))), save_random_model(tmp_path / "m", PLANAR)
    usual = segment(volume, tmp_path / "usual", model=model, tta=tta, workers=0)
    plan = recipe_of(open_output(tmp_path / "usual")).plan
    mean = cost_of(plan, open_volume(volume).spec, False, tta).flops / len(plan)
    monkeypatch.setattr(trial, "speed_of", lambda predictor, tile: mean / 600 / 3)
    events: list[Event] = []
    slow = segment(volume, tmp_path / "slow", model=model, tta=tta, workers=0, on_event=events.append)
    assert slow.blocks > usual.blocks
    smaller = recipe_of(open_output(tmp_path / "slow")).plan
    assert math.prod(smaller.unit) < math.prod(plan.unit)
    assert any("GFLOP/s here: blocks are made smaller" in event.message for event in events if isinstance(event, Noticed))
    for array in ("usual", "slow"):
        assert (open_output(tmp_path / array).read_labels(plan.region) != NOT_COMPUTED).all()
    monkeypatch.undo()
    shards(tmp_path / "slow")[0].unlink()
    again = segment(volume, tmp_path / "slow", model=model, tta=tta, workers=0)
    assert (again.blocks, again.done, again.exit_code) == (slow.blocks, 1, 0)
