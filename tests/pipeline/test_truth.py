"""Test truth against slow loops over voxels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from emseg_core.errors import InputError
from emseg_core.truth import IGNORE, INSIDE, MEMBRANE, class_truth, membrane_truth


def slow(ids: NDArray[np.uint16], planar: bool) -> NDArray[np.uint8]:
    truth = np.empty(ids.shape, np.uint8)
    steps = [(0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)] + ([] if planar else [(1, 0, 0), (-1, 0, 0)])
    for z, y, x in product(*map(range, ids.shape)):
        own = ids[z, y, x]
        others = [
            ids[z + dz, y + dy, x + dx]
            for dz, dy, dx in steps
            if 0 <= z + dz < ids.shape[0] and 0 <= y + dy < ids.shape[1] and 0 <= x + dx < ids.shape[2]
        ]
        touches = any(other not in (0, own) for other in others)
        truth[z, y, x] = IGNORE if own == 0 else MEMBRANE if touches else INSIDE
    return truth


@given(
    arrays(np.uint16, array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.sampled_from([0, 1, 2, 65535])),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_against_a_loop(ids: NDArray[np.uint16], planar: bool) -> None:
    before = ids.copy()
    assert np.array_equal(membrane_truth(ids, planar=planar), slow(ids, planar))
    assert np.array_equal(ids, before)


def test_planar_ignores_the_next_slice() -> None:
    ids = np.array([[[1, 1]], [[2, 2]]])
    assert (membrane_truth(ids) == MEMBRANE).all()
    assert (membrane_truth(ids, planar=True) == INSIDE).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int64", "uint64"])
def test_any_integer_type(dtype: str) -> None:
    assert membrane_truth(np.array([[[3, 0, 4, 5]]], dtype)).tolist() == [[[INSIDE, IGNORE, MEMBRANE, MEMBRANE]]]


MEANING = {"inside": (255, 128), "membrane": (0,)}
NAMES = ("membrane", "mitochondrion", "inside")


@given(arrays(np.uint16, array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.sampled_from([0, 128, 255, 9])))
@settings(max_examples=50, deadline=None)
def test_classes_against_a_loop(values: NDArray[np.uint16]) -> None:
    truth = class_truth(values, MEANING, NAMES, (9,))
    places = {255: 2, 128: 2, 0: 0, 9: IGNORE}
    assert truth.dtype == np.uint8
    assert truth.tolist() == [[[places[int(v)] for v in row] for row in plane] for plane in values]


@pytest.mark.parametrize(
    ("meaning", "ignore", "message"),
    [
        ({"membrane": (0,)}, (), "^2 voxels have the value 7, which stands for none of membrane, mito"),
        ({"membrane": (0,), "glia": (7,)}, (), "no class 'glia': the classes are membrane, mitochondrion, inside"),
        ({"membrane": (0, 7), "inside": (7,)}, (), "value 7 stands for membrane and for inside"),
        ({"membrane": (0, 7)}, (7,), "value 7 stands for ignored voxels and for membrane"),
    ],
)
def test_values_that_say_nothing(meaning: dict[str, tuple[int, ...]], ignore: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        class_truth(np.array([[[0, 7, 7]]]), meaning, NAMES, ignore)
