"""Test that seams are found if there are any, and only then."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from emseg_core.metrics.seams import Excess, Planes, excess

BLOCK = 16
SHAPE = (48, 64, 80)


def blobs(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float64]:
    """Return smooth noise, whose sign gives labels."""
    return np.asarray(ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2))


def patchwork(shift: float) -> NDArray[np.float64]:
    """Return smooth noise with a different offset in each block along x."""
    values = blobs(0)
    steps = np.random.default_rng(1).normal(size=SHAPE[2] // BLOCK) * shift * values.std()
    return np.asarray(values + np.repeat(steps, BLOCK))


def faces(planes: int) -> NDArray[np.bool_]:
    """Return the planes that are faces of blocks."""
    return np.asarray(np.arange(1, planes + 1) % BLOCK == 0)


def found(values: NDArray[np.float64], axis: int) -> Excess:
    planes = Planes(values.shape[axis])
    planes.add(0, axis, (values > 0).astype(np.uint8), None)
    at = faces(values.shape[axis] - 1)
    result = excess(planes.changes, planes.pairs, at, ~at)
    assert result is not None
    return result


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_piece_has_no_seam(axis: int, seed: int) -> None:
    result = found(blobs(seed), axis)
    assert not result.suspect
    assert 0.7 < result.ratio < 1.4


def test_blocks_that_were_normalised_apart_have_one() -> None:
    result = found(patchwork(1.0), 2)
    assert result.suspect
    assert result.ratio > 1.5
    assert not found(patchwork(1.0), 1).suspect


def test_probabilities_show_fainter_seams() -> None:
    values = patchwork(0.4)
    member = np.rint(254 / (1 + np.exp(-values / values.std()))).astype(np.uint8)
    planes = Planes(SHAPE[2])
    planes.add(0, 2, (values > 0).astype(np.uint8), np.stack([254 - member, member]))
    at = faces(SHAPE[2] - 1)
    labels, jumps = (excess(sums, planes.pairs, at, ~at) for sums in (planes.changes, planes.jumps))
    assert labels is not None
    assert jumps is not None
    assert jumps.suspect
    assert jumps.z > labels.z


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_sums_against_a_loop_piece_by_piece(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shape, axis = tuple(data.draw(st.integers(1, 6)) for _ in range(3)), data.draw(st.integers(0, 2))
    labels, stored = rng.integers(0, 3, shape).astype(np.uint8), rng.integers(0, 255, (3, *shape)).astype(np.uint8)
    planes = Planes(shape[axis])
    cut = data.draw(st.integers(0, shape[axis] - 1))
    for first, stop in ((0, cut + 1), (cut, shape[axis])):  # pieces share a slice, so that each plane is in one
        part = (slice(None),) * axis + (slice(first, stop),)
        planes.add(first, axis, labels[part], stored[(slice(None), *part)])
    along, probabilities = np.moveaxis(labels, axis, 0), np.moveaxis(stored, axis + 1, 1).astype(float) / 254
    assert len(planes.pairs) == shape[axis] - 1
    for plane in range(shape[axis] - 1):
        assert planes.pairs[plane] == along[0].size
        assert planes.changes[plane] == np.sum(along[plane] != along[plane + 1])
        jump = np.abs(probabilities[:, plane] - probabilities[:, plane + 1]).sum() / 2
        assert planes.jumps[plane] == pytest.approx(jump)


def test_nothing_to_tell() -> None:
    pairs, at, none = np.full(10, 100), np.arange(10) == 3, np.zeros(10, bool)
    assert excess(np.ones(10), pairs, at, ~at) is not None
    assert excess(np.ones(10), pairs, none, ~none) is None, "no face"
    assert excess(np.ones(10), pairs, at, np.arange(10) < 2) is None, "too few others"
    assert excess(np.ones(10), np.zeros(10, np.int64), at, ~at) is None, "no voxels"
    even = excess(np.zeros(10), pairs, at, ~at)
    assert even is not None
    assert (even.ratio, even.z, even.suspect) == (1.0, 0.0, False)
    only = excess(at * 50, pairs, at, ~at)
    assert only is not None
    assert (only.ratio, only.z, only.suspect) == (np.inf, np.inf, True)
