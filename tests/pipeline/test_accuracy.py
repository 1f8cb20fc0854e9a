"""Test that the accuracy of a low precision against float32 is measured over boxes that are always the same."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import AS_IS, ArrayVolume
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import model_specs

from emseg_core.accuracy import CUBIC_BOX, PLANAR_BOX, SAMPLED_BOXES, accuracy_of, sample_boxes
from emseg_core.box import Box, Triple
from emseg_core.grid.stitch import softmax
from emseg_core.specs.contract import Contract
from emseg_core.specs.heads import Head
from emseg_core.specs.model import ModelSpec

POINTWISE = ModelSpec.unet(width=1, depth=0, kernel=(1, 1, 1))
"""A network without context."""


class Threshold:
    """Predictor of two logits: 0, and the difference of a voxel from a level."""

    def __init__(self, level: float) -> None:
        self.spec = POINTWISE
        self._level = np.float32(level)

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits ``(n, 2, z, y, x)``."""
        above: NDArray[np.float32] = np.stack([np.zeros_like(tiles), tiles - self._level], axis=1)
        return above


class Shifted:
    """Predictor whose heads of one channel all give the voxel plus a constant."""

    def __init__(self, heads: tuple[Head, ...], shift: float) -> None:
        one = (1, 1, 1)
        self.spec = Contract((), True, (0, 0, 0), one, one, (0, 0, 0), "none", True, 0, 1, 1, named_heads=heads)
        self._shift = np.float32(shift)

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return channels ``(n, heads, z, y, x)``."""
        return np.stack([tiles + self._shift] * len(self.spec.heads), axis=1)


@pytest.mark.parametrize("shape", [(3, 30, 41), (7, 300, 280)], ids=str)
def test_it_counts_what_differs(shape: Triple) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    volume = ArrayVolume(values)
    found = accuracy_of(Threshold(0.1), Threshold(0.0), volume, AS_IS)
    boxes = [values[box.slices()].ravel() for box in sample_boxes(POINTWISE, volume.spec.box)]
    seen = np.concatenate(boxes)
    assert found.voxels == seen.size
    assert found.agreement == pytest.approx(1 - np.mean((seen > 0) & (seen <= np.float32(0.1))), abs=1e-12)
    exact, fast = (softmax(np.stack([np.zeros_like(seen), seen - np.float32(level)])) for level in (0.0, 0.1))
    assert found.largest_difference == pytest.approx(float(np.abs(exact - fast).max()))
    assert 0 < found.largest_difference < 0.05
    assert 0.9 < found.agreement < 1


def test_what_cannot_be_computed_is_wrong_everywhere() -> None:
    class Unable(Threshold):
        """Predictor of a library that lacks an operation in its precision."""

        def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
            """Fail."""
            raise RuntimeError("not implemented for 'BFloat16'")

    volume = ArrayVolume(np.zeros((4, 20, 20), np.float32))
    found = accuracy_of(Unable(0.3), Threshold(0.3), volume, AS_IS)
    assert (found.agreement, found.largest_difference) == (0.0, 1.0)


def test_nothing_differs_from_itself() -> None:
    volume = ArrayVolume(np.random.default_rng(0).normal(size=(4, 20, 20)).astype(np.float32))
    found = accuracy_of(Threshold(0.3), Threshold(0.3), volume, AS_IS)
    assert (found.agreement, found.largest_difference) == (1.0, 0.0)


def test_a_box_that_cannot_be_read_does_not_count() -> None:
    """Its block will report that later. If no other box is left, the accuracy is unknown."""
    values = np.random.default_rng(0).normal(size=(1, 300, 900)).astype(np.float32)
    boxes = list(sample_boxes(POINTWISE, ArrayVolume(values).spec.box))
    broken = ArrayVolume(values, broken=boxes[0])
    found = accuracy_of(Threshold(0.0), Threshold(0.0), broken, AS_IS)
    assert 0 < found.voxels < sum(box.voxels for box in boxes)
    assert found.agreement == 1
    nothing = accuracy_of(Threshold(0.0), Threshold(0.0), ArrayVolume(values, broken=broken.spec.box), AS_IS)
    assert (nothing.agreement, nothing.largest_difference, nothing.voxels) == (0.0, 1.0, 0)


def test_an_overflow_is_wrong_everywhere() -> None:
    volume = ArrayVolume(np.zeros((4, 20, 20), np.float32))
    found = accuracy_of(Threshold(np.inf), Threshold(0.3), volume, AS_IS)
    assert (found.agreement, found.largest_difference) == (0.0, 1.0)
    assert found.voxels > 0


def alike(head: Head, exact: float, fast: float) -> bool:
    """Return whether a voxel of a head with one channel means the same, by comparing what is stored."""
    if head.kind == "affinities":
        return (exact >= 0.5) == (fast >= 0.5)
    if head.kind == "independent":
        return (exact >= head.thresholds[0]) == (fast >= head.thresholds[0])
    if head.scale is None:
        return bool(abs(exact - fast) <= np.spacing(np.float16(abs(exact))))
    low, high = head.scale
    return abs(min(max(exact, low), high) - min(max(fast, low), high)) <= (high - low) / 254


HEADS = (
    Head("near", "affinities", ("0 0 1",), "sigmoid", offsets=((0, 0, 1),)),
    Head("organelles", "independent", ("mito",), "sigmoid", thresholds=(0.3,)),
    Head("distance", "values", ("far",), "none"),
    Head("coarse", "values", ("far",), "none", scale=(0.2, 0.7)),
)


@given(
    st.lists(st.sampled_from(HEADS), min_size=1, unique=True),
    st.lists(st.floats(0, 1, width=16), min_size=6, max_size=6),
    st.floats(-1 / 128, 1 / 128, width=32),
)
def test_a_voxel_counts_if_all_its_heads_mean_the_same(heads: list[Head], values: list[float], error: float) -> None:
    volume = ArrayVolume(np.array(values, np.float32).reshape(1, 2, 3))
    exact, fast = (Shifted(tuple(heads), shift) for shift in (0.0, error))
    found = accuracy_of(fast, exact, volume, AS_IS)
    pairs = [(float(value), float(np.float32(value) + np.float32(error))) for value in volume.values.ravel()]
    same = [all(alike(head, *pair) for head in heads) for pair in pairs]
    assert found.agreement == pytest.approx(np.mean(same))
    spans = [
        1.0 if head.kind != "values" else (max(values) or 1.0) if head.scale is None else head.scale[1] - head.scale[0]
        for head in heads
    ]
    largest = max(abs(a - b) for a, b in pairs)
    assert found.largest_difference == pytest.approx(max(largest / span for span in spans))


@given(model_specs(), st.data())
def test_boxes_are_inside_the_region_and_always_the_same(model: ModelSpec, data: st.DataObject) -> None:
    start = data.draw(st.tuples(*[st.integers(0, 50)] * 3))
    shape = data.draw(st.tuples(*[st.integers(1, 400)] * 3))
    region = Box.of_shape(shape).shift(start)
    boxes = list(sample_boxes(model, region))
    assert boxes == list(sample_boxes(model, region))
    assert len(boxes) == SAMPLED_BOXES
    most = PLANAR_BOX if model.planar else CUBIC_BOX
    for box in boxes:
        assert region.contains(box)
        assert box.shape == tuple(map(min, most, shape))
        for axis in range(3):
            assert box.start[axis] == start[axis] or box.start[axis] % model.lattice[axis] == 0
