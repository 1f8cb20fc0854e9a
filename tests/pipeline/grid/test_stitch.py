"""Test stored probabilities and the canvas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from strategies import boxes

from emseg_core.box import Box
from emseg_core.grid.stitch import NOT_COMPUTED, QUANTA, Canvas, classify, quantise, softmax
from emseg_core.grid.tiles import tiles_of
from emseg_core.specs.model import ModelSpec

BIG = float(np.finfo(np.float32).max)
logits = arrays(
    np.float32,
    array_shapes(min_dims=4, max_dims=4, max_side=4),
    elements=st.one_of(st.floats(-BIG, BIG, width=32), st.floats(-4, 4, width=32), st.sampled_from([-BIG, BIG, 0.0])),
)


@given(logits)
def test_softmax_of_any_finite_logits(values: NDArray[np.float32]) -> None:
    probabilities = softmax(values)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == values.shape
    assert (probabilities >= 0).all()
    assert (probabilities <= 1).all()
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-6)
    precise = values.astype(np.float64)
    precise = np.exp(precise - precise.max(axis=0))
    np.testing.assert_allclose(probabilities, precise / precise.sum(axis=0), atol=1e-6)


@given(logits)
def test_not_computed_is_never_stored(values: NDArray[np.float32]) -> None:
    stored, labels = quantise(softmax(values)), classify(values)
    assert stored.dtype == labels.dtype == np.uint8
    assert stored.max() <= QUANTA < NOT_COMPUTED
    assert labels.max() < len(values)
    assert labels.shape == values.shape[1:]


@given(st.floats(0, 1, width=32))
def test_quantise_rounds_to_the_nearest_quantum(probability: float) -> None:
    (stored,) = quantise(np.array([probability], np.float32))
    assert abs(int(stored) - QUANTA * probability) <= 0.5 + 1e-4
    assert (stored, 255 - stored) != (NOT_COMPUTED, 0)


@given(logits)
def test_classify_takes_the_first_of_the_largest(values: NDArray[np.float32]) -> None:
    labels = classify(values)
    for place in np.ndindex(labels.shape):
        column = [float(value) for value in values[(slice(None), *place)]]
        assert labels[place] == column.index(max(column))


def test_ties_and_the_most_classes() -> None:
    assert classify(np.zeros((3, 1, 1, 1), np.float32)).item() == 0
    many = np.zeros((254, 1, 1, 1), np.float32)
    many[253] = 1
    assert classify(many).item() == 253


@given(st.data(), boxes(-9, 9), st.sampled_from([None, 1, 3]))
def test_a_canvas_puts_tiles_together(data: st.DataObject, box: Box, channels: int | None) -> None:
    model = ModelSpec.unet(width=1, depth=1)
    shape = box.shape if channels is None else (channels, *box.shape)
    whole = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    canvas: Canvas[np.float64] = Canvas(box, np.float64, channels)
    targets = [tile.target for tile in tiles_of(box, (1, 20, 20), model)]
    for target in data.draw(st.permutations(targets)):
        canvas.paste(target, whole[(..., *target.relative_to(box.start).slices())])
    np.testing.assert_array_equal(canvas.finish(), whole)


def test_a_canvas_refuses_what_must_never_happen() -> None:
    canvas: Canvas[np.uint8] = Canvas(Box((0, 4, 4), (1, 6, 8)), np.uint8)
    canvas.paste(Box((0, 4, 4), (1, 6, 6)), np.ones((1, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="painted twice"):
        canvas.paste(Box((0, 5, 5), (1, 6, 7)), np.ones((1, 1, 2), np.uint8))
    with pytest.raises(ValueError, match="not inside the block"):
        canvas.paste(Box((0, 4, 6), (1, 6, 9)), np.ones((1, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"voxels of the block 0:1,4:6,4:8 were never painted: 4$"):
        canvas.finish()
