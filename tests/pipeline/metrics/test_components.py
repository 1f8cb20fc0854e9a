"""Test components against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage

from emseg_core.metrics.components import components


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9)))
@settings(max_examples=200, deadline=None)
def test_the_same_numbers_as_scipy(inside: NDArray[np.bool_]) -> None:
    before = inside.copy()
    np.testing.assert_array_equal(components(inside), ndimage.label(inside)[0])
    np.testing.assert_array_equal(inside, before)


@pytest.mark.parametrize("share", [0.3, 0.55, 0.6, 0.9])
def test_winding_components_of_a_large_plane(share: float) -> None:
    """Slightly above the percolation threshold, components wind through the whole plane."""
    inside = np.random.default_rng(0).random((301, 257)) < share
    expected, count = ndimage.label(inside)
    assert count > 10
    np.testing.assert_array_equal(components(inside), expected)


@pytest.mark.parametrize("side", [5, 12, 41])
def test_a_comb_is_one_component(side: int) -> None:
    """The teeth meet only in the last row; a snake turns at every other row."""
    comb = np.zeros((side, side), bool)
    comb[:, ::2] = comb[-1] = True
    snake = np.zeros((side, side), bool)
    snake[::2] = True
    snake[1::4, -1] = snake[3::4, 0] = True
    for inside in (comb, comb.T, comb[::-1], snake, snake.T, snake[::-1]):
        assert set(np.unique(components(inside))) == {0, 1}


def test_neighbours_share_an_edge() -> None:
    assert components(np.eye(3, dtype=bool)).max() == 3
