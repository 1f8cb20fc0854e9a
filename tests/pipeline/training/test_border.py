"""Test border weights against all pairs of pixels, and class weights against counting."""

from __future__ import annotations

from time import process_time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from emseg_core.errors import InputError
from emseg_core.training.border import CUTOFF_SIGMAS, border_weights, class_weights

CLASSES = ("inside", "membrane")


def all_pairs(segments: NDArray[Any], sigma: float) -> NDArray[np.float64]:
    """Compute equation 2 without w_0 and w_c, pixel by pixel, over all pixels of all segments."""
    weights = np.zeros(segments.shape)
    ids = [number for number in np.unique(segments) if number]
    for pixel in zip(*np.nonzero(segments == 0), strict=True):
        distances = sorted(min(np.hypot(*(np.argwhere(segments == number) - pixel).T)) for number in ids)
        if len(distances) > 1:
            weights[pixel] = np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return weights


def mosaic(shape: tuple[int, int], count: int, seed: int) -> NDArray[np.int64]:
    """Make segments around random centres, with a border of about three pixels between them."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, shape, (count, 2))
    y, x = np.indices(shape)
    distances = np.stack([np.hypot(y - row, x - column) for row, column in centres])
    closest = np.partition(distances, 1, axis=0)
    return np.where(closest[1] - closest[0] < 3, 0, distances.argmin(axis=0) + 1)


@given(
    segments=arrays(
        st.sampled_from([np.uint8, np.int64, np.uint64]),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.sampled_from([0, 0, 0, 1, 2, 77, 200]),
    ),
    sigma=st.sampled_from([0.5, 1.0, 5.0]),
)
def test_against_all_pairs(segments: NDArray[Any], sigma: float) -> None:
    weights = border_weights(segments, sigma)
    assert weights.dtype == np.float32
    assert np.allclose(weights, all_pairs(segments, sigma), rtol=1e-6, atol=1.6e-8)


def test_what_is_cut_off_is_lost_in_float32() -> None:
    """A segment too far away is skipped. In float32, adding it would not change the sum."""
    sigma = 1.0
    segments = np.zeros((1, 21), np.uint8)
    segments[0, 0], segments[0, 20] = 1, 2
    exact, weights = all_pairs(segments, sigma), border_weights(segments, sigma)
    assert exact.max() > 0
    assert not weights.any()
    assert np.exp(-(CUTOFF_SIGMAS**2) / 2) < np.finfo(np.float32).eps / 2
    assert np.array_equal(np.float32(1) + weights, np.float32(1) + exact.astype(np.float32))


@given(gap=st.integers(1, 14))
def test_no_jump_where_segments_are_cut_off(gap: int) -> None:
    """Beside the first skipped pixel, the remaining weight is equally small."""
    sigma = 1.0
    segments = np.zeros((1, gap + 2), np.uint8)
    segments[0, 0], segments[0, -1] = 1, 2
    weights, exact = border_weights(segments, sigma), all_pairs(segments, sigma)
    assert np.allclose(weights, exact, rtol=1e-6, atol=np.exp(-(CUTOFF_SIGMAS**2) / 2))


def test_narrow_borders_count_more() -> None:
    weights = [float(border_weights(np.array([[1] + [0] * gap + [2]])).max()) for gap in (1, 2, 5, 10)]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == pytest.approx(np.exp(-4 / 50))


@pytest.mark.parametrize("segments", [np.zeros((4, 5), int), np.eye(5, dtype=int), np.ones((3, 3), int)])
def test_fewer_than_two_segments(segments: NDArray[np.int64]) -> None:
    assert border_weights(segments).shape == segments.shape
    assert not border_weights(segments).any()


def test_numbers_of_segments_do_not_matter() -> None:
    segments = mosaic((60, 70), 12, seed=0)
    others = np.concatenate([[0], np.random.default_rng(1).permutation(12) ** 3 + 2**40])
    assert np.array_equal(border_weights(segments), border_weights(others[segments]))
    assert border_weights(segments).max() > 0.5


def test_slice_by_slice() -> None:
    planes = [mosaic((40, 50), count, seed=count) for count in (2, 5, 9)]
    assert np.array_equal(border_weights(np.stack(planes)), np.stack([border_weights(plane) for plane in planes]))


def test_a_real_stack_takes_seconds() -> None:
    """The stack has 24 slices of 512 x 512 with 150 segments, as in training on serial sections. A sixth of them is timed."""
    plane = mosaic((512, 512), 150, seed=0)
    assert len(np.unique(plane)) == 149
    began = process_time()
    border_weights(np.stack([plane] * 4))
    assert 6 * (process_time() - began) < 5


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_width_must_be_positive(sigma: float) -> None:
    with pytest.raises(InputError, match="must be positive"):
        border_weights(np.zeros((2, 2), int), sigma)


def test_axes_are_checked() -> None:
    with pytest.raises(InputError, match="not 1 axes"):
        border_weights(np.zeros(3, int))


@given(truth=arrays(np.uint8, st.tuples(st.integers(2, 5), st.integers(1, 5)), elements=st.sampled_from([0, 1, 255])))
def test_classes_are_balanced(truth: NDArray[np.uint8]) -> None:
    truth[0, 0], truth[1, 0] = 0, 1
    weights = class_weights(truth, CLASSES)
    sums = [weight * np.count_nonzero(truth == label) for label, weight in enumerate(weights)]
    assert sums[0] == pytest.approx(sums[1])
    assert sum(sums) == pytest.approx(np.count_nonzero(truth != 255))


def test_a_class_without_voxels_is_refused() -> None:
    with pytest.raises(InputError, match="no voxel is membrane"):
        class_weights(np.array([[0, 255]], np.uint8), CLASSES)
