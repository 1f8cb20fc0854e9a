"""Accuracy of a lower precision relative to float32, measured on a sample of the volume before a run and stored with it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from emseg_core.block import predict_box
from emseg_core.box import Box, Triple, triple
from emseg_core.errors import BlockError
from emseg_core.grid.stitch import QUANTA
from emseg_core.normalise import Normalisation
from emseg_core.ports import Predictor, VolumeReader
from emseg_core.specs.heads import Head, parts_of
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

    A box that cannot be read is skipped, so that it does not stop the run. A box in which only `fast` overflows, or
    which it cannot compute at all, counts as wrong. If no box can be used, the agreement is 0.

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
        Share of voxels with the same labels in all heads, and the largest difference between probabilities. An affinity of
        0.5 and more counts as a label of its own; a value has the label of float32 if it differs by no more than what
        storage rounds off, and its difference is relative to its scale, or to the largest value of its head in a box.
    """
    same = voxels = 0
    largest = 0.0
    for box in sample_boxes(exact.spec, volume.spec.box):
        try:
            reference = predict_sample(exact, volume, normalisation, box)
        except BlockError:
            continue
        voxels += box.voxels
        try:
            candidate = predict_sample(fast, volume, normalisation, box)
        except (BlockError, RuntimeError):  # torch and OpenVINO raise RuntimeError for what they cannot compute
            largest = 1.0
            continue
        agrees = np.ones(box.shape, np.bool_)
        for head, part in parts_of(exact.spec.heads):
            agrees &= _agrees(head, reference[part], candidate[part])
            largest = max(largest, float(np.abs(reference[part] - candidate[part]).max()) / _span(head, reference[part]))
        same += int(np.count_nonzero(agrees))
    return Accuracy(same / voxels, largest, voxels) if voxels else Accuracy(0.0, 1.0, 0)


def _agrees(head: Head, reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return at which voxels ``(z, y, x)`` a head gets the same labels, given its channels ``(channel, z, y, x)``."""
    alike: NDArray[np.bool_]
    if head.kind == "classes":
        alike = reference.argmax(axis=0) == candidate.argmax(axis=0)
    elif head.kind == "values" and head.scale is None:
        with np.errstate(over="ignore"):  # such a value fails its block
            step = np.spacing(np.abs(reference).astype(np.float16)).astype(np.float32)
        alike = (np.abs(reference - candidate) <= step).all(axis=0)
    elif head.scale is not None:
        kept, found = np.clip(reference, *head.scale), np.clip(candidate, *head.scale)
        alike = (np.abs(kept - found) <= _span(head, reference) / QUANTA).all(axis=0)
    else:
        limits = np.array(head.limits, np.float32)[:, None, None, None]
        alike = ((reference >= limits) == (candidate >= limits)).all(axis=0)
    return alike


def _span(head: Head, reference: NDArray[np.float32]) -> float:
    """Return the range that differences of a head are relative to: 1 for probabilities."""
    if head.kind != "values":
        return 1.0
    if head.scale is not None:
        return head.scale[1] - head.scale[0]
    return float(np.abs(reference).max()) or 1.0


def predict_sample(predictor: Predictor, volume: VolumeReader, normalisation: Normalisation, box: Box) -> NDArray[np.float32]:
    """Predict a box of the sample in one tile.

    Parameters
    ----------
    predictor
        The network.
    volume
        The volume.
    normalisation
        The normalisation of the run.
    box
        What `sample_boxes` yields.

    Returns
    -------
    ndarray
        Channels of all heads, ``(channel, z, y, x) float32``, as `emseg_core.block.predict_box` returns.

    Raises
    ------
    BlockError
        If the box cannot be read or predicted.
    """
    return predict_box(volume, predictor, normalisation, box, predictor.spec.tile_for(box.shape), (0, 0, 0))


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
