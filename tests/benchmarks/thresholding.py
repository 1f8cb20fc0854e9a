"""A preload of Dask's workers: the network is a comparison of each normalised voxel with 0.

It stands in for the function that a bench takes its predictor from; all else in a worker is what it always is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emseg.box import Triple, triple
from emseg.model import backend
from emseg.model.device import Device
from emseg.model.file import ModelFile
from emseg.specs.model import ModelSpec
from emseg.specs.numerics import Backend, Numerics, Precision


@dataclass(frozen=True, slots=True)
class Threshold:
    """A predictor that finds class 1 where a voxel is brighter than the mean, whatever lies around it."""

    spec: ModelSpec
    threads: int

    def numerics(self, tile: Triple) -> Numerics:
        """The same for all of them."""
        return Numerics("threshold", "none", "float32", self.threads, "none")

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, 2, z', y', x')`` of normalised tiles ``(n, z, y, x)``: 0, and the voxel."""
        shape = self.spec.output_shape(triple(tiles.shape[1:]))
        kept = tuple(slice(c, c + length) for c, length in zip(self.spec.context, shape, strict=True))
        logits = np.empty((len(tiles), 2, *shape), np.float32)
        logits[:, 0] = 0
        logits[:, 1] = tiles[(slice(None), *kept)]
        return logits


def open_threshold(model: ModelFile, library: Backend, precision: Precision, threads: int, device: Device) -> Threshold:
    """In the place of `emseg.model.backend.open_predictor`."""
    return Threshold(model.spec, threads)


backend.open_predictor = open_threshold  # type: ignore[assignment]
