"""Test coarser levels against a voxel-by-voxel reference."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from emseg_core.box import Triple
from emseg_core.grid.pyramid import MAX_COARSEST_LENGTH, Rule, coarsened, coarser_shape, level_shapes, steps_of
from emseg_core.store.zarrs.ome import Space

STEPS = st.tuples(*[st.sampled_from([1, 2])] * 3)


def by_voxel(values: NDArray[np.integer], step: Triple, rule: Rule) -> NDArray[np.integer]:
    """Compute the next level, with a Counter or a fraction for each voxel."""
    made = np.zeros(coarser_shape(values.shape, step), values.dtype)
    for place in np.ndindex(made.shape):
        inside = values[tuple(slice(i * s, (i + 1) * s) for i, s in zip(place, step, strict=True))].ravel().tolist()
        if rule == "mean":
            made[place] = (2 * sum(inside) + len(inside)) // (2 * len(inside))
        else:
            counts = Counter(inside)
            made[place] = min(value for value, count in counts.items() if count == max(counts.values()))
    return made


@given(
    npst.arrays(
        st.sampled_from([np.uint8, np.uint64]),
        npst.array_shapes(min_dims=3, max_dims=3, max_side=7),
        elements=st.integers(0, 4),
    ),
    STEPS,
    st.sampled_from(["mode", "mean"]),
)
def test_a_level_is_that_made_voxel_by_voxel(values: NDArray[np.integer], step: Triple, rule: Rule) -> None:
    made = coarsened(values, step, rule)
    assert made.dtype == values.dtype
    np.testing.assert_array_equal(made, by_voxel(values, step, rule))
    np.testing.assert_array_equal(coarsened(np.stack([values, values[::-1]]), step, rule)[0], made)


def test_no_value_is_too_large() -> None:
    most = np.full((4, 4, 4), 255, np.uint8)
    np.testing.assert_array_equal(coarsened(most, (2, 2, 2), "mean"), 255)
    names = np.array([2**64 - 1, 2**64 - 2, 2**64 - 1, 7], np.uint64).reshape(1, 2, 2)
    assert coarsened(names, (1, 2, 2), "mode").item() == 2**64 - 1


@given(st.tuples(*[st.integers(1, 100_000)] * 3), st.tuples(*[st.floats(0.1, 100)] * 3))
def test_levels_end_where_an_image_is_small(shape: Triple, sizes: tuple[float, float, float]) -> None:
    steps = steps_of(shape, sizes)
    *larger, last = level_shapes(shape, steps)
    assert max(last) <= MAX_COARSEST_LENGTH
    assert all(max(length) > MAX_COARSEST_LENGTH for length in larger)
    voxel = np.array(sizes)
    for step, level in zip(steps, larger, strict=True):
        long = [size for size, length in zip(voxel, level, strict=True) if length > 1]
        voxel *= step
        assert max(step) == 2
        assert all(s == 1 for s, length in zip(step, level, strict=True) if length == 1)
        # A halved axis has voxels at most twice as long as the shortest, so that lengths converge and stay close.
        halved = [size for size, s, length in zip(voxel, step, level, strict=True) if s == 2 and length > 1]
        assert max(halved) < 4 * min(long)


@given(st.tuples(*[st.integers(1, 9)] * 3), st.lists(STEPS, max_size=3), st.integers(0, 2))
def test_the_centre_of_a_voxel_is_the_mean_of_those_it_stands_for(shape: Triple, steps: list[Triple], axis: int) -> None:
    finest = Space(("z", "y", "x"), (50.0, 4.0, 3.5), (7.0, -1.0, 0.25), ("nanometer",) * 3)
    factor = np.prod([(1, 1, 1), *steps], axis=0)
    level = finest.coarser([int(f) for f in factor])
    for index in range(shape[axis]):
        inside = finest.translation[axis] + finest.scale[axis] * (index * factor[axis] + np.arange(factor[axis]))
        assert np.isclose(level.translation[axis] + level.scale[axis] * index, inside.mean())
