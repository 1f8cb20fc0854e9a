"""Test normalisation against NumPy on the whole volume."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import numpy as np
import pytest
from fakes import ArrayVolume
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import boxes_in, shapes

from emseg_core.box import Box, Triple
from emseg_core.errors import BlockError, VolumeError
from emseg_core.normalise import (
    MAX_SAMPLE_BOXES,
    MAX_SLICE_BOXES,
    PADDING_EDGE_PIXELS,
    SAMPLE_EDGE_VOXELS,
    SLICE_EDGE_PIXELS,
    Normalisation,
    Scope,
    refuse_nonfinite,
    sample_boxes,
    survey,
)
from emseg_core.specs.volume import DTYPES, VolumeSpec

LARGE: Triple = (150, 1500, 1400)
"""A shape too large to be measured whole, in either scope."""


class Hills:
    """A volume of any size that is computed when it is read, and becomes brighter from slice to slice."""

    def __init__(self, shape: Triple) -> None:
        self.spec = VolumeSpec(shape, "uint16", (64, 64, 64))
        self.reads: list[Box] = []

    def read(self, box: Box) -> NDArray[Any]:
        """Return pseudo-random voxels from 100 z to 100 z + 250."""
        assert self.spec.box.contains(box)
        self.reads.append(box)
        z, y, x = np.ogrid[box.slices()]
        made: NDArray[np.uint16] = (100 * z + (7919 * z + 104_729 * y * y + 1_299_709 * x * x + y * x) % 251).astype(np.uint16)
        return made


def noise(shape: Triple, dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    """Return noise from 1 to 255. 0 is left for padding."""
    return np.random.default_rng(seed).integers(1, 256, shape).astype(dtype)


# -- measured whole -----------------------------------------------------------------------------------------------------


@given(shapes(20), st.sampled_from(DTYPES), st.integers(0, 9))
def test_a_small_volume_is_measured_whole(shape: Triple, dtype: str, seed: int) -> None:
    values = noise(shape, dtype, seed)
    found, _ = survey(ArrayVolume(values), "volume")
    assert found.scope == "volume"
    np.testing.assert_allclose(found.mean, [values.mean(dtype=np.float64)])
    np.testing.assert_allclose(found.deviation, [values.std(dtype=np.float64) or 1])


@given(shapes(20), st.sampled_from(DTYPES), st.integers(0, 9))
def test_each_slice_by_itself(shape: Triple, dtype: str, seed: int) -> None:
    values = noise(shape, dtype, seed)
    found, _ = survey(ArrayVolume(values), "slice")
    deviation = values.std(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(found.mean, values.mean(axis=(1, 2), dtype=np.float64))
    np.testing.assert_allclose(found.deviation, np.where(deviation > 0, deviation, 1))


@pytest.mark.parametrize("scope", ["volume", "slice"])
@pytest.mark.parametrize("depth", [63, 64, 65, 200])
def test_slabs_are_read_once_each(scope: Scope, depth: int) -> None:
    values = noise((depth, 9, 9))
    volume = ArrayVolume(values)
    found, _ = survey(volume, scope)
    assert sum(box.voxels for box in volume.reads) == values.size
    assert max(box.shape[0] for box in volume.reads) <= SAMPLE_EDGE_VOXELS, "little memory"
    axis = (1, 2) if scope == "slice" else None
    np.testing.assert_allclose(found.mean, np.atleast_1d(values.mean(axis=axis)))
    np.testing.assert_allclose(found.deviation, np.atleast_1d(values.std(axis=axis)))


@given(shapes(5).filter(lambda shape: min(shape[1:]) < PADDING_EDGE_PIXELS), st.sampled_from(["volume", "slice"]))
@example((1, 1, 1), "volume")
@example((1, 1, 1), "slice")
def test_axes_too_short_for_padding(shape: Triple, scope: Scope) -> None:
    values = noise(shape)
    found, _ = survey(ArrayVolume(values), scope)
    assert found.mean[0] == pytest.approx(values[:1].mean() if scope == "slice" else values.mean())


# -- padding ------------------------------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from(["volume", "slice"]), st.sampled_from(DTYPES), st.sampled_from([0, 255]))
@settings(max_examples=50)
def test_constant_padding_is_left_out(data: st.DataObject, scope: Scope, dtype: str, blank: int) -> None:
    """The frames differ from slice to slice and are at least `PADDING_EDGE_PIXELS` wide."""
    tissue, frames = noise((4, 24, 24), dtype) % 250 + 1, np.ones((4, 24, 24), bool)
    for plane in frames:
        top, bottom, left, right = (data.draw(st.integers(PADDING_EDGE_PIXELS, 10)) for _ in range(4))
        plane[top : 24 - bottom, left : 24 - right] = False
    values = np.where(frames, blank, tissue).astype(dtype)
    found, _ = survey(ArrayVolume(values), scope)
    inside = [values[~frames]] if scope == "volume" else [values[z][~frames[z]] for z in range(4)]
    np.testing.assert_allclose(found.mean, [part.mean(dtype=np.float64) for part in inside])
    np.testing.assert_allclose(found.deviation, [part.std(dtype=np.float64) for part in inside])


def test_single_equal_pixels_are_no_padding() -> None:
    """Saturated spots are smaller than the square that counts as padding."""
    values = noise((2, 30, 30))
    values[0, 3:6, 3:20] = 255
    values[1, :, 7:10] = 0
    found, _ = survey(ArrayVolume(values), "volume")
    assert found.mean[0] == pytest.approx(values.mean())


def test_a_blank_slice_among_others() -> None:
    values = noise((3, 30, 30))
    values[1] = 77
    found, _ = survey(ArrayVolume(values), "slice")
    assert (found.mean[1], found.deviation[1]) == (77, 1)
    assert found.mean[0] == pytest.approx(values[0].mean())
    whole, _ = survey(ArrayVolume(values), "volume")
    assert whole.mean[0] == pytest.approx(values[[0, 2]].mean()), "in the volume it is padding"


@given(
    shapes(20),
    st.one_of(
        st.tuples(st.just("float32"), st.floats(-1e6, 1e6, width=32)), st.tuples(st.just("uint16"), st.integers(0, 65535))
    ),
    st.sampled_from(["volume", "slice"]),
)
@example((16, 35, 36), ("float32", 122.80154), "volume")
@example((37, 8, 5), ("float32", 458.03024), "slice")
def test_a_constant_volume_becomes_zero(shape: Triple, kind: tuple[str, float], scope: Scope) -> None:
    """Its deviation is set to 1. The rounding error of 0 would amplify other voxels."""
    dtype, value = kind
    values = np.full(shape, value, dtype)
    found, _ = survey(ArrayVolume(values), scope)
    assert set(found.deviation) == {1}
    np.testing.assert_allclose(found.mean, float(values[0, 0, 0]), rtol=1e-12)
    assert not found.apply(values, Box.of_shape(shape)).any()


@pytest.mark.parametrize("offset", [0, 100, 60_000])
def test_little_contrast_on_a_bright_ground_is_kept(offset: int) -> None:
    values = (offset + noise((20, 64, 64), "uint16") % 2).astype(np.uint16)
    found, _ = survey(ArrayVolume(values), "volume")
    assert found.deviation[0] == pytest.approx(values.std(dtype=np.float64), rel=1e-4)


# -- sampled ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_a_large_volume_is_sampled_from_the_seed_alone(scope: Scope) -> None:
    first, again, other = Hills(LARGE), Hills(LARGE), Hills(LARGE)
    found, digest = survey(first, scope, seed=1)
    assert survey(again, scope, seed=1) == (found, digest)
    assert first.reads == again.reads
    assert survey(other, scope, seed=2)[1] != digest
    assert first.reads != other.reads
    assert sum(box.voxels for box in first.reads) < first.spec.box.voxels / 5


def test_a_sample_of_the_volume_is_close_to_the_whole() -> None:
    found, _ = survey(Hills(LARGE), "volume")
    assert found.mean[0] == pytest.approx(100 * 74.5 + 125, rel=0.1)
    assert len(list(sample_boxes(Hills(LARGE).spec, "volume", 0))) == MAX_SAMPLE_BOXES


def test_every_slice_has_its_share_of_the_sample() -> None:
    spec = Hills(LARGE).spec
    share = np.zeros(LARGE[0], int)
    for box in sample_boxes(spec, "slice", 0):
        assert spec.box.contains(box)
        assert box.shape[1:] == (SLICE_EDGE_PIXELS, SLICE_EDGE_PIXELS)
        share[box.start[0] : box.stop[0]] += 1
    assert (share == MAX_SLICE_BOXES).all()
    found, _ = survey(Hills(LARGE), "slice")
    np.testing.assert_allclose(found.mean, 100 * np.arange(LARGE[0]) + 125, atol=2)
    np.testing.assert_allclose(found.deviation, np.arange(251).std(), rtol=0.02)


@given(st.tuples(st.integers(1, 10**5), st.integers(1, 10**5), st.integers(1, 10**5)), st.sampled_from(["volume", "slice"]))
def test_sampled_boxes_lie_inside_and_are_small(shape: Triple, scope: Scope) -> None:
    spec = VolumeSpec(shape, "uint8", (64, 64, 64))
    boxes = list(islice(sample_boxes(spec, scope, 3), 101))
    assert boxes
    for box in boxes:
        assert spec.box.contains(box)
        assert box.voxels <= MAX_SAMPLE_BOXES * SAMPLE_EDGE_VOXELS**3


def test_the_digest_is_of_the_voxels() -> None:
    values = noise((3, 20, 20))
    changed = values.copy()
    changed[2, 19, 19] ^= 1
    _, digest = survey(ArrayVolume(values), "volume")
    assert survey(ArrayVolume(values.copy(), chunk=(1, 2, 3)), "volume")[1] == digest
    assert survey(ArrayVolume(changed), "volume")[1] != digest


# -- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_number_is_named_by_its_place(bad: float) -> None:
    values = noise((70, 20, 20), "float32")
    values[66, 5, 7] = bad
    with pytest.raises(VolumeError, match=rf"voxel \(66, 5, 7\) \(z, y, x\) is {bad}, but .*: replace it, or leave it out"):
        survey(ArrayVolume(values), "volume")


def test_the_place_counts_from_the_volume_s_origin() -> None:
    values = np.ones((2, 3, 4), np.float32)
    refuse_nonfinite(values, Box((5, 6, 7), (7, 9, 11)), BlockError)
    values[1, 2, 3] = np.nan
    with pytest.raises(BlockError, match=r"voxel \(6, 8, 10\)"):
        refuse_nonfinite(values, Box((5, 6, 7), (7, 9, 11)), BlockError)


def test_another_scope_is_refused() -> None:
    with pytest.raises(VolumeError, match="normalisation is per volume or per slice, not per 'tile'"):
        survey(ArrayVolume(noise((2, 5, 5))), "tile")  # type: ignore[arg-type]


# -- applied ------------------------------------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn, depth: int) -> Normalisation:
    scope: Scope = draw(st.sampled_from(["volume", "slice"]))
    rows = depth if scope == "slice" else 1
    numbers = st.lists(st.floats(0.5, 300), min_size=rows, max_size=rows).map(tuple)
    return Normalisation(scope, draw(numbers), draw(numbers))


@given(st.data(), shapes(8), st.sampled_from(DTYPES))
def test_a_voxel_gets_the_same_bits_in_any_box(data: st.DataObject, shape: Triple, dtype: str) -> None:
    values, table, box = noise(shape, dtype), data.draw(tables(shape[0])), data.draw(boxes_in(shape))
    part = values[box.slices()].copy()
    before = part.copy()
    whole = table.apply(values, Box.of_shape(shape))
    assert whole.dtype == np.float32
    assert table.apply(part, box).tobytes() == whole[box.slices()].tobytes()
    np.testing.assert_array_equal(part, before)
    for z in range(shape[0]):
        row = z if table.scope == "slice" else 0
        np.testing.assert_allclose(whole[z], (values[z] - table.mean[row]) / table.deviation[row], rtol=1e-3, atol=1e-4)


@given(st.data(), st.integers(1, 9))
def test_json_keeps_every_bit(data: st.DataObject, depth: int) -> None:
    table = data.draw(tables(depth))
    assert Normalisation.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_what_was_measured_becomes_mean_0_and_deviation_1() -> None:
    values = noise((5, 40, 40))
    for scope in ("volume", "slice"):
        found, _ = survey(ArrayVolume(values), scope)
        applied = found.apply(values, Box.of_shape((5, 40, 40)))
        assert applied.mean() == pytest.approx(0, abs=1e-5)
        assert applied.std() == pytest.approx(1, abs=1e-5)


# -- percentiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_percentiles_are_those_of_the_whole_volume(dtype: str) -> None:
    values = noise((70, 40, 48), dtype)
    found, digest = survey(ArrayVolume(values), "volume", percentiles=(1, 99.8), eps=0.5)
    low, high = np.percentile(values, (1, 99.8))
    assert (found.scope, found.mean, found.deviation) == ("volume", (low,), (high - low + 0.5,))
    assert digest == survey(ArrayVolume(values), "volume")[1]  # what was read is the same


def test_percentiles_leave_padding_out() -> None:
    values = noise((4, 64, 64))
    padded = np.pad(values, ((0, 0), (0, 40), (0, 0)))
    found, _ = survey(ArrayVolume(padded), "volume", percentiles=(0, 100))
    assert (found.mean, found.deviation) == ((1.0,), (254.0,))
    nothing, _ = survey(ArrayVolume(np.full((2, 9, 9), 7, np.uint8)), "volume", percentiles=(1, 99), eps=1e-6)
    assert (nothing.mean, nothing.deviation) == ((7.0,), (1.0,))


def test_percentiles_of_a_large_volume_are_those_of_its_sample() -> None:
    volume = Hills(LARGE)
    found, _ = survey(volume, "volume", percentiles=(5, 95))
    sample = np.concatenate([Hills(LARGE).read(box).ravel() for box in volume.reads])
    low, high = np.percentile(sample, (5, 95))
    assert (found.mean, found.deviation) == ((low,), (high - low,))
    assert survey(Hills(LARGE), "volume", percentiles=(5, 95))[0] == found


@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_eps_is_added_to_what_is_measured(scope: Scope) -> None:
    volume = ArrayVolume(noise((3, 40, 48)))
    plain, more = survey(volume, scope)[0], survey(volume, scope, eps=0.25)[0]
    assert more.deviation == tuple(deviation + 0.25 for deviation in plain.deviation)
    assert more.mean == plain.mean
