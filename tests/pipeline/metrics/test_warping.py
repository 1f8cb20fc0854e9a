"""Test that warping preserves topology, by counting components before and after, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage

from emseg_core.metrics.warping import SIMPLE, Warped, warp, warped_truth

EIGHT = np.ones((3, 3))
AROUND = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]


def pieces(inside: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the number of segments and of borders; the plane is surrounded by border."""
    padded = np.pad(inside, 1)
    return ndimage.label(padded)[1], ndimage.label(~padded, EIGHT)[1]


@pytest.mark.parametrize("code", range(256))
def test_simple_is_what_changes_no_count(code: int) -> None:
    """A pixel is simple if flipping it changes neither count within its 3 x 3 pixels, surrounded by border."""
    plane = np.zeros((3, 3), bool)
    for bit, place in enumerate(AROUND):
        plane[place] = code >> bit & 1
    flipped = plane.copy()
    flipped[1, 1] = True
    around = [
        np.unique(ndimage.label(pixels, shape)[0][touch & pixels])
        for pixels, shape, touch in (
            (plane, None, np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)),
            (~flipped, EIGHT, np.ones((3, 3), bool)),
        )
    ]
    assert SIMPLE[code] == (len(around[0]) == 1 and len(around[1]) == 1)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_the_topology_of_the_truth_stays(data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=2, max_dims=2, max_side=9))
    proposal, truth, known = (data.draw(arrays(np.bool_, shape)) for _ in range(3))
    before = truth.copy()
    warped = warped_truth(proposal, truth, known)
    np.testing.assert_array_equal(truth, before)
    assert pieces(warped) == pieces(truth)
    np.testing.assert_array_equal(warped[~known], truth[~known])
    np.testing.assert_array_equal(warped[proposal == truth], truth[proposal == truth])
    for y, x in np.argwhere((warped != proposal) & known):
        ring = np.pad(warped, 1)[y : y + 3, x : x + 3]
        assert not SIMPLE[sum(int(ring[place]) << bit for bit, place in enumerate(AROUND))], "a simple pixel is left"


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9)))
@settings(max_examples=50, deadline=None)
def test_the_truth_has_no_error(truth: NDArray[np.bool_]) -> None:
    assert warp(truth, truth, np.ones_like(truth)) == Warped(0, 0, truth.size)


def test_another_topology_has_an_error() -> None:
    """For random pairs of planes, the error is 0 only if the counts agree."""
    rng = np.random.default_rng(0)
    planes = rng.random((400, 2, 5, 5)) < 0.6
    differing = [(p, t) for p, t in planes if pieces(p) != pieces(t)]
    assert len(differing) > 100
    assert all(warp(p, t, np.ones_like(t)).error > 0 for p, t in differing)


@pytest.mark.parametrize(("height", "width"), [(11, 31), (12, 40)])
def test_by_hand(height: int, width: int) -> None:
    truth = np.ones((height, width), bool)
    truth[:, 9] = False
    known = np.ones_like(truth)
    moved = np.ones_like(truth)
    moved[:, 10:13] = False
    assert warp(moved, truth, known).error == 0, "a wider border beside it"
    moved = np.roll(truth, 2, axis=1)
    assert warp(moved, truth, known).error > 0, "only pixels that differ are flipped, so nothing leads there"
    holed = truth.copy()
    holed[4:7, 9] = True
    assert warp(holed, truth, known) == Warped(3, 0, truth.size), "each pixel of a straight line keeps two segments apart"
    split = truth.copy()
    split[:, 20] = False
    assert warp(split, truth, known) == Warped(0, 1, truth.size), "lines grow from both sides, and one pixel would split"
    lost = np.ones_like(truth)
    assert warp(lost, truth, known) == Warped(height, 0, truth.size), "a straight line has no simple pixel"
    extra = truth.copy()
    extra[3:6, 24:27] = False
    assert warp(extra, truth, known) == Warped(0, 9, truth.size), "an island of border"
    assert warp(lost, truth, truth) == Warped(0, 0, truth.size - height), "what is not known does not count"


def test_shapes_must_agree() -> None:
    one, other = np.ones((2, 3), bool), np.ones((3, 3), bool)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 3\)"):
        warp(one, other, other)
