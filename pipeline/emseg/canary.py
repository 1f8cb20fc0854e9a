"""The canary: one fixed tile whose prediction shows whether two predictors give the same bytes."""

from __future__ import annotations

import hashlib
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from emseg.box import Triple, triple
from emseg.errors import MemoryShortageError
from emseg.ports import Predictor
from emseg.specs.network import NetworkSpec

TARGET = 32
"""Length in voxels of the canary's output along each axis where a tile of the run is longer: enough for each kernel."""


def canary_of(predictor: Predictor, tile: Triple) -> str:
    """SHA-256 of the predicted canary.

    Parameters
    ----------
    tile
        Shape (z, y, x) in voxels of the run's tiles; the canary is not larger.
    """
    logits = predictor.predict(_voxels(_shape(predictor.spec, tile), 1))
    return hashlib.sha256(np.ascontiguousarray(logits).tobytes()).hexdigest()


def speed_of(predictor: Predictor, tile: Triple) -> float:
    """Floating-point operations a second in which the canary is predicted, once that has been done before."""
    shape = _shape(predictor.spec, tile)
    voxels = _voxels(shape, 1)
    predictor.predict(voxels)
    began = perf_counter()
    predictor.predict(voxels)
    return predictor.spec.flops(shape) / (perf_counter() - began)


def batch_is_free(predictor: Predictor, batch: int) -> bool:
    """Whether small tiles get the same bytes together in a batch and one by one; not if even these need too much memory."""
    model = predictor.spec
    sources = _voxels(triple(model.next_valid(axis, 1) for axis in range(3)), batch)
    try:
        together = predictor.predict(sources)
        return all(predictor.predict(sources[i : i + 1]).tobytes() == together[i].tobytes() for i in range(batch))
    except MemoryShortageError:
        return False


def _shape(model: NetworkSpec, tile: Triple) -> Triple:
    """Shape of the canary: a tile with a short output, or the run's own if that is smaller."""
    return triple(min(tile[axis], model.next_valid(axis, TARGET + 2 * model.context[axis])) for axis in range(3))


def _voxels(shape: Triple, batch: int) -> NDArray[np.float32]:
    """The same voxels ``(n, z, y, x) float32`` on every machine: integer arithmetic, no generator that may change."""
    index = np.arange(batch * int(np.prod(shape)), dtype=np.uint32)
    mixed = (index ^ (index >> 15)) * np.uint32(0x2C1B3C6D)
    mixed = (mixed ^ (mixed >> 12)) * np.uint32(0x297A2D39)
    scaled = (mixed >> 16).astype(np.float32) % np.float32(4096) / np.float32(1024) - np.float32(2)
    return scaled.reshape(batch, *shape)
