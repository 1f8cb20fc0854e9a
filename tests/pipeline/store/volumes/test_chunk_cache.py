"""Test that the cache gives the bytes of the volume and never decompresses a chunk that it still holds."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from fakes import MemoryLabels, SayingPredictor, plan_by_hand, recipe_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import chunk_voxels, painted, voxels
from runs import CUBIC, PLANAR, save_volume, texture
from strategies import boxes_in, shapes, triples

from emseg_core.block import BlockContext
from emseg_core.box import Box, Triple, triple
from emseg_core.errors import BlockError
from emseg_core.grid import reading
from emseg_core.grid.order import block_sequences
from emseg_core.grid.reading import reading_of
from emseg_core.serial import segment_blocks
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.volumes import chunk_cache
from emseg_core.store.volumes.chunk_cache import ChunkCache, merge_boxes
from emseg_core.store.volumes.volume import open_volume

SHAPE, CHUNK = (9, 21, 17), (4, 8, 8)
ALL = 10**9


class Source:
    """A volume in memory that records loads, and fails to load a box with a `broken` voxel."""

    def __init__(self, shape: Triple = SHAPE, chunk: Triple = CHUNK) -> None:
        self.values = np.random.default_rng(5).integers(0, 2**16, shape).astype(np.uint16)
        self.spec = VolumeSpec(shape, "uint16", chunk)
        self.loads: list[Box] = []
        self.broken: Triple | None = None

    def load(self, box: Box) -> NDArray[Any]:
        """Return a copy of whole chunks."""
        self.loads.append(box)
        if self.broken is not None and self.broken in voxels(box):
            raise OSError(5, "broken")
        return self.values[box.slices()].copy()

    def cache(self, limit: int = ALL) -> ChunkCache:
        """Return a cache of this volume."""
        return ChunkCache(self.spec, self.load, limit)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Source, list[Box], int]:
    shape = draw(shapes(20))
    source = Source(shape, draw(triples(st.integers(1, 9))))
    return source, draw(st.lists(boxes_in(shape), min_size=1, max_size=8)), draw(st.integers(0, 2 * source.values.nbytes))


def chunks_of(box: Box, spec: VolumeSpec) -> set[Triple]:
    """Return the index of each chunk that a box touches, found voxel by voxel."""
    return {triple(i // length for i, length in zip(voxel, spec.chunk, strict=True)) for voxel in voxels(box)}


@given(cases(), st.integers(1, 2**12))
@settings(max_examples=200)
def test_any_reads_with_any_bound(case: tuple[Source, list[Box], int], call_bytes: int) -> None:
    source, boxes, limit = case
    cache = source.cache(limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_cache, "MAX_READ_BYTES", call_bytes)
        for box in boxes:
            read = cache.read(box)
            np.testing.assert_array_equal(read, source.values[box.slices()], strict=True)
            assert cache.kept_bytes <= limit
            read[:] = 0  # the caller owns it
    spec = source.spec
    assert cache.decoded_bytes == sum(chunk_voxels(box, spec.shape, spec.chunk) for box in source.loads) * 2


@given(cases())
@settings(max_examples=100)
def test_what_is_kept_is_what_was_used_last(case: tuple[Source, list[Box], int]) -> None:
    """The number of loads is that of a least-recently-used list with the same bound."""
    source, boxes, limit = case
    cache = source.cache(limit)
    used: list[Triple] = []
    for box in boxes:
        before = len(source.loads)
        cache.read(box)
        touched, loaded = chunks_of(box, source.spec), set().union(*(chunks_of(b, source.spec) for b in source.loads[before:]))
        if source.spec.chunk_bytes > limit:
            assert loaded == touched
            continue
        kept, room = set(), limit
        for place in reversed(used):
            room -= len(places_voxels(place, source.spec)) * 2
            if room < 0:
                break
            kept.add(place)
        assert loaded == touched - kept
        hits, groups = (
            sorted(touched & kept),
            merge_boxes(loaded, max(1, chunk_cache.MAX_READ_BYTES // source.spec.chunk_bytes)),
        )
        used = [place for place in used if place not in touched] + hits
        used += [place for group in groups for place in sorted(voxels(group))]


def places_voxels(place: Triple, spec: VolumeSpec) -> set[Triple]:
    """Return the voxels of a chunk."""
    starts = [i * length for i, length in zip(place, spec.chunk, strict=True)]
    stops = [min(a + length, n) for a, length, n in zip(starts, spec.chunk, spec.shape, strict=True)]
    return set(map(triple, itertools.product(*map(range, starts, stops))))


@given(st.sets(triples(st.integers(0, 4)), min_size=1), st.integers(1, 40))
def test_boxes_that_are_read_hold_what_is_missing_and_nothing_else(places: set[Triple], most: int) -> None:
    boxes = merge_boxes(places, most)
    count = painted(Box.of_shape((5, 5, 5)), boxes)
    assert {tuple(map(int, place)) for place in np.argwhere(count)} == places
    assert count.max() == 1
    assert max(box.voxels for box in boxes) <= most


def test_a_box_is_read_in_one_call_and_what_a_neighbour_lacks_in_few() -> None:
    assert len(merge_boxes(voxels(Box((0, 0, 0), (4, 5, 6))), 120)) == 1
    assert len(merge_boxes(voxels(Box((1, 1, 1), (5, 6, 7))) - voxels(Box((0, 0, 0), (4, 5, 6))), 120)) <= 4


def test_threads_share_what_one_of_them_reads() -> None:
    source = Source()

    def load(box: Box) -> NDArray[Any]:
        sleep(0.02)
        return source.load(box)

    cache = ChunkCache(source.spec, load, ALL)
    boxes = [Box((z, y, 0), (min(z + 3, 9), y + 3, 17)) for z in range(9) for y in range(0, 21, 3)]
    with ThreadPoolExecutor(8) as pool:
        for box, read in zip(boxes, pool.map(cache.read, boxes), strict=True):
            np.testing.assert_array_equal(read, source.values[box.slices()])
    assert Counter(voxel for box in source.loads for voxel in voxels(box)).most_common(1)[0][1] == 1
    assert cache.decoded_bytes == source.values.nbytes


def test_a_chunk_that_cannot_be_read_fails_only_those_that_need_it() -> None:
    source = Source()
    source.broken = (1, 1, 1)
    cache = source.cache()
    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            cache.read(Box((0, 0, 0), (1, 1, 1)))
    assert cache.kept_bytes == 0
    beside = Box((4, 8, 0), SHAPE)
    np.testing.assert_array_equal(cache.read(beside), source.values[beside.slices()])
    source.broken = None
    np.testing.assert_array_equal(cache.read(source.spec.box), source.values)


def test_who_waits_for_a_read_that_fails_reads_for_itself() -> None:
    source, begun, failed = Source(), threading.Event(), threading.Event()

    def load(box: Box) -> NDArray[Any]:
        if not begun.is_set():
            begun.set()
            assert failed.wait(10)
            raise OSError(5, "broken")
        return source.load(box)

    cache = ChunkCache(source.spec, load, ALL)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.read, source.spec.box)
        assert begun.wait(10)
        second = pool.submit(cache.read, Box((0, 0, 0), (2, 2, 2)))
        failed.set()
        with pytest.raises(OSError, match="broken"):
            first.result(10)
        np.testing.assert_array_equal(second.result(10), source.values[:2, :2, :2])


# -- on a real store ------------------------------------------------------------------------------------------------------


def test_a_volume_that_vanishes_leaves_no_fill_values_behind(tmp_path: Path) -> None:
    values = texture(SHAPE)
    path, away = save_volume(tmp_path / "v", values, CHUNK), tmp_path / "away"
    volume, corner = open_volume(path, ALL), Box((0, 0, 0), CHUNK)
    np.testing.assert_array_equal(volume.read(corner), values[corner.slices()])
    path.rename(away)
    with pytest.raises(BlockError, match="no longer there") as caught:
        volume.read(volume.spec.box)
    assert caught.value.fault == "store"
    away.rename(path)
    np.testing.assert_array_equal(volume.read(volume.spec.box), values)
    assert volume.decoded_bytes <= 2 * values.nbytes


def test_a_damaged_chunk_of_a_volume_is_named_by_the_box_that_needs_it(tmp_path: Path) -> None:
    values = texture(SHAPE)
    volume = open_volume(save_volume(tmp_path / "v", values, CHUNK), ALL)
    file = tmp_path / "v" / "c" / "0" / "0" / "0"
    sound = file.read_bytes()
    file.write_bytes(sound[:-9])
    for box in (Box((0, 0, 0), (3, 4, 5)), Box((0, 0, 0), SHAPE)):
        with pytest.raises(BlockError, match=f"the voxels {box} of .* cannot be read"):
            volume.read(box)
    np.testing.assert_array_equal(volume.read(Box((4, 0, 0), SHAPE)), values[4:])
    file.write_bytes(sound)
    np.testing.assert_array_equal(volume.read(volume.spec.box), values)


def test_a_chunk_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    values = texture(SHAPE)
    volume = open_volume(save_volume(tmp_path / "v", values, CHUNK), int(np.prod(CHUNK)) - 1)
    for _ in range(2):
        np.testing.assert_array_equal(volume.read(volume.spec.box), values)
    assert volume.decoded_bytes == 2 * values.nbytes


@pytest.mark.parametrize("model", [PLANAR, CUBIC])
@pytest.mark.parametrize("bound", [0, 2**13, 2**14, 2**16, 2**20])
def test_a_run_decompresses_what_the_plan_says(
    model: ModelSpec, bound: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CACHE_BYTES", bound)
    volume = open_volume(save_volume(tmp_path / "v", texture((24, 90, 100)), (8, 8, 8)), bound)
    plan = plan_by_hand(model, volume.spec.shape, (4, 16, 16), model.tile_for((4, 16, 16)))
    said = reading_of(volume.spec, plan.region, model, plan.unit, plan.tile)
    labels = MemoryLabels(plan, probabilities=False)
    predictor = SayingPredictor(model, (1.0,) * len(model.classes))
    context = BlockContext(recipe_of(volume.spec, plan, probabilities=False), volume, predictor, labels, nullcontext())
    blocks = itertools.chain(*block_sequences(plan, volume.spec, np.ones(len(plan), bool)))
    assert {outcome.cause for outcome in segment_blocks(context, blocks)} == {None}
    assert volume.decoded_bytes <= said.voxels
    if bound == 0:
        assert volume.decoded_bytes == said.alone > 3 * volume.spec.nbytes
    if bound == 2**20:
        assert volume.decoded_bytes == volume.spec.nbytes
