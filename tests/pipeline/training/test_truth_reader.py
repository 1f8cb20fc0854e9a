"""Test how truth is read, and that reads beyond the faces mirror raw and truth alike."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label
from trainings import AS_IT_IS, CLASSES, IDS, source

from emseg_core.box import Box
from emseg_core.errors import InputError
from emseg_core.grid.mirror import mirrored
from emseg_core.normalise import Normalisation
from emseg_core.specs.heads import Anchor, Head
from emseg_core.store.stacks.source import LoadedVolume
from emseg_core.training.truth_reader import (
    ClassValues,
    Edges,
    IndependentValues,
    InstanceIds,
    TrainingVolume,
    TruthKind,
    ValidationVolume,
)
from emseg_core.truth import membrane_truth


@pytest.mark.parametrize("planar", [False, True])
def test_classes_fall_into_segments(planar: bool) -> None:
    stored = np.random.default_rng(0).choice(np.array([0, 9, 200], np.uint8), (4, 12, 12), p=[0.5, 0.4, 0.1])
    kind = ClassValues({"inside": (0,), "membrane": (9,)}, CLASSES, (200,), planar)
    numbers = kind.numbers(stored)
    classes, segments = kind.classes(numbers), kind.segments(numbers)
    assert np.array_equal(classes == 0, stored == 0)
    assert np.array_equal(classes == 1, stored == 9)
    assert np.array_equal(classes == 255, stored == 200)
    if planar:
        expected = [label(plane == 0, connectivity=1) for plane in stored]
        assert len(np.unique(segments)) == 1 + sum(int(plane.max()) for plane in expected)
    else:
        expected = [label(stored == 0, connectivity=1)]
        segments = segments[None]
    for ours, theirs in zip(segments, expected, strict=True):
        pairs = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1)
        assert pairs.shape[1] == len(np.unique(ours)) == len(np.unique(theirs))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int32, np.uint64])
def test_ids_are_counted_anew(dtype: type) -> None:
    largest = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 250
    stored = np.random.default_rng(1).choice(np.array([0, 3, 7, largest], dtype), (3, 6, 6))
    numbers = IDS.numbers(stored)
    assert np.array_equal(numbers == 0, stored == 0)
    assert len(set(zip(numbers.ravel().tolist(), stored.ravel().tolist(), strict=True))) == 4
    assert numbers.max() <= 4
    assert np.array_equal(IDS.classes(numbers), membrane_truth(stored))
    assert np.array_equal(IDS.segments(numbers), numbers)
    assert IDS.numbers(np.full((1, 2, 2), 9, np.uint16)).tolist() == [[[1, 1], [1, 1]]]


def test_ids_that_are_not_labelled() -> None:
    kind = InstanceIds(planar=False, ignore=(65535, -1))
    numbers = kind.numbers(np.array([[[-1, 0, 1, 1, 65535]]], np.int32))
    assert (numbers == 0).tolist() == [[[True, True, False, False, True]]]
    assert kind.classes(numbers).tolist() == [[[255, 255, 0, 0, 255]]]


@pytest.mark.parametrize("kind", [IDS, ClassValues({"inside": (0,)}, CLASSES, (), planar=True)])
def test_truth_that_is_no_truth(kind: TruthKind) -> None:
    for odd in (0.5, np.nan):
        with pytest.raises(InputError, match="whole numbers"):
            kind.numbers(np.array([[[0, odd]]], np.float32))


def test_planar_ids_meet_in_the_plane() -> None:
    ids = np.array([[[1, 1]], [[2, 2]]], np.uint8)
    kind = InstanceIds(planar=True)
    assert not kind.classes(kind.numbers(ids)).any()


def test_a_value_that_stands_for_nothing() -> None:
    kind = ClassValues({"inside": (0,), "membrane": (9,)}, CLASSES, (), planar=True)
    with pytest.raises(InputError, match="value 7"):
        kind.numbers(np.array([[[0, 9, 7]]], np.uint8))


def test_boxes_beyond_the_faces_are_mirrored() -> None:
    rng = np.random.default_rng(2)
    raw, truth = rng.normal(size=(4, 5, 6)).astype(np.float32), rng.integers(0, 2, (4, 5, 6)).astype(np.uint8)
    box = Box((-7, -2, 3), (2, 4, 20))
    values, numbers = source(raw, truth).read(box)
    assert np.array_equal(values, mirrored(raw, box))
    assert np.array_equal(numbers, mirrored(truth, box))


def test_each_slice_keeps_its_normalisation_where_it_is_mirrored() -> None:
    raw = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    table = Normalisation("slice", (0.0, 1.0, 2.0), (1.0, 1.0, 1.0))
    each = TrainingVolume(LoadedVolume(raw), LoadedVolume(np.zeros((3, 2, 2), np.uint8)), IDS, table)
    values, _ = each.read(Box((-2, 0, 0), (5, 2, 2)))
    assert not values.any()


def test_a_sample_is_all_of_it() -> None:
    ids = np.array([[[1, 1, 2, 2]]], np.uint8)
    sample = ValidationVolume.of(TrainingVolume(LoadedVolume(ids.astype(np.float32)), LoadedVolume(ids), IDS, AS_IT_IS))
    assert sample.truth.tolist() == [[[0, 1, 1, 0]]]
    assert np.array_equal(sample.raw, ids)


@pytest.mark.parametrize("repulsive", [False, True])
@pytest.mark.parametrize("anchor", ["source", "destination"])
def test_edges_against_the_definition(anchor: Anchor, repulsive: bool) -> None:
    """Edges are compared pair by pair; 0 and 9 are unlabelled, 7 is background. The last offset is longer than the volume."""
    offsets = ((-1, 0, 0), (0, 2, -1), (1, 0, 3), (0, -9, 0))
    head = Head("a", "affinities", tuple("wxyz"), "sigmoid logits", offsets=offsets, anchor=anchor, repulsive=repulsive)
    ids = np.random.default_rng(0).choice(np.array([0, 3, 4, 7, 9], np.uint64), (3, 5, 6))
    kind = Edges(head, (9,), (7,))
    found = kind.classes(kind.numbers(ids))
    expected = np.full((4, 3, 5, 6), 255)
    for channel, offset in enumerate(offsets):
        for start in np.ndindex(ids.shape):
            end = tuple(np.add(start, offset))
            if min(end) < 0 or any(np.greater_equal(end, ids.shape)) or {ids[start], ids[end]} & {0, 9}:
                continue
            same = ids[start] == ids[end] != 7
            expected[channel, *(start if anchor == "source" else end)] = same != repulsive
    assert np.array_equal(found, expected)
    assert {*np.unique(found[:3])} == {0, 1, 255}
    assert (found[3] == 255).all()
    assert np.array_equal(kind.segments(kind.numbers(ids)) > 0, np.isin(ids, (3, 4)))


def test_zero_may_be_background() -> None:
    head = Head("a", "affinities", ("x",), "sigmoid logits", offsets=((0, 0, 1),))
    row = np.array([[[5, 5, 0, 0, 6]]])
    for background, expected in (((), [1, 255, 255, 255, 255]), ((0,), [1, 0, 0, 0, 255])):
        kind = Edges(head, background=background)
        assert kind.classes(kind.numbers(row))[0, 0, 0].tolist() == expected


def test_a_value_stands_for_several_classes() -> None:
    kind = IndependentValues({"mito": (1, 300), "cristae": (300,), "background": (0,)}, ("mito", "cristae"), (7,))
    classes = kind.classes(kind.numbers(np.array([[[0, 1, 300, 7]]], np.uint16)))
    assert classes[:, 0, 0].tolist() == [[0, 1, 1, 255], [0, 0, 1, 255]]
    with pytest.raises(InputError, match="values without a meaning, such as 8, in 1 of 2 voxels"):
        kind.numbers(np.array([[[0, 8]]]))
