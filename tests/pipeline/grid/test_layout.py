"""Test that the chosen layout is valid for any volume, network, region and tile, and the cheapest of all that are tried."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
from fakes import plan_by_hand
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from oracles import painted
from strategies import boxes_in, model_specs, shapes, triples, valid_tiles

from emseg_core.box import Box, Triple, triple
from emseg_core.errors import PlanError
from emseg_core.grid.cost import cost_of
from emseg_core.grid.layout import (
    BLOCKS_WANTED,
    DEFAULT_TILE_BYTES,
    FLOPS_PER_BYTE,
    MAX_ARITHMETIC_RATIO,
    MAX_BLOCK_FLOPS,
    MAX_CHUNK_VOXELS,
    MAX_SMALL_UNIT_BLOCKS,
    MAX_UNIT_VOXELS,
    NETWORK_CALL_FLOPS,
    SMALL_TILE_BYTES,
    UNCACHED_BLOCK_INTERVAL,
    Limits,
    layouts_of,
    plan_volume,
)
from emseg_core.grid.plan import Plan
from emseg_core.grid.reading import reading_of
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.volume import DTYPES, VolumeSpec

PAPER = ModelSpec.unet()
PLANAR = ModelSpec.unet(width=8, depth=2)
SOLID = ModelSpec.unet(width=16, depth=3, kernel=(3, 3, 3), pooling=(2, 2, 2))
ANISOTROPIC = ModelSpec(8, 2, ("a", "b", "c"), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), ((1, 2, 2), (2, 2, 2)))
THIRDS = ModelSpec.unet(width=4, depth=2, pooling=(1, 3, 3))
BARE = ModelSpec.unet(width=4, depth=0, kernel=(3, 3, 3))
ALL = [PAPER, PLANAR, SOLID, ANISOTROPIC, THIRDS, BARE]


def volume(shape: Triple, chunk: Triple = (64, 64, 64), dtype: str = "uint8") -> VolumeSpec:
    return VolumeSpec(shape, dtype, chunk)


@st.composite
def cases(draw: st.DrawFn) -> tuple[VolumeSpec, ModelSpec, Box | None, Triple | None]:
    """Draw arguments of `plan_volume`: small and thin volumes, any region, any valid tile."""
    shape, model = draw(shapes(60)), draw(model_specs(most_flops=10**6))
    spec = volume(shape, draw(triples(st.integers(1, 70))), draw(st.sampled_from(DTYPES)))
    region = draw(st.none() | boxes_in(shape))
    return spec, model, region, draw(st.none() | valid_tiles(model))


# -- soundness --------------------------------------------------------------------------------------------------------


@given(cases())
@settings(max_examples=100)
def test_any_plan_is_sound(case: tuple[VolumeSpec, ModelSpec, Box | None, Triple | None]) -> None:
    spec, model, region, tile = case
    plan = plan_volume(spec, model, region, tile)
    assert (plan.shape, plan.region, plan.model, plan.batch) == (spec.shape, region or spec.box, model, 1)
    assert tile is None or plan.tile == tile
    assert model.step(plan.tile)
    assert all(unit % chunk == 0 for unit, chunk in zip(plan.unit, plan.chunk, strict=True)), "shards hold whole chunks"
    assert all(unit % lattice == 0 for unit, lattice in zip(plan.unit, model.lattice, strict=True))
    assert (painted(plan.region, [block.write for block in plan]) == 1).all()
    for block in itertools.islice(plan, 3):
        assert (painted(block.write, [part.target for part in plan.tiles(block)]) == 1).all()
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan_volume(spec, model, region, tile) == plan


@given(cases())
@settings(max_examples=50)
def test_a_region_is_cut_into_the_tiles_of_the_whole(case: tuple[VolumeSpec, ModelSpec, Box | None, Triple | None]) -> None:
    """Only then does the region have the last bits of the whole run."""
    spec, model, region, _ = case
    assert plan_volume(spec, model, region).tile == plan_volume(spec, model).tile
    assert plan_volume(spec, model, spec.box) == plan_volume(spec, model)


def test_no_plan_knows_of_workers() -> None:
    assert list(inspect.signature(plan_volume).parameters) == ["volume", "model", "region", "tile", "limits"]


@pytest.mark.parametrize("model", ALL)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 997), (3, 211, 5), (2, 2, 2), (101, 103, 107), (1, 4096, 4096), (20000, 30, 30)]
)
def test_thin_prime_and_lonely(model: ModelSpec, shape: Triple) -> None:
    spec = volume(shape)
    plan = plan_volume(spec, model)
    assert all(unit < 2 * length or unit == cell for unit, length, cell in zip(plan.unit, shape, model.lattice, strict=True))
    assert model.activation_bytes(plan.tile) <= DEFAULT_TILE_BYTES
    assert sum(block.write.voxels for block in plan) == math.prod(shape)
    last = plan.block(len(plan) - 1)
    assert last.write.stop == shape
    assert plan.read_box(last).contains(last.write.grow(model.context))


# -- how many blocks, and at what price ---------------------------------------------------------------------------------


def every_layout(spec: VolumeSpec, model: ModelSpec) -> list[Plan]:
    """Return all write units of powers of two of the lattice, each in one tile: all layouts of a small volume."""
    lengths = []
    for length, cell in zip(spec.shape, model.lattice, strict=True):
        doublings = 0
        while cell * 2**doublings < length:
            doublings += 1
        lengths.append([cell * 2**k for k in range(doublings + 1)])
    plans = []
    for unit in itertools.product(*lengths):
        covered = (-(-min(u, n) // cell) * cell for u, n, cell in zip(unit, spec.shape, model.lattice, strict=True))
        plans.append(plan_by_hand(model, spec.shape, triple(unit), model.tile_for(triple(covered))))
    return plans


@given(shapes(60), model_specs(most_flops=10**6), triples(st.integers(5, 70)), st.sampled_from(DTYPES))
@settings(max_examples=60)
@example((40, 40, 40), ANISOTROPIC, (64, 64, 64), "uint8")
def test_as_many_blocks_as_can_be_afforded_and_then_the_lowest_price(
    shape: Triple, model: ModelSpec, chunk: Triple, dtype: str
) -> None:
    """A layout is affordable if it costs at most `MAX_ARITHMETIC_RATIO` times the least arithmetic of any layout."""
    spec = volume(shape, chunk, dtype)
    plans = every_layout(spec, model)
    flops = [cost_of(plan, spec, False).flops for plan in plans]
    affordable = [plan for plan, made in zip(plans, flops, strict=True) if made <= MAX_ARITHMETIC_RATIO * min(flops)]
    wanted = min(BLOCKS_WANTED, max(map(len, affordable)))
    lowest = min(price(plan, spec) for plan in affordable if len(plan) >= wanted)
    chosen = plan_volume(spec, model)
    assert len(chosen) >= wanted
    assert price(chosen, spec) == pytest.approx(lowest, rel=1e-9)


def price(plan: Plan, spec: VolumeSpec) -> float:
    """Return the cost of arithmetic, calls and reads, plus an eighth of the reads of unshared blocks. All tiles are small."""
    read, cost = reading_of(spec, plan.region, plan.model, plan.unit, plan.tile), cost_of(plan, spec, False)
    assert plan.model.activation_bytes(plan.tile) <= SMALL_TILE_BYTES
    reading = FLOPS_PER_BYTE * spec.itemsize * (read.voxels + read.alone / UNCACHED_BLOCK_INTERVAL)
    uneven = np.mean([workers * math.ceil(len(plan) / workers) / len(plan) for workers in range(1, 9)])
    return float((cost.flops + NETWORK_CALL_FLOPS * cost.tiles + reading) * uneven)


@pytest.mark.parametrize("model", ALL)
@pytest.mark.parametrize("shape", [(256, 256, 256), (100, 1000, 1000), (1, 4096, 4096), (5000, 300, 300)])
def test_enough_blocks_for_eight_workers(model: ModelSpec, shape: Triple) -> None:
    """This holds where an axis that can be divided is a few times the context. No worker waits long for the others."""
    blocks = len(plan_volume(volume(shape), model))
    assert blocks >= 8
    assert 8 * math.ceil(blocks / 8) / blocks < 1.25


@pytest.mark.parametrize("model", ALL)
@pytest.mark.parametrize("shape", [(300, 400, 500), (1, 5000, 9000), (2000, 2000, 2000)])
def test_limits_of_units_chunks_and_tiles(model: ModelSpec, shape: Triple) -> None:
    plan = plan_volume(volume(shape), model)
    assert math.prod(plan.unit) <= MAX_UNIT_VOXELS
    assert math.prod(plan.unit) >= MAX_UNIT_VOXELS // 4 or len(plan) <= MAX_SMALL_UNIT_BLOCKS
    assert math.prod(plan.chunk) <= MAX_CHUNK_VOXELS
    assert math.prod(plan.chunk) >= min(MAX_CHUNK_VOXELS // 2, math.prod(plan.unit)), "no more chunks than needed"
    assert model.activation_bytes(plan.tile) <= DEFAULT_TILE_BYTES
    targets = [part.target.shape for part in plan.tiles(plan.block(0))]
    for axis in range(3):
        even = len({target[axis] for target in targets}) == 1
        assert even or plan.unit[axis] > shape[axis], "tiles divide a unit evenly, unless it is cut short"


@given(model_specs(most_flops=10**5), st.integers(10**4, 10**6), shapes(100))
@settings(max_examples=50)
def test_activations_stay_below_the_limit(model: ModelSpec, limit: int, shape: Triple) -> None:
    assume(model.activation_bytes(model.tile_for(model.lattice)) <= limit)
    plan = plan_volume(volume(shape), model, limits=Limits(tile_bytes=limit))
    assert model.activation_bytes(plan.tile) <= limit
    assert (painted(plan.region, [part.target for block in plan for part in plan.tiles(block)]) == 1).all()


@given(model_specs(most_flops=10**6), st.integers(1, 10**8), shapes(100))
@settings(max_examples=50)
def test_no_block_takes_longer_than_it_may(model: ModelSpec, most: int, shape: Triple) -> None:
    """The only exception is a block of a single lattice cell."""
    spec = volume(shape)
    plan = plan_volume(spec, model, limits=Limits(block_flops=most))
    mean = cost_of(plan, spec, False).flops / len(plan)
    assert mean <= most or plan.unit == model.lattice


@pytest.mark.parametrize("slices", [8, 16, 24, 100])
def test_sharing_out_a_long_run_costs_little(slices: int) -> None:
    """Units are whole slices if there are enough of them for eight workers."""
    model, spec = ModelSpec.unet(width=16, depth=4), volume((slices, 1152, 1152))
    plan = plan_volume(spec, model)
    assert plan.grid[1:] == (1, 1)
    assert len(plan) >= 8
    assert cost_of(plan, spec, False).flops == slices * model.flops(model.tile_for((1, 1152, 1152)))


@pytest.mark.parametrize("width", [16, 64, 128])
def test_blocks_of_dear_networks_on_large_volumes_are_small(width: int) -> None:
    model = ModelSpec.unet(width=width, depth=3, kernel=(3, 3, 3), pooling=(2, 2, 2))
    spec = volume((5000,) * 3)
    plan = plan_volume(spec, model, limits=Limits(tile_bytes=2**32))
    assert cost_of(plan, spec, False).flops / len(plan) <= MAX_BLOCK_FLOPS
    assert model.activation_bytes(plan.tile) <= 2**32


def test_larger_tiles_are_taken_where_they_save_much() -> None:
    """Three-dimensional networks with much context take them; others do not use the memory."""
    spec = volume((2000,) * 3)
    deep = ModelSpec.unet(width=32, depth=3, kernel=(3, 3, 3), pooling=(2, 2, 2))
    small, large = (plan_volume(spec, deep, limits=Limits(tile_bytes=most)) for most in (2**30, 2**32))
    flops = [cost_of(plan, spec, False).flops for plan in (small, large)]
    assert flops[1] < flops[0] / 2
    by_hand = deep.flops((132,) * 3) / 44**3 * spec.box.voxels
    assert flops[1] < by_hand / 3
    assert plan_volume(spec, PLANAR, limits=Limits(tile_bytes=2**32)).tile == plan_volume(spec, PLANAR).tile


def test_the_layouts_that_were_considered() -> None:
    """The first one is that of the plan, and its stated cost is the plan's."""
    spec = volume((300, 400, 500))
    found = layouts_of(spec, ANISOTROPIC, spec.box)
    plan = plan_volume(spec, ANISOTROPIC)
    cost = cost_of(plan, spec, False)
    assert (found[0].unit, found[0].tile, found[0].blocks) == (plan.unit, plan.tile, len(plan))
    assert (found[0].flops, found[0].bytes_read) == (cost.flops, cost.bytes_read)
    assert found[0].tile_bytes == ANISOTROPIC.activation_bytes(plan.tile)
    assert [layout.price for layout in found] == sorted(layout.price for layout in found)


