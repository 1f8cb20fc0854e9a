"""Test estimated costs by counting: every tile and chunk is listed, every allocation is traced."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from fakes import AS_IS, ArrayVolume, LocalMean, SayingPredictor, context_of, plan_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import chunk_voxels, hull
from strategies import boxes_in, model_specs, shapes, triples, valid_tiles

from emseg_core.block import BlockContext, read_seen, segment_block
from emseg_core.box import Box, Triple
from emseg_core.grid import reading
from emseg_core.grid.blocks import Block
from emseg_core.grid.cost import BLOCKS_IN_FLIGHT, RUNTIME_BYTES, cache_bytes, cost_of
from emseg_core.grid.layout import plan_volume
from emseg_core.grid.mirror import reflect
from emseg_core.grid.plan import Plan
from emseg_core.grid.symmetry import SymmetricPredictor
from emseg_core.outcome import Outcome
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.volume import DTYPES, VolumeSpec

PLANAR = ModelSpec.unet(width=8, depth=2)
SOLID = ModelSpec.unet(width=8, depth=2, kernel=(3, 3, 3), pooling=(2, 2, 2))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Plan, VolumeSpec]:
    """Draw any plan by hand, and a volume in chunks of any shape."""
    model, shape = draw(model_specs(most_flops=10**5)), draw(shapes(30))
    volume = VolumeSpec(shape, draw(st.sampled_from(DTYPES)), draw(triples(st.integers(3, 40))))
    unit = draw(triples(st.integers(4, 30)))
    return plan_by_hand(model, shape, unit, draw(valid_tiles(model)), draw(boxes_in(shape))), volume


@given(cases(), st.booleans())
@settings(max_examples=150)
def test_costs_are_what_counting_gives(case: tuple[Plan, VolumeSpec], probabilities: bool) -> None:
    plan, volume = case
    tiles = sum(1 for block in plan for _ in plan.tiles(block))
    cost = cost_of(plan, volume, probabilities)
    assert cost.blocks == len(list(plan))
    assert cost.tiles == tiles
    assert cost.flops == tiles * plan.model.flops(plan.tile)
    assert cost.bytes_needed == sum(block.write.voxels for block in plan) * np.dtype(volume.dtype).itemsize
    arrays = 1 + len(plan.model.classes) * probabilities
    assert cost.output_bytes == sum(block.write.voxels for block in plan) * arrays
    assert cost.output_files == len(plan) * (1 + probabilities)


@pytest.mark.parametrize("model", [ModelSpec.unet(width=1, depth=1), ModelSpec.unet(width=1, depth=0, kernel=(3, 3, 3))])
def test_test_time_augmentation_costs_what_the_network_then_does(model: ModelSpec) -> None:
    shape: Triple = (5, 60, 44)
    volume = VolumeSpec(shape, "uint8", (8, 8, 8))
    plan = plan_by_hand(model, shape, (3, 33, 40), model.tile_for((2, 16, 16)))
    network = LocalMean(model)
    context = context_of(ArrayVolume(np.zeros(shape, np.uint8)), SymmetricPredictor(network), plan)
    for block in plan:
        assert segment_block(context, block).cause is None
    cost, plain = cost_of(plan, volume, True, tta=True), cost_of(plan, volume, True)
    assert cost.flops == sum(network.batches) * model.flops(plan.tile)
    assert replace(cost, flops=plain.flops) == plain


@given(cases())
@settings(max_examples=100)
def test_bytes_read_are_the_chunks_that_the_blocks_really_read(case: tuple[Plan, VolumeSpec]) -> None:
    """Each block is run, the reader records its requests, and the chunks of these are listed one by one."""
    plan, spec = case
    volume = ArrayVolume(np.zeros(spec.shape, spec.dtype), spec.chunk)
    context = context_of(volume, SayingPredictor(plan.model, (1.0,) * len(plan.model.classes)), plan, probabilities=False)
    for block in plan:
        assert segment_block(context, block).cause is None
    each = sum(chunk_voxels(box, spec.shape, spec.chunk) for box in volume.reads) * spec.itemsize
    once = chunk_voxels(hull(volume.reads), spec.shape, spec.chunk) * spec.itemsize
    with pytest.MonkeyPatch.context() as patch:
        for bound, read in ((0, each), (10**9, once)):  # the tests of the order cover what lies between
            patch.setattr(reading, "CACHE_BYTES", bound)
            assert cost_of(plan, spec, probabilities=False).bytes_read == read


@pytest.mark.parametrize("model", [PLANAR, SOLID])
@pytest.mark.parametrize("shape", [(30, 200, 130), (1, 400, 400), (90, 90, 90), (13, 200, 50)])
def test_bytes_read_of_a_planned_run(model: ModelSpec, shape: Triple, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = VolumeSpec(shape, "uint16", (16, 32, 32))
    monkeypatch.setattr(reading, "CACHE_BYTES", 0)
    for region in (None, Box((0, 17, 3), (shape[0], shape[1] - 9, shape[2]))):
        plan = plan_volume(volume, model, region)
        sources = [reflect(plan.read_box(block), shape).source for block in plan]
        read = sum(chunk_voxels(source, shape, volume.chunk) for source in sources)
        assert cost_of(plan, volume, probabilities=True).bytes_read == read * volume.itemsize


def traced(do: Callable[[], object]) -> int:
    """Return the peak bytes of NumPy arrays alive at once during a call."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        do()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def add_outcome(outcomes: list[Outcome], context: BlockContext, block: Block) -> None:
    outcomes.append(segment_block(context, block))


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    ("model", "shape", "unit", "middle"),
    [
        (PLANAR, (12, 480, 480), (12, 160, 160), 4),
        (SOLID, (1, 300, 300), (1, 100, 100), 4),
        (SOLID, (100, 100, 100), (32, 32, 32), 21),
    ],
)
def test_a_block_stays_within_the_memory_of_its_worker(
    model: ModelSpec, shape: Triple, unit: Triple, middle: int, dtype: str, probabilities: bool
) -> None:
    """NumPy's arrays are measured in a corner, where most is mirrored, and inside. Those of the predictor have no size here."""
    tile = model.tile_for((min(unit[0], 4), 32, 32))
    plan = plan_by_hand(model, shape, unit, tile)
    volume = ArrayVolume(np.zeros(shape, dtype))
    context = context_of(volume, SayingPredictor(model, (0.0, 1.0)), plan, probabilities=probabilities)
    activations = model.activation_bytes(tile)
    fixed = RUNTIME_BYTES + 4 * model.parameters + activations + cache_bytes(volume.spec)
    said = (cost_of(plan, volume.spec, probabilities).bytes_per_worker - fixed) / BLOCKS_IN_FLIGHT
    for index in (0, middle):
        block = plan.block(index)
        read = traced(partial(read_seen, volume, AS_IS, plan.read_box(block)))
        assert read <= said
        outcomes: list[Outcome] = []
        peak = traced(partial(add_outcome, outcomes, context, block))
        assert said / 3 < peak <= said + activations
        assert outcomes[0].cause is None


def test_a_worker_keeps_chunks_up_to_the_bound_and_none_that_are_larger() -> None:
    chunk = (64, 64, 64)
    assert cache_bytes(VolumeSpec((100, 100, 100), "uint16", chunk)) == 2 * 10**6
    assert cache_bytes(VolumeSpec((4096,) * 3, "uint8", chunk)) == reading.CACHE_BYTES
    assert cache_bytes(VolumeSpec((4096,) * 3, "float32", (512,) * 3)) == 0
    assert cache_bytes(VolumeSpec((64, 64, 64), "float32", (512,) * 3)) == 2**20


def test_json_has_the_share_that_is_needed() -> None:
    volume = VolumeSpec((1, 400, 400), "uint8", (1, 64, 64))
    cost = cost_of(plan_volume(volume, PLANAR), volume, probabilities=True)
    data = cost.to_json()
    assert data.pop("bytes_read_per_needed") == pytest.approx(cost.bytes_read / 160_000)
    assert type(cost)(**data) == cost
