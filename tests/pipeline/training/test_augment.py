"""Crops: raw and truth stay aligned, borders are mirrored, draws are repeatable."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from emseg.box import Triple
from emseg.specs.model import ModelSpec
from emseg.training.augment import Crops, deform, transpositions, turn, vary
from emseg.training.spec import AugmentSpec

NONE = AugmentSpec(displacement=0, gain=0, offset=0, noise=0)
CUBE = ModelSpec.unet(width=1, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2))
FLAT = ModelSpec.unet(width=1, depth=1, kernel=(1, 3, 3), pooling=(1, 2, 2))


def numbered(shape: Triple) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Grey values that are all different, and a truth that follows from each."""
    raw = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return raw, (raw % 251).astype(np.uint8)


def inner(tile: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    return tile[tuple(slice(c, n - c) for c, n in zip(spec.context, tile.shape, strict=True))]


@pytest.mark.parametrize("spec", [CUBE, FLAT])
@pytest.mark.parametrize("shape", [(20, 21, 22), (1, 30, 30), (3, 2, 50)])
def test_turned_crops_stay_aligned(spec: ModelSpec, shape: Triple) -> None:
    raw, truth = numbered(shape)
    crops = Crops(raw, truth, spec, (1, 6, 6), NONE)
    for seed in range(20):
        tile, target = crops.draw(np.random.default_rng(seed))
        assert tile.shape == crops.tile == spec.tile_for((1, 6, 6))
        assert target.shape == spec.output_shape(crops.tile)
        assert np.array_equal(inner(tile, spec) % 251, target)


def test_a_tile_at_a_corner_is_mirrored() -> None:
    raw, truth = numbered((8, 8, 8))
    crops = Crops(raw, truth, CUBE, (8, 8, 8), NONE)
    mirrored = np.pad(raw, [(c, c) for c in CUBE.context], mode="reflect")
    start = [n - t for n, t in zip(mirrored.shape, crops.tile, strict=True)]
    assert start == [0, 0, 0]  # the tile is the whole mirrored volume
    tile, _ = crops.draw(np.random.default_rng(0))
    assert np.array_equal(np.sort(tile, axis=None), np.sort(mirrored, axis=None))


def test_every_place_and_orientation_is_drawn() -> None:
    raw, truth = numbered((9, 9, 9))
    crops = Crops(raw, truth, CUBE, (8, 8, 8), NONE)
    tiles = {crops.draw(np.random.default_rng(seed))[0].tobytes() for seed in range(3000)}
    assert len(tiles) == 2**3 * 48  # two places per axis; 48 symmetries of the cube


def test_transpositions_are_the_symmetries_of_network_and_tile() -> None:
    assert len(transpositions(CUBE, (20, 20, 20))) == 6
    assert transpositions(CUBE, (12, 20, 20)) == [(0, 1, 2), (0, 2, 1)]
    assert transpositions(FLAT, (20, 20, 20)) == [(0, 1, 2), (0, 2, 1)]
    assert transpositions(FLAT, (1, 16, 20)) == [(0, 1, 2)]


def test_turn_keeps_pairs() -> None:
    raw, truth = numbered((4, 5, 6))
    for seed in range(20):
        a, b = turn(raw, truth, [(0, 1, 2), (2, 1, 0)], np.random.default_rng(seed))
        assert np.array_equal(a % 251, b)


@pytest.mark.parametrize("shape", [(24, 24, 24), (1, 40, 40)])
def test_deformation_moves_raw_and_truth_alike(shape: Triple) -> None:
    coordinates = np.indices(shape).sum(axis=0) / 10
    raw = np.sin(coordinates).astype(np.float32)
    truth = (raw > 0).astype(np.uint8)
    moved, target = deform(raw, truth, AugmentSpec(displacement=2), np.random.default_rng(1))
    assert moved.shape == target.shape == shape
    assert set(np.unique(target)) <= {0, 1}
    assert (target != truth).mean() > 0.02  # it did move
    clear = np.abs(moved) > 0.1  # within a voxel of the edge, nearest and interpolated may disagree
    assert np.array_equal((moved > 0)[clear], target[clear] == 1)


def test_no_displacement_changes_nothing() -> None:
    raw, truth = numbered((8, 9, 10))
    moved, target = deform(raw, truth, AugmentSpec(displacement=0), np.random.default_rng(0))
    assert np.allclose(moved, raw, atol=1e-2)
    assert np.array_equal(target, truth)


def test_grey_values_vary_within_bounds() -> None:
    raw = np.array([[[-1.0, 0.0, 1.0]]], np.float32)
    for seed in range(50):
        low, middle, high = vary(raw, AugmentSpec(gain=0.3, offset=0.2, noise=0), np.random.default_rng(seed)).ravel()
        assert np.exp(-0.3) <= (high - low) / 2 <= np.exp(0.3)
        assert abs(middle) <= 0.2
    assert np.array_equal(vary(raw, NONE, np.random.default_rng(0)), raw)


def test_the_seed_decides_all() -> None:
    raw, truth = numbered((20, 20, 20))
    crops = Crops(raw, truth, CUBE, (6, 6, 6), AugmentSpec())
    first, second, other = (crops.draw(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_ignored_voxels_stay_ignored() -> None:
    raw, truth = np.zeros((12, 12, 12), np.float32), np.full((12, 12, 12), 255, np.uint8)
    _, target = Crops(raw, truth, CUBE, (6, 6, 6), AugmentSpec()).draw(np.random.default_rng(0))
    assert (target == 255).all()