def test_a_network_too_large_for_the_smallest_tile_is_refused() -> None:
    smallest = PAPER.activation_bytes(PAPER.tile_for(PAPER.lattice))
    with pytest.raises(
        PlanError, match=f"needs {smallest} bytes of activations, but the limit is {smallest - 1}: use a model of"
    ):
        plan_volume(volume((10, 400, 400)), PAPER, limits=Limits(tile_bytes=smallest - 1))
    plan = plan_volume(volume((10, 400, 400)), PAPER, limits=Limits(tile_bytes=smallest))
    assert plan.tile == PAPER.tile_for(PAPER.lattice)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("model", "region"), [(ANISOTROPIC, None), (PLANAR, Box((7, 7, 7), (90_000, 90_001, 90_002)))])
def test_a_volume_of_a_petavoxel_takes_no_memory(model: ModelSpec, region: Box | None) -> None:
    spec = volume((10**5,) * 3)
    tracemalloc.start()
    try:
        plan = plan_volume(spec, model, region)
        cost = cost_of(plan, spec, probabilities=True)
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()
    assert cost.blocks == len(plan) > 10**7
    assert len(json.dumps(plan.to_json())) < 1000


# -- given tiles, regions and refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [(0, 0, 0), (0, 5, 16)])
def test_the_tile_of_the_paper(start: Triple) -> None:
    plan = plan_volume(volume((30, 1024, 1024)), PAPER, Box(start, (30, 1024, 1024)), (1, 572, 572))
    assert plan.tile == (1, 572, 572)
    assert plan.unit[1] % 384 in (0, 384 - 16), "whole steps; one lattice cell less where the region starts beside it"
    ahead = [s % cell for s, cell in zip(plan.region.start, PAPER.lattice, strict=True)]
    for block in itertools.islice(plan, 4):
        width = {part.target.shape[1] for part in plan.tiles(block)}
        assert max(width) <= 384
        assert len(width) <= (2 if ahead[1] else 1) or block.write.stop[1] == 1024


