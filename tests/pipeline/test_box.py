"""Test boxes against sets of voxels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import voxels
from strategies import boxes, shapes, triples

from emseg_core.box import Box, Triple, triple

small = boxes(-4, 5)


@given(small)
def test_shape_and_count(box: Box) -> None:
    inside = np.array(sorted(voxels(box)))
    assert box.voxels == len(inside)
    assert box.shape == tuple(len(np.unique(inside[:, axis])) for axis in range(3))
    assert box.start == tuple(inside.min(axis=0))
    assert box.stop == tuple(inside.max(axis=0) + 1)


@given(small, small)
def test_contains_and_intersect(one: Box, other: Box) -> None:
    assert one.contains(other) == (voxels(other) <= voxels(one))
    if shared := voxels(one) & voxels(other):
        assert voxels(one.intersect(other)) == shared
        assert one.intersect(other) == other.intersect(one)
    else:
        with pytest.raises(ValueError, match="must hold a voxel"):
            one.intersect(other)


@given(boxes(-2, 2), triples(st.integers(0, 2)))
def test_grow_adds_the_voxels_within_the_margin(box: Box, margin: Triple) -> None:
    offsets = list(itertools.product(*(range(-m, m + 1) for m in margin)))
    near = {(z + i, y + j, x + k) for z, y, x in voxels(box) for i, j, k in offsets}
    assert voxels(box.grow(margin)) == near
    assert box.grow(margin).grow(triple(-m for m in margin)) == box


@given(boxes(), triples(st.integers(-50, 50)))
def test_shift_and_back(box: Box, offset: Triple) -> None:
    assert box.shift(offset).shape == box.shape
    assert box.shift(offset).relative_to(offset) == box
    assert box.relative_to(box.start) == Box.of_shape(box.shape)


@given(triples(st.integers(0, 4)), shapes(5), triples(st.integers(0, 40)))
def test_each_voxel_is_at_one_place_of_a_grid(place: Triple, shape: Triple, voxel: Triple) -> None:
    assert Box.at(place, shape).shape == shape
    inside = triple(v // length for v, length in zip(voxel, shape, strict=True)) == place
    assert (voxel in voxels(Box.at(place, shape))) is inside


@given(small, shapes(4))
def test_cells_are_the_places_of_a_grid_that_hold_a_voxel(box: Box, shape: Triple) -> None:
    touched = {triple(v // length for v, length in zip(voxel, shape, strict=True)) for voxel in voxels(box)}
    assert box.cells(shape) == sorted(touched)
    assert set().union(*(voxels(Box.at(cell, shape)) for cell in touched)) >= voxels(box)


@given(st.data(), shapes(6))
def test_slices_cut_the_box_out(data: st.DataObject, shape: Triple) -> None:
    box = data.draw(boxes(0, 6))
    places = np.moveaxis(np.indices((6, 6, 6)), 0, -1)
    cut = places[box.slices()]
    assert cut.shape == (*box.shape, 3)
    assert {tuple(int(i) for i in place) for place in cut.reshape(-1, 3)} == voxels(box)


def test_numpy_would_count_from_the_end() -> None:
    with pytest.raises(ValueError, match=r"\(0, -1, 0\) cannot index an array"):
        Box((0, -1, 0), (1, 2, 1)).slices()


@pytest.mark.parametrize("stop", [(0, 4, 8), (2, 4, 0), (-1, 4, 8)])
def test_an_empty_box_is_refused(stop: Triple) -> None:
    with pytest.raises(ValueError, match="must hold a voxel on each axis"):
        Box((0, 0, 0), stop)


def test_as_typed_after_roi() -> None:
    assert str(Box((-1, 0, 20), (2, 5, 30))) == "-1:2,0:5,20:30"


def test_triple_takes_exactly_three_and_makes_plain_integers() -> None:
    values = triple(np.array([1, 2, 3]))
    assert values == (1, 2, 3)
    assert [type(value) for value in values] == [int, int, int]
    with pytest.raises(ValueError, match="values to unpack"):
        triple([1, 2])


def test_boxes_are_values() -> None:
    assert {Box((0, 0, 0), (1, 1, 1)), Box.of_shape((1, 1, 1))} == {Box((0, 0, 0), (1, 1, 1))}
    with pytest.raises(AttributeError):
        Box.of_shape((1, 1, 1)).start = (1, 1, 1)  # type: ignore[misc]
