"""Test scores of partitions by counting pairs of pixels, against scikit-image, and by hand."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.metrics import adapted_rand_error, variation_of_information

from emseg_core.metrics.partition import Scores, overlap, scores

pixels = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)


def two(drawn: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    proposal, truth = np.array(drawn, np.int64).T
    return proposal, truth


def alone(proposal: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the same labels with each border pixel as a segment of its own."""
    return np.where(proposal == 0, 100 + np.arange(len(proposal)), proposal)


@given(pixels)
@settings(max_examples=200, deadline=None)
def test_against_pairs_of_pixels(drawn: list[tuple[int, int]]) -> None:
    proposal, truth = two(drawn)
    if not truth.any():
        with pytest.raises(ValueError, match="no segment"):
            overlap(proposal, truth)
        return
    found = scores(overlap(proposal, truth))
    segments = list(zip(alone(proposal)[truth != 0], truth[truth != 0], strict=True))
    pairs = [(a == c, b == d) for (a, b), (c, d) in itertools.product(segments, repeat=2)]  # including itself
    both, ours, theirs = (sum(map(test, pairs)) for test in (all, lambda pair: pair[0], lambda pair: pair[1]))
    assert found.rand == pytest.approx(both / (ours / 2 + theirs / 2))
    assert found.rand_merge == pytest.approx(both / ours)
    assert found.rand_split == pytest.approx(both / theirs)
    others = [(a == c, b == d) for (a, b), (c, d) in itertools.combinations(segments, 2)]
    wrong = sum(one != other for one, other in others)
    assert found.rand_error == pytest.approx(wrong / len(others) if others else 0)
    together, ours, theirs = (sum(map(test, others)) for test in (all, lambda pair: pair[0], lambda pair: pair[1]))
    assert found.adapted_rand_error == pytest.approx(1 - 2 * together / (ours + theirs) if ours + theirs else 0)


@given(pixels)
@settings(max_examples=200, deadline=None)
def test_against_scikit_image(drawn: list[tuple[int, int]]) -> None:
    proposal, truth = two(drawn)
    inside = truth != 0
    if not inside.any():
        return
    found = scores(overlap(proposal, truth))
    own, wanted = alone(proposal)[inside], truth[inside]
    split, merge = variation_of_information(wanted, own)
    assert found.variation_split == pytest.approx(split, abs=1e-12)
    assert found.variation_merge == pytest.approx(merge, abs=1e-12)
    assert found.variation == pytest.approx(split + merge, abs=1e-12)
    if len(set(wanted)) < len(wanted) and len(set(own)) < len(own):  # otherwise it divides by zero
        error, _, _ = adapted_rand_error(wanted, own, ignore_labels=())
        assert found.adapted_rand_error == pytest.approx(error)


@given(pixels)
@settings(max_examples=100, deadline=None)
def test_information_from_its_definition(drawn: list[tuple[int, int]]) -> None:
    proposal, truth = two(drawn)
    if not truth.any():
        return
    found = scores(overlap(proposal, truth))
    segments = list(zip(alone(proposal)[truth != 0], truth[truth != 0], strict=True))
    n = len(segments)

    def share(test: object, place: int | None) -> float:
        return float(sum((pair if place is None else pair[place]) == test for pair in segments) / n)

    mutual = sum(share(p, None) * log2(share(p, None) / share(p[0], 0) / share(p[1], 1)) for p in set(segments))
    own, wanted = (-sum(share(s, place) * log2(share(s, place)) for s in {p[place] for p in segments}) for place in (0, 1))
    assert found.info == pytest.approx(2 * mutual / (own + wanted) if own + wanted else 1, abs=1e-9)
    assert found.info_split == pytest.approx(mutual / own if own else 1, abs=1e-9)
    assert found.info_merge == pytest.approx(mutual / wanted if wanted else 1, abs=1e-9)


@given(pixels, st.permutations(range(1, 4)))
@settings(max_examples=100, deadline=None)
def test_bounds_and_names(drawn: list[tuple[int, int]], names: list[int]) -> None:
    proposal, truth = two(drawn)
    if not truth.any():
        return
    found = scores(overlap(proposal, truth))
    for name in ("rand", "rand_split", "rand_merge", "info", "info_split", "info_merge", "rand_error", "adapted_rand_error"):
        assert -1e-12 <= getattr(found, name) <= 1 + 1e-12
    assert found.rand == pytest.approx(2 / (1 / found.rand_split + 1 / found.rand_merge))
    renamed = np.array([0, *(name * 10**12 for name in names)])[proposal]
    for name, value in vars_of(scores(overlap(renamed, truth))).items():
        assert value == pytest.approx(getattr(found, name), abs=1e-12)


def vars_of(found: Scores) -> dict[str, float]:
    return {name: getattr(found, name) for name in Scores.__slots__}


@given(pixels)
@settings(max_examples=50, deadline=None)
def test_equal_partitions_are_perfect(drawn: list[tuple[int, int]]) -> None:
    _, truth = two(drawn)
    if not truth.any():
        return
    perfect = {name: 0.0 if "error" in name or "variation" in name else 1.0 for name in Scores.__slots__}
    assert vars_of(scores(overlap(truth, truth))) == pytest.approx(perfect, abs=1e-12)


def test_by_hand() -> None:
    """Compare nine pixels; the last is on the truth's border.

        truth     1 1 1 1 2 2 2 2 0
        proposal  1 1 2 2 2 2 2 0 1

    Shared: 2, 2, 3 and the border pixel 1, of 8. Proposal 2, 5, 1; truth 4, 4.
    """
    truth, proposal = np.array([1, 1, 1, 1, 2, 2, 2, 2, 0]), np.array([1, 1, 2, 2, 2, 2, 2, 0, 1])
    table = overlap(proposal, truth)
    assert sorted(table.shared.tolist()) == [1, 2, 2, 3]
    assert sorted(table.proposed.tolist()) == [1, 2, 5]
    assert table.true.tolist() == [4, 4]
    found = scores(table)
    both, ours, theirs = 4 + 4 + 9 + 1, 4 + 25 + 1, 16 + 16
    assert found.rand == pytest.approx(float(Fraction(2 * both, ours + theirs)))
    assert found.rand_split == pytest.approx(18 / 32)
    assert found.rand_merge == pytest.approx(18 / 30)
    wanted = 1.0
    own = -(2 / 8 * log2(2 / 8) + 5 / 8 * log2(5 / 8) + 1 / 8 * log2(1 / 8))
    joint = -(2 * 2 / 8 * log2(2 / 8) + 3 / 8 * log2(3 / 8) + 1 / 8 * log2(1 / 8))
    assert found.info == pytest.approx(2 * (own + wanted - joint) / (own + wanted))
    assert found.variation_split == pytest.approx(joint - wanted)


def test_a_split_and_a_merge_are_told_apart() -> None:
    whole, halves = np.array([1] * 8), np.array([1] * 4 + [2] * 4)
    split, merge = scores(overlap(halves, whole)), scores(overlap(whole, halves))
    assert (split.rand_split, split.rand_merge) == (0.5, 1.0)
    assert (merge.rand_split, merge.rand_merge) == (1.0, 0.5)
    assert (split.variation_split, split.variation_merge) == (1.0, 0.0)
    assert (merge.variation_split, merge.variation_merge) == (0.0, 1.0)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        overlap(np.ones(2, np.int64), np.ones(3, np.int64))
