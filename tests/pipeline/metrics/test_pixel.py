"""Test voxel scores against loops over voxels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from emseg_core.metrics.membrane import best_threshold, count
from emseg_core.metrics.pixel import Histogram, confusion, counts_of, pixel_error, precision_recall, reliability

sizes = st.integers(1, 30)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_confusion_against_counts(data: st.DataObject) -> None:
    size = data.draw(sizes)
    prediction = data.draw(arrays(np.uint8, size, elements=st.integers(0, 2)))
    truth = data.draw(arrays(np.uint8, size, elements=st.sampled_from([0, 1, 2, 255])))
    table = confusion(prediction, truth, 3)
    for label in range(3):
        assert counts_of(table, label) == count(prediction, truth, membrane=label)
    pairs = [(p, t) for p, t in zip(prediction, truth, strict=True) if t != 255]
    assert table.sum() == len(pairs)
    assert pixel_error(table) == (sum(p != t for p, t in pairs) / len(pairs) if pairs else 0)
    half = size // 2
    np.testing.assert_array_equal(
        confusion(prediction[:half], truth[:half], 3) + confusion(prediction[half:], truth[half:], 3), table
    )


@pytest.mark.parametrize(("prediction", "truth"), [([2], [0]), ([0], [2]), ([255], [0])])
def test_labels_beyond_the_classes(prediction: list[int], truth: list[int]) -> None:
    with pytest.raises(ValueError, match="2 classes"):
        confusion(np.array(prediction, np.uint8), np.array(truth, np.uint8), 2)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        confusion(np.zeros(2, np.uint8), np.zeros(3, np.uint8), 2)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_curve_against_each_threshold(data: st.DataObject) -> None:
    size = data.draw(sizes)
    stored = data.draw(arrays(np.uint8, size, elements=st.sampled_from([0, 1, 100, 127, 253, 254])))
    truth = data.draw(arrays(np.uint8, size, elements=st.sampled_from([0, 1, 2, 255])))
    histogram = Histogram.of(stored, truth, 1)
    if not (truth == 1).any():
        with pytest.raises(ValueError, match="no voxel"):
            precision_recall(histogram)
        return
    curve = precision_recall(histogram)
    levels = sorted({int(s) for s, t in zip(stored, truth, strict=True) if t != 255}, reverse=True)
    np.testing.assert_allclose(curve.thresholds, np.array(levels) / 254)
    average, recall = 0.0, 0.0
    for place, level in enumerate(levels):
        counts = count(stored >= level, truth)
        assert (curve.precision[place], curve.recall[place]) == pytest.approx((counts.precision, counts.recall))
        average, recall = average + counts.precision * (counts.recall - recall), counts.recall
    assert curve.average_precision == pytest.approx(average)
    threshold, best = curve.best
    assert best == pytest.approx(best_threshold(stored / 254, np.where(truth == 2, 0, truth).astype(np.uint8))[1])
    assert count(stored / 254 >= threshold - 1e-9, truth).f1 == pytest.approx(best)


def test_average_precision_by_hand() -> None:
    """Ranks 1, 3 and 4 of five are right: (1/1 + 2/3 + 3/4) / 3."""
    stored, truth = np.array([250, 200, 150, 100, 50], np.uint8), np.array([1, 0, 1, 1, 0], np.uint8)
    curve = precision_recall(Histogram.of(stored, truth, 1))
    assert curve.average_precision == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


@given(st.data(), st.sampled_from([1, 2, 10, 254]))
@settings(max_examples=100, deadline=None)
def test_reliability_against_a_loop(data: st.DataObject, bins: int) -> None:
    size = data.draw(sizes)
    stored = data.draw(arrays(np.uint8, size, elements=st.integers(0, 254)))
    truth = data.draw(arrays(np.uint8, size, elements=st.sampled_from([0, 1, 255])))
    found = reliability(Histogram.of(stored, truth, 1), bins)
    error = 0.0
    for place in range(bins):
        inside = [
            (int(s) / 254, int(t))
            for s, t in zip(stored, truth, strict=True)
            if t != 255 and min(int(s) * bins // 254, bins - 1) == place
        ]
        assert found.voxels[place] == len(inside)
        said, true = (sum(values) for values in zip(*inside, strict=True)) if inside else (0, 0)
        mean = [value / max(1, len(inside)) for value in (said, true)]
        assert [found.stated[place], found.observed[place]] == pytest.approx(mean)
        error += abs(said - true)
    assert found.expected_error == pytest.approx(error / max(1, int(np.count_nonzero(truth != 255))))


def test_probabilities_that_come_true_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 255, 200_000).astype(np.uint8)
    honest = (rng.random(stored.size) < stored / 254).astype(np.uint8)
    bold = (stored > 127).astype(np.uint8)
    assert reliability(Histogram.of(stored, honest, 1)).expected_error < 0.01
    assert reliability(Histogram.of(stored, bold, 1)).expected_error == pytest.approx(0.25, abs=0.01)


def test_histograms_of_parts_add_up() -> None:
    rng = np.random.default_rng(0)
    stored, truth = rng.integers(0, 255, 50).astype(np.uint8), rng.integers(0, 2, 50).astype(np.uint8)
    parts = Histogram.of(stored[:20], truth[:20], 1) + Histogram.of(stored[20:], truth[20:], 1) + Histogram.empty()
    whole = Histogram.of(stored, truth, 1)
    np.testing.assert_array_equal(parts.members, whole.members)
    np.testing.assert_array_equal(parts.others, whole.others)
