"""Test the mean over the symmetries of the plane, with predictors whose results are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import AS_IS, ArrayVolume, LocalMean, SayingPredictor
from networks import mean_in_one_pass, random_network, torch_predictor
from numpy.typing import NDArray

from emseg_core.block import predict_tiles, read_seen
from emseg_core.box import Box
from emseg_core.canary import batch_is_free
from emseg_core.errors import BlockError, MemoryShortageError, PlanError
from emseg_core.grid.stitch import classify, quantise, softmax
from emseg_core.grid.symmetry import SYMMETRIES, SymmetricPredictor, check_symmetric
from emseg_core.grid.tiles import tiles_of
from emseg_core.specs.model import ModelSpec

POINT = ModelSpec.unet(width=1, depth=0, kernel=(1, 1, 1))
PLANAR = ModelSpec.unet(width=2, depth=2)


class Echo:
    """Predictor whose logit of each class is the voxel times the class number. It records its tiles."""

    spec = ModelSpec.unet(width=1, depth=0, kernel=(1, 1, 1), classes=("a", "b", "c"))

    def __init__(self) -> None:
        self.heard: list[NDArray[np.float32]] = []

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits."""
        assert min(tiles.strides) > 0, "torch would refuse it"
        self.heard.append(tiles)
        return np.stack([tiles * i for i in range(3)], axis=1)


class Corner(SayingPredictor):
    """Predictor with another result for the first voxel of a tile, whatever that voxel is."""

    def __init__(self, spec: ModelSpec, value: float) -> None:
        super().__init__(spec, (0.0, 1.0))
        self._value = value

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits, one of which differs."""
        logits = super().predict(tiles)
        logits[:, 1, 0, 0, 0] = self._value
        return logits


def ramp(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return voxels that all differ."""
    return np.linspace(-2, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def test_each_symmetry_is_seen_once_and_undone() -> None:
    tiles, echo = ramp((2, 3, 4, 5)), Echo()
    found = SymmetricPredictor(echo).predict(tiles)
    assert len({(seen.shape, seen.tobytes()) for seen in echo.heard}) == len(echo.heard) == len(SYMMETRIES) == 8
    assert found.dtype == np.float32
    expected = np.stack([softmax(logits) for logits in Echo().predict(tiles)])
    np.testing.assert_allclose(np.stack([softmax(logits) for logits in found]), expected, rtol=1e-6)
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-6, err_msg="logarithms of the mean itself")
    np.testing.assert_array_equal(classify(found[1]), classify(Echo().predict(tiles)[1]))


def test_it_is_the_mean() -> None:
    """An odd corner is one of the eight results at each corner of a square, where it appears twice."""
    found = softmax(SymmetricPredictor(Corner(POINT, -3.0)).predict(ramp((1, 1, 4, 4)))[0])
    plain, odd = (1 / (1 + np.exp(-logit)) for logit in (1.0, -3.0))
    expected = np.full((4, 4), plain)
    expected[::3, ::3] = (6 * plain + 2 * odd) / 8
    np.testing.assert_allclose(found[1, 0], expected, rtol=1e-6)


def test_a_tile_alone_has_the_bytes_that_it_has_in_a_batch() -> None:
    assert batch_is_free(SymmetricPredictor(LocalMean(PLANAR)), 3)


@pytest.mark.parametrize("spec", [PLANAR, ModelSpec.unet(width=2, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2))])
def test_twice_is_the_same_bytes(spec: ModelSpec) -> None:
    network = random_network(spec)
    tiles = ramp((2, *spec.tile_for((2, 9, 20))))
    first, second = (SymmetricPredictor(torch_predictor(network)).predict(tiles).tobytes() for _ in range(2))
    assert first == second


def test_a_turned_volume_gives_the_turned_means() -> None:
    """No orientation is preferred, if the tile is square and ends on the lattice."""
    network = random_network(PLANAR)
    values = ramp((1, 24, 24))
    turned = mean_in_one_pass(network, np.rot90(values, 1, (1, 2)))
    tile = PLANAR.tile_for((1, 24, 24))
    assert PLANAR.output_shape(tile) == (1, 24, 24)
    np.testing.assert_allclose(turned, np.rot90(mean_in_one_pass(network, values), 1, (2, 3)), atol=1e-10)


@pytest.mark.parametrize("logits", [(0.0, -1000.0), (3e38, -3e38), (0.0, -104.0)])
def test_a_class_that_is_never_probable_has_a_finite_logit(logits: tuple[float, float]) -> None:
    found = SymmetricPredictor(SayingPredictor(POINT, logits)).predict(ramp((1, 1, 3, 2)))
    assert np.isfinite(found).all()
    assert (quantise(softmax(found[0])) == np.array([254, 0], np.uint8)[:, None, None, None]).all()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found(odd: float) -> None:
    """Even an infinity that softmax would turn into a harmless 0 is found, and only at the voxels that it reached."""
    predictor: Any = SymmetricPredictor(Corner(POINT, odd))
    found = predictor.predict(ramp((1, 1, 4, 4)))[0]
    corners = np.zeros((4, 4), bool)
    corners[::3, ::3] = True
    np.testing.assert_array_equal(np.isnan(found), np.broadcast_to(corners, found.shape))
    box = Box.of_shape((1, 4, 4))
    seen = read_seen(ArrayVolume(ramp(box.shape)), AS_IS, box)
    with pytest.raises(BlockError, match="NaN or infinity"):
        list(predict_tiles(predictor, seen, tiles_of(box, box.shape, POINT), 1))


def test_a_shortage_of_memory_comes_through() -> None:
    class Full(LocalMean):
        def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
            raise MemoryShortageError("full")

    with pytest.raises(MemoryShortageError):
        SymmetricPredictor(Full(POINT)).predict(ramp((1, 1, 4, 4)))


@pytest.mark.parametrize(
    ("kernels", "pooling", "named"),
    [
        (((1, 3, 3), (1, 3, 5)), ((1, 2, 2),), "kernel at level 1 is 3 in y and 5 in x"),
        (((3, 3, 3), (3, 3, 3)), ((2, 2, 1),), "pooling at level 0 is 2 in y and 1 in x"),
    ],
)
def test_a_network_that_prefers_an_axis_is_refused(kernels: Any, pooling: Any, named: str) -> None:
    spec = ModelSpec(1, 1, ("a", "b"), kernels, pooling)
    for refuse in (check_symmetric, lambda spec: SymmetricPredictor(LocalMean(spec))):
        with pytest.raises(PlanError, match=rf"turns tiles by 90 degrees.*{named}: leave out --tta") as caught:
            refuse(spec)
        assert "\n" not in str(caught.value)
