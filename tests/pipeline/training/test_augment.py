"""Test crops: raw and truth stay aligned, faces are mirrored, draws are repeatable and have the requested strengths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from trainings import VALUES, source

from emseg_core.box import Box, Triple, triple
from emseg_core.grid.mirror import mirrored
from emseg_core.specs.model import ModelSpec
from emseg_core.training.augment import (
    CropSampler,
    flip_and_transpose,
    sample_at,
    transpositions,
    vary_intensity,
    warped_coordinates,
)
from emseg_core.training.spec import AugmentSpec
from emseg_core.training.truth_reader import ClassValues

NONE = AugmentSpec(displacement=0, gain=0, offset=0, noise=0)
CUBE = ModelSpec.unet(width=1, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2))
FLAT = ModelSpec.unet(width=1, depth=1, kernel=(1, 3, 3), pooling=(1, 2, 2))
NUMBERS = ClassValues({f"c{n}": (n,) for n in range(251)}, tuple(f"c{n}" for n in range(251)), (), planar=False)


def numbered(shape: Triple) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return grey values that are all different, and a truth that follows from each."""
    raw = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return raw, (raw % 251).astype(np.uint8)


def crops(spec: ModelSpec, shape: Triple, output: Triple, augment: AugmentSpec = NONE) -> CropSampler:
    return CropSampler([source(*numbered(shape), NUMBERS)], spec, output, augment)


