"""Test that the canary's result is the same if, and only if, the predictor gives the same bytes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from fakes import LocalMean
from networks import random_network, torch_predictor
from numpy.typing import NDArray

from emseg_core.box import Triple, triple
from emseg_core.canary import MAX_OUTPUT_LENGTH, batch_is_free, canary_of
from emseg_core.specs.model import ModelSpec

if TYPE_CHECKING:
    from emseg_core.model.predictor import TorchPredictor

PLANAR = ModelSpec.unet(width=2, depth=2)
SOLID = ModelSpec.unet(width=2, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2))
MEAN = ModelSpec.unet(width=1, depth=0, kernel=(3, 3, 3))


class Listening(LocalMean):
    """Predictor that records its tiles and multiplies the result."""

    def __init__(self, spec: ModelSpec, gain: float = 1.0) -> None:
        super().__init__(spec)
        self.heard: list[NDArray[np.float32]] = []
        self._gain = np.float32(gain)

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits."""
        self.heard.append(tiles.copy())
        return super().predict(tiles) * self._gain


class Crowded(LocalMean):
    """Predictor whose result for a tile differs in one last bit within a batch."""

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits."""
        logits = super().predict(tiles)
        if len(tiles) > 1:
            logits[-1, -1, 0, 0, 0] = np.nextafter(logits[-1, -1, 0, 0, 0], np.float32(np.inf))
        return logits


def predictor(spec: ModelSpec, seed: int = 0) -> TorchPredictor:
    torch = pytest.importorskip("torch")
    return torch_predictor(random_network(spec, seed, torch.float32))


@pytest.mark.parametrize("spec", [PLANAR, SOLID])
def test_the_same_network_sings_the_same(spec: ModelSpec) -> None:
    tile = spec.tile_for((4, 20, 20))
    first = predictor(spec)
    song = canary_of(first, tile)
    assert len(song) == 64
    assert int(song, 16) >= 0
    assert canary_of(first, tile) == song
    assert canary_of(predictor(spec), tile) == song


@pytest.mark.parametrize("spec", [PLANAR, SOLID])
def test_other_weights_sing_otherwise(spec: ModelSpec) -> None:
    tile = spec.tile_for((4, 20, 20))
    assert canary_of(predictor(spec, 0), tile) != canary_of(predictor(spec, 1), tile)
    torch = pytest.importorskip("torch")
    network = random_network(spec, 0, torch.float32)
    with torch.no_grad():
        *_, last = network.parameters()
        last.view(-1)[0] *= 1 + 1e-5
    assert canary_of(torch_predictor(network), tile) != canary_of(predictor(spec, 0), tile)


def test_it_is_the_digest_of_the_logits() -> None:
    listening = Listening(MEAN)
    song = canary_of(listening, (6, 12, 12))
    (heard,) = listening.heard
    assert song == hashlib.sha256(LocalMean(MEAN).predict(heard).tobytes()).hexdigest()
    assert canary_of(Listening(MEAN, gain=1.001), (6, 12, 12)) != song


def test_logits_of_any_memory_layout_sing_the_same() -> None:
    class Turned(LocalMean):
        def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.asfortranarray(super().predict(tiles))

    assert canary_of(Turned(MEAN), (6, 12, 12)) == canary_of(LocalMean(MEAN), (6, 12, 12))


@pytest.mark.parametrize("spec", [PLANAR, SOLID, MEAN])
@pytest.mark.parametrize("target", [(1, 1, 1), (4, 30, 70), (300, 300, 300), (1, 3000, 5)])
def test_its_tile_is_the_runs_or_shorter(spec: ModelSpec, target: Triple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are chosen by shape, so it is the run's own tile if that is short enough."""
    tile = spec.tile_for(target)
    seen: list[Triple] = []

    class Shape(LocalMean):
        def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
            assert len(tiles) == 1
            seen.append(triple(tiles.shape[1:]))
            return np.zeros((1, 2, 1, 1, 1), np.float32)

    canary_of(Shape(spec), tile)
    (shape,) = seen
    out = spec.output_shape(shape)  # also says that the shape is valid
    for axis in range(3):
        assert shape[axis] <= tile[axis]
        assert shape[axis] == tile[axis] or MAX_OUTPUT_LENGTH <= out[axis] < MAX_OUTPUT_LENGTH + spec.lattice[axis]


def test_its_voxels_are_the_same_for_ever_and_like_an_image() -> None:
    """The values are fixed: a canary stored in an output today must be comparable with a later one."""
    listening = Listening(MEAN)
    canary_of(listening, (6, 12, 12))
    (heard,) = listening.heard
    assert heard.dtype == np.float32
    assert heard.shape == (1, 6, 12, 12)
    assert hashlib.sha256(heard.astype("<f4").tobytes()).hexdigest() == (
        "9d180794bb6f321b42e4379336285962248d557ed602dea4abc9345d77e781bc"
    )
    assert -2 <= heard.min() < -1.9
    assert 1.9 < heard.max() < 2
    assert abs(heard.mean()) < 0.1
    assert len(np.unique(heard)) > 700
    for axis in (1, 2, 3):
        assert abs(np.corrcoef(heard.ravel(), np.roll(heard, 1, axis).ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_batch_is_free_where_each_tile_has_the_bytes_it_has_alone(batch: int) -> None:
    listening = Listening(MEAN)
    assert batch_is_free(listening, batch)
    together, *alone = listening.heard
    assert len(together) == batch
    np.testing.assert_array_equal(np.concatenate(alone), together)
    assert len({tile.tobytes() for tile in alone}) == batch, "equal tiles would hide tiles that are mixed up"


@pytest.mark.parametrize("batch", [2, 5])
def test_a_batch_that_changes_one_last_bit_is_not_free(batch: int) -> None:
    assert not batch_is_free(Crowded(MEAN), batch)
    assert batch_is_free(Crowded(MEAN), 1)
