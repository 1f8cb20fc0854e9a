"""How far a low precision is from float32: measured on a sample of the volume before a run begins, and stored with it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from emseg.block import predict_box
from emseg.box import Box, Triple, triple
from emseg.errors import BlockError
from emseg.normalise import Normalisation
from emseg.ports import Predictor, VolumeReader
from emseg.specs.network import NetworkSpec
from emseg.specs.numerics import Accuracy

BOXES = 4
PLANAR_BOX: Triple = (1, 256, 256)
CUBIC_BOX: Triple = (40, 40, 40)
"""A quarter of a million voxels in all: one in a thousand is seen."""


def accuracy_of(fast: Predictor, exact: Predictor, volume: VolumeReader, normalisation: Normalisation) -> Accuracy:
    """How far `fast` is from `exact`, the same network in float32, on boxes of the volume that are always the same.

    A box that cannot be read does not count, since it must not end a run of all others; one on which only `fast` overflows
    counts as wrong. Without any box, nothing agrees.
    """
    same = voxels = 0
    largest = 0.0
    for box in sample_boxes(exact.spec, volume.spec.box):
        tile = exact.spec.tile_for(box.shape)
        try:
            theirs = predict_box(volume, exact, normalisation, box, tile, (0, 0, 0))
        except BlockError:
            continue
        voxels += box.voxels
        try:
            ours = predict_box(volume, fast, normalisation, box, tile, (0, 0, 0))
        except BlockError:
            largest = 1.0
            continue
        same += int(np.count_nonzero(theirs.argmax(axis=0) == ours.argmax(axis=0)))
        largest = max(largest, float(np.abs(theirs - ours).max()))
    return Accuracy(same / voxels, largest, voxels) if voxels else Accuracy(0.0, 1.0, 0)


def sample_boxes(model: NetworkSpec, region: Box, seed: int = 0) -> Iterator[Box]:
    """Boxes inside a region, drawn from the seed; where there is room they start on the lattice, so that one tile has each."""
    rng = np.random.default_rng(seed)
    most = PLANAR_BOX if model.planar else CUBIC_BOX
    shape = triple(min(length, free) for length, free in zip(most, region.shape, strict=True))
    for _ in range(BOXES):
        start = (int(rng.integers(a, b - length + 1)) for a, b, length in zip(region.start, region.stop, shape, strict=True))
        aligned = (max(a, s // n * n) for a, s, n in zip(region.start, start, model.lattice, strict=True))
        yield Box.of_shape(shape).shift(triple(aligned))