def inner(tile: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    return tile[tuple(slice(c, n - c) for c, n in zip(spec.context, tile.shape, strict=True))]


@pytest.mark.parametrize("spec", [CUBE, FLAT])
@pytest.mark.parametrize("shape", [(20, 21, 22), (1, 30, 30), (3, 2, 50)])
def test_turned_crops_stay_aligned(spec: ModelSpec, shape: Triple) -> None:
    drawn = crops(spec, shape, (1, 6, 6))
    for seed in range(20):
        crop = drawn.draw(np.random.default_rng(seed))
        assert crop.tile.shape == drawn.tile == spec.tile_for((1, 6, 6))
        assert crop.truth.shape == crop.segments.shape == spec.output_shape(drawn.tile)
        assert np.array_equal(inner(crop.tile, spec) % 251, crop.truth)


def test_a_tile_at_a_corner_is_mirrored() -> None:
    drawn = crops(CUBE, (8, 8, 8), (8, 8, 8))
    whole = np.pad(numbered((8, 8, 8))[0], [(c, c) for c in CUBE.context], mode="reflect")
    assert whole.shape == drawn.tile  # there is one position for it
    tile = drawn.draw(np.random.default_rng(0)).tile
    assert np.array_equal(np.sort(tile, axis=None), np.sort(whole, axis=None))


def test_every_place_and_orientation_is_drawn() -> None:
    drawn = crops(CUBE, (9, 8, 9), (8, 8, 8))
    tiles = {drawn.draw(np.random.default_rng(seed)).tile.tobytes() for seed in range(1500)}
    assert len(tiles) == 2**2 * 48  # two positions along two axes; 48 symmetries of the cube


def test_volumes_are_drawn_by_their_weights() -> None:
    raw, truth = np.zeros((6, 6, 6)), np.zeros((6, 6, 6), np.uint8)
    drawn = CropSampler([source(raw, truth, weight=1), source(raw + 1, truth, weight=3)], CUBE, (2, 2, 2), NONE)
    second = [drawn.draw(np.random.default_rng(seed)).tile.mean() for seed in range(800)]
    assert abs(np.mean(second) - 0.75) < 0.05  # more than three standard errors


def test_transpositions_are_the_symmetries_of_network_and_tile() -> None:
    assert len(transpositions(CUBE, (20, 20, 20))) == 6
    assert transpositions(CUBE, (12, 20, 20)) == [(0, 1, 2), (0, 2, 1)]
    assert transpositions(FLAT, (20, 20, 20)) == [(0, 1, 2), (0, 2, 1)]
    assert transpositions(FLAT, (1, 16, 20)) == [(0, 1, 2)]


def test_turn_keeps_pairs() -> None:
    raw, truth = numbered((4, 5, 6))
    for seed in range(20):
        a, b = flip_and_transpose(raw, truth, [(0, 1, 2), (2, 1, 0)], np.random.default_rng(seed))
        assert np.array_equal(a % 251, b)


WARPS = {
    "displaced": AugmentSpec(displacement=2),
    "rotated": AugmentSpec(displacement=0, rotate=True),
    "scaled": AugmentSpec(displacement=0, scale=0.3),
    "all": AugmentSpec(displacement=2, rotate=True, scale=0.2),
}


@pytest.mark.parametrize("augment", WARPS.values(), ids=WARPS)
@pytest.mark.parametrize("tile", [(12, 24, 20), (1, 40, 40)])
def test_places_are_fetched_from_the_mirrored_volume(augment: AugmentSpec, tile: Triple) -> None:
    """The reference is another library's interpolation of a volume that is mirrored far beyond its faces."""
    shape = (14, 30, 26)
    rng = np.random.default_rng(1)
    raw = ndimage.gaussian_filter(rng.normal(size=shape), (0, 2, 2)).astype(np.float32)
    truth = (raw > 0).astype(np.uint8)
    start = (1, -4, 5)
    places = warped_coordinates(tile, augment, rng, planar=False)
    assert places is not None
    reach = Box(triple(int(np.floor(p.min())) for p in places), triple(int(np.ceil(p.max())) + 1 for p in places))
    moved, target = sample_at(*source(raw, truth).read(reach.shift(start)), places, reach.start)
    far = mirrored(raw, Box((-40, -80, -80), (60, 110, 110)))
    where = [place + first + more for place, first, more in zip(places, start, (40, 80, 80), strict=True)]
    straight = ndimage.map_coordinates(far, where, order=1)
    assert np.abs(moved - straight).max() < (0.06 if tile[0] == 1 else 1e-4)  # planes are interpolated bicubically
    nearest = ndimage.map_coordinates((far > 0).astype(np.uint8), where, order=0)
    assert (target != nearest).mean() < 0.005  # positions half-way between two voxels


@pytest.mark.parametrize("tile", [(8, 30, 30), (1, 64, 64)])
def test_a_rotation_turns_about_the_middle_and_keeps_lengths(tile: Triple) -> None:
    for seed in range(10):
        places = warped_coordinates(tile, WARPS["rotated"], np.random.default_rng(seed), planar=False)
        assert places is not None
        _, y, x = (place - (length - 1) / 2 for place, length in zip(places, tile, strict=True))
        v, u = (np.arange(length) - (length - 1) / 2 for length in tile[1:])
        assert np.allclose(np.hypot(y, x), np.hypot(v[:, None], u), atol=1e-3)
        assert np.allclose(places[0], np.arange(tile[0])[:, None, None])


def test_sizes_are_scaled_within_bounds() -> None:
    factors = []
    for seed in range(200):
        places = warped_coordinates(
            (1, 21, 21), AugmentSpec(displacement=0, scale=0.2), np.random.default_rng(seed), planar=False
        )
        assert places is not None
        factors.append((places[2][0, 0, -1] - places[2][0, 0, 0]) / 20)
    assert np.exp(-0.2) <= min(factors) < 0.85
    assert 1.18 < max(factors) <= np.exp(0.2)


@pytest.mark.parametrize("tile", [(24, 24, 24), (1, 65, 65)])
def test_displacements_have_their_deviation(tile: Triple) -> None:
    """Only the points themselves are tested. Between them the field is a mean of several, and smaller."""
    spec = AugmentSpec(displacement=3, spacing=(tile[1] - 1) // 2 + 1 if tile[0] > 1 else (tile[1] - 1) // 2)
    corners = []
    for seed in range(300):
        places = warped_coordinates(tile, spec, np.random.default_rng(seed), planar=False)
        assert places is not None
        corners += [float(places[1][0, 0, 0]), float(places[2][0, 0, 0])]
    assert abs(np.std(corners) - 3) < 0.3  # three standard errors of 600 numbers
    assert abs(np.mean(corners)) < 0.4


def test_planes_of_their_own_stay_apart() -> None:
    places = warped_coordinates((4, 30, 30), WARPS["all"], np.random.default_rng(0), planar=True)
    assert places is not None
    assert np.array_equal(places[0], np.broadcast_to(np.arange(4)[:, None, None], (4, 30, 30)))


def test_sparse_truth_is_looked_for() -> None:
    truth = np.full((1, 300, 300), 255, np.uint8)
    truth[0, 140:200, 140:200] = 0
    drawn = CropSampler([source(np.zeros(truth.shape), truth)], FLAT, (1, 20, 20), NONE)
    labelled = [(drawn.draw(np.random.default_rng(seed)).truth != 255).any() for seed in range(100)]
    assert np.mean(labelled) > 0.5  # one position in fourteen has some


def test_nothing_moves_unasked() -> None:
    assert warped_coordinates((1, 8, 8), NONE, np.random.default_rng(0), planar=True) is None


def test_grey_values_vary_within_bounds() -> None:
    raw = np.array([[[-1.0, 0.0, 1.0]]], np.float32)
    for seed in range(50):
        low, middle, high = vary_intensity(raw, replace(NONE, gain=0.3, offset=0.2), np.random.default_rng(seed)).ravel()
        assert np.exp(-0.3) <= (high - low) / 2 <= np.exp(0.3)
        assert abs(middle) <= 0.2
    assert np.array_equal(vary_intensity(raw, NONE, np.random.default_rng(0)), raw)


def test_half_of_the_crops_are_blurred() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32)
    spread = np.array(
        [vary_intensity(noise, replace(NONE, blur=2.0), np.random.default_rng(seed)).std() for seed in range(100)]
    )
    assert 35 <= (spread == noise.std()).sum() <= 65
    assert spread.min() < 0.3 * noise.std()


def test_shade_is_smooth_and_has_its_deviation() -> None:
    ones = np.ones((2, 64, 64), np.float32)
    corners = []
    for seed in range(300):
        made = vary_intensity(ones, replace(NONE, shade=0.2), np.random.default_rng(seed))
        assert np.array_equal(made[0], made[1])
        assert np.abs(np.diff(made[0], axis=0)).max() < 0.15
        corners.append(made[0, 0, 0] - 1)
    assert abs(np.std(corners) - np.hypot(0.2, 0.2)) < 0.05  # a gain and an offset


def test_noise_is_at_most_as_strong_as_asked() -> None:
    flat = np.zeros((1, 64, 64), np.float32)
    spread = [vary_intensity(flat, replace(NONE, noise=0.4), np.random.default_rng(seed)).std() for seed in range(100)]
    assert 0.35 < max(spread) < 0.42
    assert min(spread) < 0.05


def test_the_seed_decides_all() -> None:
    drawn = crops(CUBE, (20, 20, 20), (6, 6, 6), AugmentSpec(rotate=True, shade=0.1, blur=1, scale=0.1))
    first, second, other = (drawn.draw(np.random.default_rng(seed)) for seed in (5, 5, 6))
    for one, again in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, again)
    assert not np.array_equal(first[0], other[0])


def test_ignored_voxels_stay_ignored() -> None:
    ignored = source(np.zeros((12, 12, 12)), np.full((12, 12, 12), 255, np.uint8), VALUES)
    crop = CropSampler([ignored], CUBE, (6, 6, 6), AugmentSpec(rotate=True)).draw(np.random.default_rng(0))
    assert (crop.truth == 255).all()
    assert not crop.segments.any()
