"""Test the challenge's protocol: which errors count and which do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import contingency_table
from skimage.segmentation import watershed

from emseg_core.metrics.components import components
from emseg_core.metrics.isbi import FINE, TENTHS, border_scores
from emseg_core.metrics.partition import overlap, scores


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Return a border map ``(y, x) bool`` with segments of many sizes."""
    rng = np.random.default_rng(2)
    smooth = ndimage.gaussian_filter(rng.normal(size=(160, 160)), 6)
    return np.asarray(watershed(smooth, watershed_line=True) == 0)


def test_the_truth_is_perfect(truth: np.ndarray) -> None:
    found = border_scores(truth, components(~truth))
    assert (found.rand, found.info, found.rand_error) == pytest.approx((1, 1, 0))


@pytest.mark.parametrize("width", [3, 5])
def test_the_width_of_borders_costs_next_to_nothing(truth: np.ndarray, width: int) -> None:
    wide = ndimage.binary_dilation(truth, np.ones((width, width)))
    plain = scores(overlap(components(~wide), components(~truth)))
    found = border_scores(wide, components(~truth))
    assert plain.rand < 0.9
    assert found.rand > 0.95
    assert found.info > 0.95


def test_blots_and_ends_of_lines_cost_nothing(truth: np.ndarray) -> None:
    segments = components(~truth)
    blotted = truth.copy()
    inner = ndimage.distance_transform_edt(~truth)
    y, x = (int(i) for i in np.unravel_index(inner.argmax(), inner.shape))
    blotted[y - 2 : y + 3, x - 2 : x + 3] = True
    assert components(~blotted).max() == segments.max()
    assert border_scores(blotted, segments).rand == pytest.approx(1)


def test_one_hole_between_two_segments_merges_them() -> None:
    """Two segments of n pixels become one: sum p^2 = 1/2, sum s^2 = 1, sum t^2 = 1/2."""
    border = np.zeros((9, 21), bool)
    border[:, 10] = True
    segments = components(~border)
    border[4, 10] = False
    found = border_scores(border, segments)
    assert found.rand == pytest.approx(2 / 3)
    assert (found.rand_split, found.rand_merge, found.info) == pytest.approx((1, 0.5, 0))


def test_a_line_through_a_segment_splits_it() -> None:
    """The line's pixels inside the segment become segments of their own: 10 + 10 + 1 columns of 9."""
    border = np.zeros((9, 21), bool)
    segments = components(~border)
    border[:, 10] = True
    found = border_scores(border, segments)
    assert found.rand_split == pytest.approx((2 * 90**2 + 9) / 189**2)
    assert found.rand_merge == pytest.approx(1)


def test_all_border_is_worth_nothing(truth: np.ndarray) -> None:
    segments = components(~truth)
    found = border_scores(np.ones_like(truth), segments)
    assert found.rand_merge == pytest.approx(1)
    assert found.rand_split < 0.01


def test_the_fine_thresholds_have_those_of_the_challenge() -> None:
    assert set(TENTHS) <= set(FINE)
    assert (len(TENTHS), len(FINE), FINE[0], FINE[-1]) == (11, 51, 0.0, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_as_other_parts_put_together(truth: np.ndarray, seed: int) -> None:
    """Lines differ from those of scipy and scikit-image by single pixels, and scores hardly differ."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=truth.shape), 1.5)
    border = ndimage.binary_dilation(truth, iterations=2) & (noise > -0.3)
    segments, true = ndimage.label(~border)[0], ndimage.label(~truth)[0]
    flooded = watershed(np.zeros(truth.shape), segments, watershed_line=True).astype(int)
    inside = true != 0
    table = contingency_table(true[inside], flooded[inside])
    shared = np.asarray(table.todense(), float)
    alone, shared = shared[:, 0].sum(), shared[:, 1:]
    both = np.sum(shared**2) + alone
    proposed, wanted = np.sum(shared.sum(axis=0) ** 2) + alone, np.sum(np.bincount(true[inside]).astype(float) ** 2)
    expected = 2 * both / (proposed + wanted)
    assert 0.2 < expected < 0.99
    assert border_scores(border, components(~truth)).rand == pytest.approx(expected, abs=0.005)
