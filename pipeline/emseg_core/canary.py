"""The canary: one fixed tile whose prediction shows whether two predictors give the same bytes."""

from __future__ import annotations

import hashlib
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Triple, triple
from emseg_core.errors import MemoryShortageError
from emseg_core.ports import Predictor
from emseg_core.specs.network import NetworkSpec

MAX_OUTPUT_LENGTH = 32
"""Largest length of the canary's output along each axis, in voxels: enough to exercise every kernel."""


def canary_of(predictor: Predictor, tile: Triple) -> str:
    """Predict the canary and return its checksum.

    Parameters
    ----------
    predictor
        The network.
    tile
        Shape (z, y, x) of the run's tiles, in voxels; the canary is no larger.

    Returns
    -------
    str
        SHA-256 of the predicted logits, in hexadecimal digits.
    """
    logits = predictor.predict(_voxels(_shape(predictor.spec, tile), 1, predictor.spec.channels))
    return hashlib.sha256(np.ascontiguousarray(logits).tobytes()).hexdigest()


def speed_of(predictor: Predictor, tile: Triple) -> float:
    """Measure the speed of a predictor on the canary, after a warm-up.

    Parameters
    ----------
    predictor
        The network.
    tile
        Shape (z, y, x) of the run's tiles, in voxels.

    Returns
    -------
    float
        Floating-point operations per second.
    """
    shape = _shape(predictor.spec, tile)
    voxels = _voxels(shape, 1, predictor.spec.channels)
    predictor.predict(voxels)
    began = perf_counter()
    predictor.predict(voxels)
    return predictor.spec.flops(shape) / (perf_counter() - began)


def batch_is_free(predictor: Predictor, batch: int) -> bool:
    """Test whether small tiles get the same bytes in a batch as one by one.

    Parameters
    ----------
    predictor
        The network.
    batch
        Number of tiles in the batch.

    Returns
    -------
    bool
        Whether they do; False if there is too little memory even for small tiles.
    """
    model = predictor.spec
    sources = _voxels(triple(model.next_valid(axis, 1) for axis in range(3)), batch, model.channels)
    try:
        together = predictor.predict(sources)
        return all(predictor.predict(sources[i : i + 1]).tobytes() == together[i].tobytes() for i in range(batch))
    except MemoryShortageError:
        return False


def _shape(model: NetworkSpec, tile: Triple) -> Triple:
    """Return the shape of the canary: a tile with a short output, or the run's own tile if that is smaller."""
    return triple(min(tile[axis], model.next_valid(axis, MAX_OUTPUT_LENGTH + 2 * model.context[axis])) for axis in range(3))


def _voxels(shape: Triple, batch: int, channels: int) -> NDArray[np.float32]:
    """Return the same voxels ``(n, z, y, x) float32``, or ``(n, c, z, y, x)`` for several channels, on every machine.

    They come from integer arithmetic, since a random generator may change between versions.
    """
    index = np.arange(batch * channels * int(np.prod(shape)), dtype=np.uint32)
    mixed = (index ^ (index >> 15)) * np.uint32(0x2C1B3C6D)
    mixed = (mixed ^ (mixed >> 12)) * np.uint32(0x297A2D39)
    scaled = (mixed >> 16).astype(np.float32) % np.float32(4096) / np.float32(1024) - np.float32(2)
    return scaled.reshape(batch, *([channels] if channels > 1 else []), *shape)
