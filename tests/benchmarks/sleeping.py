"""Preload module of Dask workers that replaces the network by a sleep of `EMSEG_BENCH_PAUSE` seconds and never imports torch.

It replaces the two functions that give a worker its predictor. It also turns off Dask's profiler and slows its tick, which take
2 to 3 % of a core per worker: where many workers share two cores, nothing would be left for the work. Everything else in a
worker is as usual.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import dask
import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Triple, triple
from emseg_core.model import backend
from emseg_core.model.device import Device
from emseg_core.model.header import model_digest, read_header
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.numerics import Backend, Numerics, Precision

PAUSE = float(os.environ["EMSEG_BENCH_PAUSE"])


@dataclass(frozen=True, slots=True)
class Description:
    """A model file without its weights."""

    spec: ModelSpec
    digest: str


@dataclass(frozen=True, slots=True)
class Sleeper:
    """Predictor that sleeps and assigns class 0 everywhere."""

    spec: ModelSpec
    threads: int

    def numerics(self, tile: Triple) -> Numerics:
        """Return values that are the same for all workers."""
        return Numerics("sleep", "none", "float32", self.threads, "none")

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sleep, and return zeros in the shape of the network's logits."""
        time.sleep(PAUSE)
        return np.zeros((len(tiles), len(self.spec.classes), *self.spec.output_shape(triple(tiles.shape[1:]))), np.float32)


def load_description(path: Path) -> Description:
    """Replace `emseg_core.model.file.load_model`."""
    return Description(read_header(path)[0], model_digest(path))


def open_sleeper(model: Description, library: Backend, precision: Precision, threads: int, device: Device) -> Sleeper:
    """Replace `emseg_core.model.backend.open_predictor`."""
    return Sleeper(model.spec, threads)


dask.config.set({"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "1s"})
backend.open_predictor = open_sleeper  # type: ignore[assignment]
sys.modules["emseg_core.model.file"] = model_file = ModuleType("emseg_core.model.file")  # the real one imports torch
model_file.load_model = load_description  # type: ignore[attr-defined]
