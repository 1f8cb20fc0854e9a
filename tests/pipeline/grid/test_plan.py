"""Test the blocks of plans with any division against lists of voxels."""

from __future__ import annotations

import itertools
import json

import pytest
from fakes import plan_by_hand
from hypothesis import given
from hypothesis import strategies as st
from oracles import hull, painted
from strategies import boxes_in, model_specs, shapes, triples, valid_tiles

from emseg_core.box import Box, Triple
from emseg_core.grid.plan import Plan
from emseg_core.specs.model import ModelSpec

SMALL = ModelSpec.unet(width=1, depth=1)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a plan of any region with any tile and any write unit, which need not be a multiple of anything."""
    model, shape = draw(model_specs(most_flops=10**5)), draw(shapes(30))
    unit = draw(triples(st.integers(4, 30)))
    return plan_by_hand(model, shape, unit, draw(valid_tiles(model)), draw(boxes_in(shape)))


@given(plans())
def test_write_boxes_partition_the_region(plan: Plan) -> None:
    assert (painted(plan.region, [block.write for block in plan]) == 1).all()


@given(plans())
def test_each_block_is_one_whole_write_unit(plan: Plan) -> None:
    starts = set(
        itertools.product(*(range(a, b, n) for a, b, n in zip(plan.region.start, plan.region.stop, plan.unit, strict=True)))
    )
    assert {block.write.start for block in plan} == starts
    for block in plan:
        for start, stop, unit, end in zip(block.write.start, block.write.stop, plan.unit, plan.region.stop, strict=True):
            assert stop == min(start + unit, end)


@given(plans())
def test_blocks_are_counted_with_x_fastest(plan: Plan) -> None:
    blocks = list(plan)
    assert [block.index for block in blocks] == list(range(len(plan)))
    assert [block.write.start for block in blocks] == sorted(block.write.start for block in blocks)
    assert plan.grid == tuple(len({block.write.start[axis] for block in blocks}) for axis in range(3))
    assert all(plan.block(block.index) == block for block in blocks)


@given(plans())
def test_tiles_cover_the_write_box_and_lie_in_the_read_box(plan: Plan) -> None:
    block = plan.block(len(plan) - 1)
    tiles = list(plan.tiles(block))
    assert (painted(block.write, [tile.target for tile in tiles]) == 1).all()
    assert plan.read_box(block) == hull([tile.source for tile in tiles])
    assert plan.read_box(block).contains(block.write.grow(plan.model.context))


@given(plans())
def test_json_round_trip(plan: Plan) -> None:
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert list(again) == list(plan)


@pytest.mark.parametrize("index", [-1, 6, 10**9])
def test_there_is_no_other_block(index: int) -> None:
    plan = plan_by_hand(SMALL, (1, 20, 30), (1, 10, 10), (1, 20, 20))
    assert len(plan) == 6
    with pytest.raises(IndexError, match=f"block {index} is not among the 6 blocks of the grid"):
        plan.block(index)


def test_blocks_are_made_as_they_are_asked_for() -> None:
    shape: Triple = (10**6, 10**6, 10**6)
    plan = plan_by_hand(SMALL, shape, (4, 4, 4), (1, 20, 20))
    assert len(plan) == 250_000**3
    assert plan.block(len(plan) - 1).write == Box((10**6 - 4,) * 3, shape)
    assert next(iter(plan)).write == Box.of_shape((4, 4, 4))
