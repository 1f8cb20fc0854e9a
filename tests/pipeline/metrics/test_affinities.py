"""Test that affinities which are read otherwise than they were made are noticed without truth."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from emseg_core.box import Triple
from emseg_core.metrics.affinities import Fit, Reading, better_reading, fit_of, lines_of, mostly_cut, readings_of
from emseg_core.specs.heads import Anchor, Head

NEAREST: tuple[Triple, ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
FAR: tuple[Triple, ...] = (*NEAREST, (2, 0, 0), (0, 3, 0), (0, 0, 3), (1, 1, 0), (0, -2, 2))
NEGATIVE: tuple[Triple, ...] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
BACKGROUND = 0
REACH = 3
"""Longest step along an axis."""


def head(offsets: tuple[Triple, ...], anchor: Anchor = "source", repulsive: bool = False) -> Head:
    names = tuple(" ".join(map(str, offset)) for offset in offsets)
    return Head("near", "affinities", names, "sigmoid", offsets=offsets, anchor=anchor, repulsive=repulsive)


def affinities(labels: NDArray[np.int64], reading: Reading) -> NDArray[np.float32]:
    """Return true affinities: 1 within one object, 0 elsewhere; background is no object."""
    around = np.pad(labels, REACH, constant_values=BACKGROUND)
    made = []
    for offset in reading.offsets:
        steps = offset if reading.anchor == "source" else tuple(-step for step in offset)
        other = around[tuple(slice(REACH + step, REACH + step + n) for step, n in zip(steps, labels.shape, strict=True))]
        made.append((labels == other) & (labels != BACKGROUND))
    return np.stack(made).astype(np.float32)


def counted(cut: NDArray[np.bool_], reading: Reading) -> Fit:
    """Count squares one by one."""
    mixed = single = 0
    where = [dict(np.ndenumerate(channel)) for channel in cut]
    for (first, a), (second, b) in combinations(enumerate(reading.offsets), 2):
        if np.array_equal(a, -np.array(b)):
            continue
        for v in product(*(range(-8, length + 8) for length in cut.shape[1:])):
            corner = np.array(v)
            edges = [(first, corner, a), (first, corner + b, a), (second, corner, b), (second, corner + a, b)]
            stored = [
                where[channel].get(tuple(start if reading.anchor == "source" else start + offset))
                for channel, start, offset in edges
            ]
            if None not in stored and (corner >= 0).all() and (corner < cut.shape[1:]).all():
                count = sum(map(bool, stored))
                mixed += 0 < count < 4
                single += count == 1
    return Fit(mixed, single)


offsets = st.tuples(*[st.integers(-2, 2)] * 3).filter(any)
readings = st.builds(
    Reading, st.lists(offsets, min_size=2, max_size=3, unique=True).map(tuple), st.sampled_from(["source", "destination"])
)


@given(readings, st.tuples(*[st.integers(1, 4)] * 3), st.integers(0, 2**32 - 1))
def test_squares_are_counted_as_one_by_one(reading: Reading, shape: Triple, seed: int) -> None:
    cut = np.random.default_rng(seed).random((len(reading.offsets), *shape)) < 0.5
    assert fit_of(cut, reading) == counted(cut, reading)


@given(readings, st.tuples(*[st.integers(2, 6)] * 3), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_labels_never_have_a_single_cut_edge(reading: Reading, shape: Triple, most: int, seed: int) -> None:
    """Whatever the labels are, with background and without."""
    labels = np.random.default_rng(seed).integers(0, most + 1, shape)
    cut = affinities(labels, reading) == 0
    low = [max(abs(offset[axis]) for offset in reading.offsets) * 2 for axis in range(3)]
    inner = tuple(slice(lead, length - lead) for lead, length in zip(low, shape, strict=True))
    assert fit_of(cut[(slice(None), *inner)], reading).single == 0


def cells(shape: Triple, seed: int = 0, walls: bool = False) -> NDArray[np.int64]:
    """Return Voronoi cells, with some background between them if there are walls."""
    rng = np.random.default_rng(seed)
    seeds = rng.random((12, 3)) * shape
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)[..., None, :]
    distance = np.sqrt((((places - seeds) * (2, 1, 1)) ** 2).sum(-1))
    nearest = np.sort(distance, -1)
    found = distance.argmin(-1) + 1
    return np.where(walls & (nearest[..., 1] - nearest[..., 0] < 2.5), BACKGROUND, found)


def predicted(labels: NDArray[np.int64], reading: Reading, repulsive: bool = False, noise: float = 0.0) -> NDArray[np.float32]:
    """Return affinities of the inner voxels, some of them wrong."""
    made = affinities(labels, reading)
    wrong = np.random.default_rng(1).random(made.shape) < noise
    inner = np.where(wrong, 1 - made, made)[:, 3:-3, 3:-3, 3:-3].astype(np.float32)
    return 1 - inner if repulsive else inner


@pytest.mark.parametrize("walls", [False, True], ids=["touching", "walls"])
@pytest.mark.parametrize(
    "stated", [NEAREST, FAR, tuple((-z, -y, -x) for z, y, x in NEAREST)], ids=["nearest", "far", "negative"]
)
def test_the_reading_that_they_were_made_with_is_found(stated: tuple[Triple, ...], walls: bool) -> None:
    labels = cells((16, 28, 30), walls=walls)
    for real in readings_of(head(stated)):
        boxes = [predicted(labels, real, noise=0.002)]
        found = better_reading(head(stated), boxes)
        if real == Reading(stated, "source"):
            assert found is None
        else:
            assert found is not None
            best, fit, before = found
            assert best == real
            assert fit.share < 0.05 < before.share
        assert not mostly_cut(head(stated), boxes) or walls


@pytest.mark.parametrize("walls", [False, True], ids=["touching", "walls"])
@pytest.mark.parametrize("repulsive", [False, True])
def test_exchanged_affinities_are_noticed(repulsive: bool, walls: bool) -> None:
    labels = cells((16, 28, 30), walls=walls)
    boxes = [predicted(labels, Reading(NEAREST, "source"), repulsive)]
    assert not mostly_cut(head(NEAREST, repulsive=repulsive), boxes)
    assert mostly_cut(head(NEAREST, repulsive=not repulsive), boxes) is not walls


def test_nothing_is_said_of_what_shows_too_little() -> None:
    one = np.ones((20, 20, 20), np.int64)
    boxes = [predicted(one, Reading(NEAREST, "source"))]
    assert better_reading(head(NEAREST, "destination"), boxes) is None
    assert better_reading(head(NEAREST), []) is None
    noise = np.random.default_rng(0).random((3, 20, 20, 20)).astype(np.float32)
    assert better_reading(head(NEAREST), [noise]) is None


def test_what_to_write_is_said_in_toml() -> None:
    stated = head(((0, 1, 0), (0, 0, 1)))
    assert {lines_of(reading, stated) for reading in readings_of(stated)} == {
        "",
        'anchor = "destination"',
        "offsets = [[0, 0, 1], [0, 1, 0]]",
        'anchor = "destination", offsets = [[0, 0, 1], [0, 1, 0]]',
    }
    assert lines_of(Reading(stated.offsets, "source"), replace(stated, anchor="destination")) == 'anchor = "source"'
