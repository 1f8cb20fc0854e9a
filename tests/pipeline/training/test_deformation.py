"""Test the displacement field: how it is drawn and distributed, and that it is smooth between points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from emseg_core.training.deformation import displacements


def keys(distance: float) -> float:
    """Evaluate the bicubic kernel with a = -3/4 (Keys 1981, eq. 4)."""
    a, s = -0.75, abs(distance)
    if s <= 1:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1
    return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a if s < 2 else 0.0


def weights(length: int, points: int) -> NDArray[np.float64]:
    """Return the weight of each point at each pixel of an axis, ``(length, points)``. End points repeat beyond the edges."""
    table = np.zeros((length, points))
    for pixel in range(length):
        place = pixel * (points - 1) / (length - 1) if length > 1 else 0.0
        for point in range(int(place) - 1, int(place) + 3):
            table[pixel, np.clip(point, 0, points - 1)] += keys(place - point)
    return table


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    points=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
def test_bicubic_by_its_definition(shape: tuple[int, int], points: tuple[int, int], seed: int) -> None:
    field = displacements(shape, np.random.default_rng(seed), 10.0, points)
    drawn = np.random.default_rng(seed).normal(0, 10.0, (2, *points))
    expected = weights(shape[0], points[0]) @ drawn @ weights(shape[1], points[1]).T
    assert field.dtype == np.float32
    assert field.shape == (2, *shape)
    assert np.allclose(field, expected, atol=2e-4)


def test_points_get_what_was_drawn() -> None:
    field = displacements((389, 571), np.random.default_rng(3), 10.0)
    drawn = np.random.default_rng(3).normal(0, 10.0, (2, 3, 3))
    assert np.allclose(field[:, ::194, ::285], drawn, atol=1e-4)


def test_the_mean_square_at_the_points_is_the_variance() -> None:
    """The mean is over 4000 fields of 2 x 9 numbers. A mean of n squares has a relative deviation of ``sqrt(2 / n)``."""
    rng = np.random.default_rng(0)
    found = np.stack([displacements((9, 9), rng, 10.0)[:, ::4, ::4] for _ in range(4000)]).astype(np.float64)
    assert np.mean(found**2) == pytest.approx(100, rel=4 * np.sqrt(2 / found.size))
    assert abs(found.mean()) < 4 * 10 / np.sqrt(found.size)


def test_points_axes_and_draws_do_not_depend_on_one_another() -> None:
    rng = np.random.default_rng(1)
    fields = np.stack([displacements((5, 5), rng, 10.0)[:, ::2, ::2].ravel() for _ in range(4000)])
    correlations = np.corrcoef(fields.T) - np.eye(18)
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


def test_smooth_between_the_points() -> None:
    """Points are 193 pixels apart, which bounds slopes and curvature. Nearest points would jump; lines would have corners."""
    for seed in range(20):
        field = displacements((388, 388), np.random.default_rng(seed), 10.0)
        drawn = np.random.default_rng(seed).normal(0, 10.0, (2, 3, 3))
        steepest, sharpest = 3 * np.abs(drawn).max() / 193, 40 * np.abs(drawn).max() / 193**2
        for axis in (1, 2):
            assert np.abs(np.diff(field, axis=axis)).max() < steepest
            assert np.abs(np.diff(field, n=2, axis=axis)).max() < sharpest


def test_no_deviation_displaces_nothing() -> None:
    assert not displacements((7, 9), np.random.default_rng(0), 0.0).any()


def test_a_negative_deviation_is_refused() -> None:
    with pytest.raises(ValueError, match="scale < 0"):
        displacements((7, 9), np.random.default_rng(0), -1.0)
