"""Test mirroring against `numpy.pad`."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import mirror
from strategies import boxes, boxes_in, shapes

from emseg_core.box import Box, Triple
from emseg_core.grid.mirror import fold, mirrored, reflect


@given(length=st.integers(1, 9), before=st.integers(0, 60), after=st.integers(0, 60))
@example(length=1, before=60, after=60)
@example(length=2, before=59, after=60)
@settings(max_examples=300)
def test_fold_is_numpy_pad_reflect(length: int, before: int, after: int) -> None:
    padded = np.pad(np.arange(length), (before, after), mode="reflect")
    np.testing.assert_array_equal(fold(np.arange(-before, length + after), length), padded)


@given(st.integers(2, 9))
def test_fold_is_a_walk_to_and_fro(length: int) -> None:
    place, direction, walk = 0, 1, []
    for _ in range(50):
        walk.append(place)
        if not 0 <= place + direction < length:
            direction = -direction
        place += direction
    assert fold(np.arange(50), length).tolist() == walk
    assert fold(-np.arange(50), length).tolist() == walk


@given(st.integers(1, 10**6), st.integers(-(10**12), 10**12))
def test_fold_stays_inside_and_keeps_what_is_inside(length: int, position: int) -> None:
    (folded,) = fold(np.array([position]), length)
    assert 0 <= folded < length
    if 0 <= position < length:
        assert folded == position
    (other,) = fold(np.array([-position]), length)
    assert other == folded, "a mirror at the first voxel"


@st.composite
def volumes_and_boxes(draw: st.DrawFn) -> tuple[Triple, Box]:
    """Draw a volume and a box that overlaps it and may reach out on any side."""
    shape = draw(shapes(7))
    inner = draw(boxes_in(shape))
    before, after = draw(st.tuples(*[st.integers(0, 20)] * 3)), draw(st.tuples(*[st.integers(0, 20)] * 3))
    start = tuple(a - b for a, b in zip(inner.start, before, strict=True))
    stop = tuple(a + b for a, b in zip(inner.stop, after, strict=True))
    return shape, Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


@given(volumes_and_boxes())
def test_mirrored_is_the_padded_whole(case: tuple[Triple, Box]) -> None:
    shape, box = case
    values = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(mirrored(values, box), mirror(values, box))


@given(shapes(6), boxes(-25, 25))
def test_also_a_box_that_misses_the_volume(shape: Triple, box: Box) -> None:
    values = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(mirrored(values, box), mirror(values, box))


@given(volumes_and_boxes())
def test_no_more_is_read_than_is_seen(case: tuple[Triple, Box]) -> None:
    """The source lies inside the volume and is the smallest box around the voxels that the box shows."""
    shape, box = case
    source = reflect(box, shape).source
    assert Box.of_shape(shape).contains(source)
    places = np.stack([mirror(axis, box) for axis in np.indices(shape)])
    assert source.start == tuple(places.min(axis=(1, 2, 3)))
    assert source.stop == tuple(places.max(axis=(1, 2, 3)) + 1)


def test_a_box_inside_is_read_as_it_is() -> None:
    values = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    box = Box((1, 2, 3), (3, 4, 6))
    reflection = reflect(box, (4, 5, 6))
    assert reflection.source == box
    part = values[box.slices()]
    assert reflection.fill(part) is part, "nothing is copied"
