"""Test membrane scores against slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from emseg_core.metrics.membrane import Counts, best_threshold, count, f1

shapes = array_shapes(min_dims=3, max_dims=3, max_side=4)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_counts_against_a_loop(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    prediction = data.draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255])))
    truth = data.draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255])))
    pairs = [(p == 1, t == 1) for p, t in zip(prediction.ravel(), truth.ravel(), strict=True) if t != 255]
    both, only_p, only_t = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True)))
    counts = count(prediction, truth)
    assert counts == Counts(both, only_p, only_t)
    assert counts.precision == (both / (both + only_p) if both + only_p else 0)
    assert counts.recall == (both / (both + only_t) if both + only_t else 0)
    assert counts.iou == (both / (both + only_p + only_t) if both + only_p + only_t else 0)
    assert f1(prediction, truth) == (2 * both / (2 * both + only_p + only_t) if both + only_p + only_t else 0)
    if counts.precision and counts.recall:
        assert counts.f1 == pytest.approx(2 / (1 / counts.precision + 1 / counts.recall))


def test_counts_of_parts_add_up() -> None:
    rng = np.random.default_rng(0)
    prediction, truth = (rng.integers(0, 2, (4, 5, 6)).astype(np.uint8) for _ in range(2))
    assert count(prediction[:2], truth[:2]) + count(prediction[2:], truth[2:]) == count(prediction, truth)


def test_another_class_can_be_counted() -> None:
    labels = np.array([0, 0, 1], np.uint8)
    assert count(labels, labels, membrane=0) == Counts(2, 0, 0)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        count(np.zeros(2), np.zeros(3, np.uint8))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_best_threshold_against_all_thresholds(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    scores = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size)), np.float32)
    truth: NDArray[np.uint8] = data.draw(arrays(np.uint8, size, elements=st.sampled_from([0, 1, 255])))
    if not (truth == 1).any():
        with pytest.raises(ValueError, match="no membrane"):
            best_threshold(scores, truth)
        return
    threshold, best = best_threshold(scores, truth)
    assert f1(scores > threshold, truth) == pytest.approx(best)
    assert best == pytest.approx(max(f1(scores > t, truth) for t in np.arange(-4, 4, 0.5)))
