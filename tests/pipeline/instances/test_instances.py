"""Test that segments and their numbers are those of the whole volume, whatever the blocks are."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import by_blocks, in_order, slow_components, slow_fragments, slow_watershed
from numpy.typing import NDArray

from emseg_core.box import Triple, triple
from emseg_core.specs.labelling import Labelling

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))
SIDES = st.sampled_from([1, 2, 3, 12])
UNITS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


def noise(shape: Triple, seed: int, values: int, holes: float = 0.0) -> NDArray[np.uint8]:
    """Draw probabilities with few distinct values, so that many are equal, and with voxels that are not computed."""
    draw = np.random.default_rng(seed)
    stored = (draw.integers(0, values, shape) * (254 // max(values - 1, 1))).astype(np.uint8)
    stored[draw.random(shape) < holes] = 255
    return stored


@given(SHAPES, UNITS, st.integers(0, 2**32), st.sampled_from([6, 18, 26]), st.floats(0.1, 0.9), SIDES)
@settings(max_examples=150, deadline=None)
def test_components(shape: Triple, unit: Triple, seed: int, connectivity: Literal[6, 18, 26], share: float, side: int) -> None:
    inside = np.random.default_rng(seed).random(shape) < share
    found, table = by_blocks(inside.astype(np.uint8), unit, Labelling("components", 1, connectivity=connectivity), side)
    np.testing.assert_array_equal(found, slow_components(inside, connectivity))
    assert len(table) == found.max(initial=0)


@given(
    *(SHAPES, UNITS, st.integers(0, 2**32), st.sampled_from([2, 3, 9, 255]), st.floats(0.05, 1.0), st.integers(0, 2)),
    *(st.booleans(), st.sampled_from([0.0, 0.1]), SIDES),
)
@settings(max_examples=120, deadline=None)
def test_watershed(
    shape: Triple, unit: Triple, seed: int, values: int, threshold: float, smoothing: int, planar: bool, holes: float, side: int
) -> None:
    stored = noise(shape, seed, values, holes)
    labelling = Labelling("watershed", 0, threshold=threshold, smoothing=smoothing, planar=planar)
    found, _ = by_blocks(stored, unit, labelling, side)
    np.testing.assert_array_equal(found, slow_watershed(stored, labelling))


@given(SHAPES, st.integers(0, 2**32), st.integers(0, 2), st.booleans())
@settings(max_examples=50, deadline=None)
def test_fragments(shape: Triple, seed: int, smoothing: int, planar: bool) -> None:
    """This is before merging: all probabilities are above the threshold, so no mean is below it."""
    stored = np.maximum(noise(shape, seed, 9), 1)
    labelling = Labelling("watershed", 0, threshold=1e-6, smoothing=smoothing, planar=planar)
    found, _ = by_blocks(stored, (2, 3, 2), labelling)
    np.testing.assert_array_equal(found, slow_fragments(stored, labelling))


@given(SHAPES, UNITS, st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_the_table_is_that_of_the_segments(shape: Triple, unit: Triple, seed: int, smallest: int) -> None:
    inside = np.random.default_rng(seed).random(shape) < 0.6
    found, table = by_blocks(inside.astype(np.uint8), unit, Labelling("components", 1, smallest=smallest))
    whole = slow_components(inside, 6)
    sizes = np.bincount(whole.astype(int).ravel())
    whole[(sizes < smallest)[whole.astype(int)]] = 0
    np.testing.assert_array_equal(found, in_order(whole))
    for number in range(1, len(table) + 1):
        places = np.argwhere(found == number)
        assert table.voxels[number - 1] == len(places) >= smallest
        assert table.first[number - 1] == np.flatnonzero(found.ravel() == number)[0]
        np.testing.assert_array_equal(table.start[number - 1], places.min(axis=0))
        np.testing.assert_array_equal(table.stop[number - 1], places.max(axis=0) + 1)
        np.testing.assert_array_equal(table.sums[number - 1], places.sum(axis=0))


def spiral(side: int) -> NDArray[np.bool_]:
    """Return a spiral corridor with walls one voxel thick, (side, side)."""
    plane = np.zeros((side, side), bool)
    y, x, step = 0, 0, (0, 1)
    plane[0, 0] = True
    while True:
        for _ in range(4):
            ahead, beyond = (y + step[0], x + step[1]), (y + 2 * step[0], x + 2 * step[1])
            free = all(0 <= a < side for a in ahead) and not plane[ahead]
            if free and not (all(0 <= b < side for b in beyond) and plane[beyond]):
                break
            step = (step[1], -step[0])
        else:
            return plane
        y, x = ahead
        plane[y, x] = True
        if sum(plane[a, b] for a, b in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)) if 0 <= a < side and 0 <= b < side) > 1:
            plane[y, x] = False
            return plane


@pytest.mark.parametrize("unit", [(1, 4, 4), (3, 5, 7), (2, 32, 1)])
@pytest.mark.parametrize("turned", list(itertools.permutations(range(3))))
def test_a_spiral_and_a_comb_through_many_blocks(unit: Triple, turned: Triple) -> None:
    """One segment leaves and enters most blocks many times. The teeth of a comb meet only in its last plane."""
    wound = np.zeros((4, 32, 32), bool)
    wound[1] = spiral(32)
    wound[3, :, ::2] = True
    wound[3, -1] = True
    wound = np.transpose(wound, turned)
    found, _ = by_blocks(wound.astype(np.uint8), triple(unit), Labelling("components", 1))
    assert found.max() == 2
    np.testing.assert_array_equal(found > 0, wound)
    np.testing.assert_array_equal(found, slow_components(wound, 6))
