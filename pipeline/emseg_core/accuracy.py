"""Accuracy of a lower precision relative to float32, measured on a sample of the volume before a run and stored with it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from emseg_core.block import predict_box
from emseg_core.box import Box, Triple, triple
from emseg_core.errors import BlockError
from emseg_core.normalise import Normalisation
from emseg_core.ports import Predictor, VolumeReader
from emseg_core.specs.network import NetworkSpec
from emseg_core.specs.numerics import Accuracy

SAMPLED_BOXES = 4
"""Number of boxes in the sample."""
PLANAR_BOX: Triple = (1, 256, 256)
"""Largest shape (z, y, x) of a sampled box, in voxels, for 2-D networks."""
CUBIC_BOX: Triple = (40, 40, 40)
"""Largest shape (z, y, x) of a sampled box, in voxels, for 3-D networks.

The sample holds a quarter of a million voxels in all, so a label that differs in one voxel of a thousand is seen.
"""


def accuracy_of(fast: Predictor, exact: Predictor, volume: VolumeReader, normalisation: Normalisation) -> Accuracy:
    """Compare `fast` with `exact`, the same network in float32, on a fixed sample of boxes of the volume.

    A box that cannot be read is skipped, so that it does not stop the run. A box in which only `fast` overflows counts as
    wrong. If no box can be used, the agreement is 0.

    Parameters
    ----------
    fast
        The network in the lower precision.
    exact
        The same network in float32.
    volume
        The volume to sample.
    normalisation
        The normalisation of the run.

    Returns
    -------
    Accuracy
        Share of voxels with the same label, and the largest difference between probabilities.
    """
    same = voxels = 0
    largest = 0.0
    for box in sample_boxes(exact.spec, volume.spec.box):
        tile = exact.spec.tile_for(box.shape)
        try:
            reference = predict_box(volume, exact, normalisation, box, tile, (0, 0, 0))
        except BlockError:
            continue
        voxels += box.voxels
        try:
            candidate = predict_box(volume, fast, normalisation, box, tile, (0, 0, 0))
        except BlockError:
            largest = 1.0
            continue
        same += int(np.count_nonzero(reference.argmax(axis=0) == candidate.argmax(axis=0)))
        largest = max(largest, float(np.abs(reference - candidate).max()))
    return Accuracy(same / voxels, largest, voxels) if voxels else Accuracy(0.0, 1.0, 0)


def sample_boxes(model: NetworkSpec, region: Box, seed: int = 0) -> Iterator[Box]:
    """Draw the boxes of the sample inside a region.

    Where there is room, a box starts on the lattice, so that one tile covers it.

    Parameters
    ----------
    model
        The network; it decides the shape of the boxes and the lattice.
    region
        Where boxes may lie, in the volume's coordinates.
    seed
        Seed of the random generator; the same seed gives the same boxes.

    Yields
    ------
    Box
        A box inside `region`.
    """
    rng = np.random.default_rng(seed)
    limits = PLANAR_BOX if model.planar else CUBIC_BOX
    shape = triple(min(length, free) for length, free in zip(limits, region.shape, strict=True))
    for _ in range(SAMPLED_BOXES):
        start = (int(rng.integers(a, b - length + 1)) for a, b, length in zip(region.start, region.stop, shape, strict=True))
        aligned = (max(a, s // n * n) for a, s, n in zip(region.start, start, model.lattice, strict=True))
        yield Box.of_shape(shape).shift(triple(aligned))
