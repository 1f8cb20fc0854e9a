"""Volumes with truth for trainings that take seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from emseg_core.model.file import load_model
from emseg_core.normalise import Normalisation
from emseg_core.store.stacks.source import LoadedVolume
from emseg_core.training.truth_reader import ClassValues, InstanceIds, TrainingVolume, TruthKind

CLASSES = ("inside", "membrane")
AS_IT_IS = Normalisation("volume", (0.0,), (1.0,))
IDS = InstanceIds(planar=False)
VALUES = ClassValues({"inside": (0,), "membrane": (1,)}, CLASSES, (255,), planar=False)
"""Truth stored as the network's own labels."""
TOGETHER = """
name = "tiny"
output = "tiny.safetensors"
[[data]]
raw = "raw.tif"
ids = "ids.tif"
train = [0, 10]
tune = [10, 14]
[model]
width = 2
depth = 1
kernel = [3, 3, 3]
pooling = [2, 2, 2]
dropout = 0.0
[fit]
steps = 6
batch = 2
optimizer = "sgd"
rate = 1e-2
warmup = 2
output = [8, 8, 8]
validate_every = 3
precision = "float32"
"""
"""A training that gives the same weights in several processes as in one."""


def source(raw: NDArray[Any], truth: NDArray[Any], kind: TruthKind = VALUES, weight: float = 1.0) -> TrainingVolume:
    """Return a source with the grey values of `raw`."""
    return TrainingVolume(LoadedVolume(raw.astype(np.float32)), LoadedVolume(truth), kind, AS_IT_IS, weight)


def cells(seed: int = 0) -> TrainingVolume:
    """Return dark walls between bright cells of 24 voxels along each axis."""
    places = np.indices((24, 24, 24)) // 12
    ids = (places[0] * 4 + places[1] * 2 + places[2] + 1).astype(np.uint8)
    raw = 1.0 - 2.0 * (IDS.classes(IDS.numbers(ids)) == 1) + np.random.default_rng(seed).normal(0, 0.3, ids.shape)
    return source(raw, ids, IDS)


def save_training(config: str, depth: int) -> Path:
    """Save the configuration ``tiny.toml`` in the working directory, with ``raw.tif`` and ``ids.tif`` of `depth` slices."""
    ids = 1 + np.indices((depth, 20, 20)).sum(axis=0) // 9
    tifffile.imwrite("raw.tif", np.random.default_rng(0).integers(0, 256, ids.shape).astype(np.uint8))
    tifffile.imwrite("ids.tif", ids.astype(np.uint16))
    path = Path("tiny.toml").absolute()
    path.write_text(config)
    return path


def weights_of(model: Path) -> NDArray[np.float32]:
    """Return all weights of a model as one array."""
    return np.concatenate([array.ravel() for _, array in sorted(load_model(model).weights.items())])
