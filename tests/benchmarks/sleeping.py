"""A preload of Dask's workers: the network is a sleep of `EMSEG_BENCH_PAUSE` seconds, and torch is never imported.

It stands in for the two functions that a bench takes its predictor from. Dask's profiler is off and its tick slow, which
take 2 to 3 % of a core in each worker: where many share two cores, these would have nothing left for the work. All else
in a worker is what it always is.
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

from emseg.box import Triple, triple
from emseg.model import backend
from emseg.model.device import Device
from emseg.model.header import model_digest, read_header
from emseg.specs.model import ModelSpec
from emseg.specs.numerics import Backend, Numerics, Precision

PAUSE = float(os.environ["EMSEG_BENCH_PAUSE"])


@dataclass(frozen=True, slots=True)
class Description:
    """A model file without its weights."""

    spec: ModelSpec
    digest: str


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A predictor that finds class 0 everywhere, after a while."""

    spec: ModelSpec
    threads: int

    def numerics(self, tile: Triple) -> Numerics:
        """The same for all sleepers."""
        return Numerics("sleep", "none", "float32", self.threads, "none")

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Zeros of the shape that the network would have given."""
        time.sleep(PAUSE)
        return np.zeros((len(tiles), len(self.spec.classes), *self.spec.output_shape(triple(tiles.shape[1:]))), np.float32)


def load_description(path: Path) -> Description:
    """In the place of `emseg.model.file.load_model`."""
    return Description(read_header(path)[0], model_digest(path))


def open_sleeper(model: Description, library: Backend, precision: Precision, threads: int, device: Device) -> Sleeper:
    """In the place of `emseg.model.backend.open_predictor`."""
    return Sleeper(model.spec, threads)


dask.config.set({"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "1s"})
backend.open_predictor = open_sleeper  # type: ignore[assignment]
sys.modules["emseg.model.file"] = model_file = ModuleType("emseg.model.file")  # the real one imports torch
model_file.load_model = load_description  # type: ignore[attr-defined]
