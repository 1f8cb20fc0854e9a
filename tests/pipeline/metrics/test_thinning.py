"""Test that thinning leaves only a line where segments meet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from emseg_core.metrics.components import Labels, components
from emseg_core.metrics.thinning import thinned


def beside(labels: Labels, y: int, x: int) -> set[int]:
    """Return the segments beside a pixel."""
    padded = np.pad(labels, 1)
    return {int(padded[y + 1 + dy, x + 1 + dx]) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))} - {0}


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9)))
@settings(max_examples=200, deadline=None)
def test_segments_grow_until_they_meet(inside: NDArray[np.bool_]) -> None:
    segments = components(inside)
    grown = thinned(segments)
    np.testing.assert_array_equal(grown[inside], segments[inside])
    for y, x in np.argwhere(grown != 0):
        assert beside(grown, y, x) <= {int(grown[y, x])}, "two segments touch"
    for y, x in np.argwhere(grown == 0):
        assert len(beside(grown, y, x)) != 1, "a border pixel beside one segment is left"
    for number in range(1, int(segments.max()) + 1):
        assert components(grown == number).max() == 1, "a segment fell into pieces"
    np.testing.assert_array_equal(thinned(grown), grown)


def test_without_segments_all_stays_border() -> None:
    assert not thinned(np.zeros((4, 5), np.int64)).any()


def test_one_segment_takes_all() -> None:
    segments = np.zeros((9, 7), np.int64)
    segments[8, 0] = 3
    assert (thinned(segments) == 3).all()


@pytest.mark.parametrize("width", range(1, 8))
def test_the_line_is_in_the_middle(width: int) -> None:
    segments = np.ones((5, 20 + width), np.int64)
    segments[:, 10:] = 0
    segments[:, 10 + width :] = 2
    line = thinned(segments)
    place = np.argwhere(line == 0)[:, 1] - 10
    assert len(place) == 5 or width % 2 == 0
    assert (np.abs(place - (width - 1) / 2) <= 0.5).all()


def test_as_a_watershed_of_a_flat_plane() -> None:
    """The reference floods in another order, so lines differ by single pixels."""
    rng = np.random.default_rng(1)
    inside = ndimage.gaussian_filter(rng.normal(size=(200, 200)), 4) > 0
    segments = components(inside)
    assert segments.max() > 20
    flooded = watershed(np.zeros(inside.shape), segments, watershed_line=True)
    grown = thinned(segments)
    both = (grown != 0) & (flooded != 0)
    assert (grown == flooded)[both].mean() > 0.995
    assert abs(np.mean(grown == 0) - np.mean(flooded == 0)) < 0.003
