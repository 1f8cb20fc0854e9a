"""Preload module of Dask workers that replaces the network by a comparison of each normalised voxel with 0.

It replaces the function that gives a worker its predictor; everything else in a worker is as usual.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Triple, triple
from emseg_core.model import backend
from emseg_core.model.device import Device
from emseg_core.model.file import ModelFile
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.numerics import Backend, Numerics, Precision


@dataclass(frozen=True, slots=True)
class Threshold:
    """Predictor that assigns class 1 to voxels brighter than the mean, regardless of their context."""

    spec: ModelSpec
    threads: int

    def numerics(self, tile: Triple) -> Numerics:
        """Return values that are the same for all workers."""
        return Numerics("threshold", "none", "float32", self.threads, "none")

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute logits ``(n, 2, z', y', x')`` of normalised tiles ``(n, z, y, x)``: 0, and the value of the voxel."""
        shape = self.spec.output_shape(triple(tiles.shape[1:]))
        kept = tuple(slice(c, c + length) for c, length in zip(self.spec.context, shape, strict=True))
        logits = np.empty((len(tiles), 2, *shape), np.float32)
        logits[:, 0] = 0
        logits[:, 1] = tiles[(slice(None), *kept)]
        return logits


def open_threshold(model: ModelFile, library: Backend, precision: Precision, threads: int, device: Device) -> Threshold:
    """Replace `emseg_core.model.backend.open_predictor`."""
    return Threshold(model.spec, threads)


backend.open_predictor = open_threshold  # type: ignore[assignment]