@given(st.data())
@settings(max_examples=50)
def test_off_the_lattice_a_unit_takes_no_extra_tile(data: st.DataObject) -> None:
    """In a region that starts inside a lattice cell, units are as long as their tiles reach."""
    start, parts = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 6))
    tile = PLANAR.tile_for((1, 4 * parts, 4 * parts))
    step = PLANAR.step(tile)[1]
    plan = plan_volume(volume((1, 900, 900)), PLANAR, Box((0, start, start), (1, 900, 900)), tile)
    tiles = len({part.target.start[1] for part in plan.tiles(plan.block(0))})
    assert tiles == -(-plan.unit[1] // step)


@pytest.mark.parametrize("tile", [(1, 500, 572), (1, 0, 0), PAPER.tile_for((1, 1, 1)), (2, 571, 572)])
def test_a_tile_that_cannot_be_stepped_is_refused(tile: Triple) -> None:
    with pytest.raises(PlanError) as caught:
        plan_volume(volume((30, 512, 512)), PAPER, tile=tile)
    assert str(tile) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tile_larger_than_the_volume_is_one_tile() -> None:
    tile = PLANAR.tile_for((8, 400, 400))
    plan = plan_volume(volume((3, 100, 100)), PLANAR, tile=tile)
    assert [part.target for part in plan.tiles(plan.block(0))] == [Box.of_shape((3, 100, 100))]


@pytest.mark.parametrize("region", [Box((0, 0, 0), (31, 512, 512)), Box((-1, 0, 0), (3, 5, 5)), Box((40, 0, 0), (41, 1, 1))])
def test_a_region_outside_is_refused(region: Box) -> None:
    with pytest.raises(
        PlanError, match=f"the region {region} is not inside the volume 0:30,0:512,0:512: give a region within it"
    ):
        plan_volume(volume((30, 512, 512)), PLANAR, region)


def test_a_network_of_several_channels_is_refused() -> None:
    two = ModelSpec(4, 0, ("a", "b"), ((1, 3, 3),), (), channels=2)
    with pytest.raises(PlanError, match="needs 2 channels, but a volume has 1"):
        plan_volume(volume((3, 30, 30)), two)
