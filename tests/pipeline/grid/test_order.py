"""Test that each block comes once, and that a worker with a bounded cache decompresses what the plan predicts."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import OrderedDict
from collections.abc import Iterable
from time import process_time

import numpy as np
import pytest
from fakes import plan_by_hand
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import boxes_in, model_specs, shapes, triples, valid_tiles

from emseg_core.box import Box, Triple, triple
from emseg_core.grid import order, reading
from emseg_core.grid.blocks import Block
from emseg_core.grid.layout import plan_volume
from emseg_core.grid.mirror import reflect
from emseg_core.grid.order import block_sequences
from emseg_core.grid.plan import Plan
from emseg_core.grid.reading import reading_of
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.volume import DTYPES, VolumeSpec

PLANAR = ModelSpec.unet(width=16)
SOLID = ModelSpec.unet(width=16, depth=3, kernel=(3, 3, 3), pooling=(2, 2, 2))


def chunks_of(plan: Plan, volume: VolumeSpec, block: Block) -> dict[Triple, int]:
    """Return the chunks that a block reads, with the bytes of each."""
    box = reflect(plan.read_box(block), volume.shape).source
    spans = (range(a // c, -(-b // c)) for a, b, c in zip(box.start, box.stop, volume.chunk, strict=True))
    return {place: bytes_of(place, volume) for place in map(triple, itertools.product(*spans))}


def union_of(plan: Plan, volume: VolumeSpec, blocks: Iterable[Block]) -> int:
    """Return the bytes of all chunks that some blocks read."""
    return sum(dict(itertools.chain(*(chunks_of(plan, volume, block).items() for block in blocks))).values())


def bytes_of(place: Triple, volume: VolumeSpec) -> int:
    lengths = (min(c, n - i * c) for i, c, n in zip(place, volume.chunk, volume.shape, strict=True))
    return int(np.prod(list(lengths))) * volume.itemsize


def decoded(plan: Plan, volume: VolumeSpec, blocks: Iterable[Block], bound: int) -> int:
    """Return the bytes that a worker decompresses if it keeps the most recently used chunks within a bound."""
    kept: OrderedDict[Triple, int] = OrderedDict()
    total = held = 0
    for block in blocks:
        chunks = chunks_of(plan, volume, block)
        for place in chunks.keys() & kept.keys():
            kept.move_to_end(place)
        for place in [place for place in chunks if place not in kept]:
            total += chunks[place]
            kept[place] = chunks[place]
            held += chunks[place]
            while held > bound:
                held -= kept.popitem(last=False)[1]
    return total


def in_order(plan: Plan, volume: VolumeSpec) -> list[Block]:
    return [block for sequence in block_sequences(plan, volume, np.ones(len(plan), bool)) for block in sequence]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Plan, VolumeSpec]:
    """Draw any plan by hand, usually with many blocks, and a volume in chunks of any shape."""
    model, shape = draw(model_specs(most_flops=10**5)), draw(shapes(40))
    volume = VolumeSpec(shape, draw(st.sampled_from(DTYPES)), draw(triples(st.integers(2, 20))))
    region = draw(st.just(Box.of_shape(shape)) | boxes_in(shape))
    return plan_by_hand(model, shape, draw(triples(st.integers(4, 12))), draw(valid_tiles(model)), region), volume


bounds = st.one_of(st.integers(0, 2**12), st.integers(2**12, 2**18))


@given(cases(), bounds)
@settings(max_examples=200)
def test_a_worker_decompresses_no_more_than_the_plan_says(case: tuple[Plan, VolumeSpec], bound: int) -> None:
    """The plan counts each chunk once for each sequence that reads it, or for each step along x of it, or for each block."""
    plan, volume = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CACHE_BYTES", bound)
        patch.setattr(order, "MAX_SEQUENCE_BLOCKS", 10**9)
        said = reading_of(volume, plan.region, plan.model, plan.unit, plan.tile)
        sequences = list(block_sequences(plan, volume, np.ones(len(plan), bool)))
        steps = [
            list(step) for sequence in sequences for _, step in itertools.groupby(sequence, lambda block: block.write.start[2])
        ]
        once = [sum(union_of(plan, volume, blocks) for blocks in parts) for parts in (sequences, steps)]
        each = sum(union_of(plan, volume, [block]) for block in plan)
        assert said.voxels * volume.itemsize in (*once, each)
        assert said.voxels * volume.itemsize <= each
        assert decoded(plan, volume, itertools.chain(*sequences), bound) <= said.voxels * volume.itemsize
        patch.setattr(order, "MAX_SEQUENCE_BLOCKS", 5)
        assert in_order(plan, volume) == list(itertools.chain(*sequences)), "parts of sequences come in the same order"


@given(cases(), bounds, st.integers(1, 60), st.randoms())
@settings(max_examples=100)
def test_each_wanted_block_comes_once(case: tuple[Plan, VolumeSpec], bound: int, longest: int, random: object) -> None:
    plan, volume = case
    wanted = np.array([random.random() < 0.7 for _ in range(len(plan))])  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CACHE_BYTES", bound)
        patch.setattr(order, "MAX_SEQUENCE_BLOCKS", longest)
        sequences = list(block_sequences(plan, volume, wanted))
    assert all(1 <= len(sequence) <= longest for sequence in sequences)
    assert sorted(block.index for sequence in sequences for block in sequence) == np.flatnonzero(wanted).tolist()
    assert all(block == plan.block(block.index) for block in sequences[0][:2]) if sequences else not wanted.any()


@pytest.mark.parametrize(("model", "most"), [(PLANAR, 1.3), (SOLID, 2.0)])
@pytest.mark.parametrize("shape", [(64, 2048, 2048), (256, 2048, 2048), (2048, 2048, 2048)])
def test_what_wide_volumes_take(model: ModelSpec, most: float, shape: Triple) -> None:
    """The context is 92 in y and x, or 44 on each axis; chunks have 64 x 64 x 64 voxels."""
    volume = VolumeSpec(shape, "uint8", (64, 64, 64))
    plan = plan_volume(volume, model)
    assert reading_of(volume, plan.region, model, plan.unit, plan.tile).voxels <= most * volume.box.voxels


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 900), st.integers(1, 900)),
    st.sampled_from([PLANAR, SOLID]),
    st.sampled_from([2**20, 2**23, 2**25]),
)
@settings(max_examples=20)
@example((300, 900, 900), SOLID, 2**24)
def test_a_planned_run_decompresses_no_more_than_is_said(shape: Triple, model: ModelSpec, bound: int) -> None:
    volume = VolumeSpec(shape, "uint8", (32, 32, 32))
    plan = plan_volume(volume, model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CACHE_BYTES", bound)
        said = reading_of(volume, plan.region, model, plan.unit, plan.tile).voxels
        assert decoded(plan, volume, in_order(plan, volume), bound) <= said


def test_thin_blocks_of_one_layer_of_chunks_come_together() -> None:
    volume = VolumeSpec((256, 512, 512), "uint8", (64, 64, 64))
    plan = plan_by_hand(PLANAR, volume.shape, (4, 128, 128), PLANAR.tile_for((1, 128, 128)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CACHE_BYTES", 2**25)
        layers = [block.write.start[0] // 64 for block in in_order(plan, volume)]
        assert layers == sorted(layers)
        assert reading_of(volume, plan.region, PLANAR, plan.unit, plan.tile).voxels == volume.box.voxels


@pytest.mark.timeout(60)
def test_the_first_of_many_million_blocks_comes_at_once() -> None:
    volume = VolumeSpec((30_000,) * 3, "uint8", (64, 64, 64))
    plan = plan_volume(volume, SOLID)
    wanted = np.ones(len(plan), bool)
    assert len(plan) > 10**6
    tracemalloc.start()
    try:
        began = process_time()
        first = next(block_sequences(plan, volume, wanted))
        assert process_time() - began < 5
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    assert len(first) <= order.MAX_SEQUENCE_BLOCKS
