"""Test comparing instance labels part by part, against scikit-image on the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import adapted_rand_error, variation_of_information

from emseg_core.metrics.instances import Contingency

SHAPE = (4, 6, 7)


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_as_scikit_image(seed: int, proposed: int, true: int, depth: int) -> None:
    draw = np.random.default_rng(seed)
    proposal = draw.integers(0, proposed + 1, SHAPE).astype(np.uint64) * np.uint64(2**60)
    truth = draw.integers(0, true + 1, SHAPE)
    truth[0, 0, :2] = 1
    table = Contingency()
    for z in range(0, SHAPE[0], depth):
        table.add(proposal[z : z + depth], truth[z : z + depth])
    found = table.compared(worst=100)
    small = (proposal // np.uint64(2**60)).astype(int)
    error, _, _ = adapted_rand_error(truth, small, ignore_labels=(0,))
    split, merge = variation_of_information(truth, small, ignore_labels=(0,))
    assert found.scores.adapted_rand_error == pytest.approx(error, abs=1e-12)
    assert found.scores.variation_split == pytest.approx(split, abs=1e-12)
    assert found.scores.variation_merge == pytest.approx(merge, abs=1e-12)
    assert found.cremi == pytest.approx(np.sqrt((split + merge) * error))
    assert found.proposed == len(np.unique(small[(truth != 0) & (small != 0)]))
    assert found.true == len(np.unique(truth[truth != 0]))


def test_the_worst_are_named() -> None:
    """Segment 1 of the truth is in three pieces of 4, 2 and 1 voxels; piece 7 has one voxel of another segment."""
    truth = np.array([[[1, 1, 1, 1, 1, 1, 1, 2, 0]]])
    proposal = np.array([[[5, 5, 5, 5, 7, 7, 0, 7, 7]]])
    table = Contingency()
    table.add(proposal, truth)
    found = table.compared(worst=3)
    (split,), (merge,) = found.splits, found.merges
    assert (split.id, split.voxels, split.outside, split.parts) == (1, 7, 3, 2)
    assert (merge.id, merge.voxels, merge.outside, merge.parts) == (7, 3, 1, 2)


def test_nothing_to_compare() -> None:
    table = Contingency()
    table.add(np.ones((1, 1, 2), int), np.zeros((1, 1, 2), int))
    with pytest.raises(ValueError, match="no segment"):
        table.compared(worst=1)
    with pytest.raises(ValueError, match="shape"):
        table.add(np.ones((1, 1, 2), int), np.zeros((1, 2, 1), int))
