"""In-memory readers, writers and predictors that implement `emseg_core.ports`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from emseg_core.block import BlockContext
from emseg_core.box import Box, Triple, triple
from emseg_core.errors import BlockError, MemoryShortageError
from emseg_core.grid.plan import Plan
from emseg_core.grid.stitch import NOT_COMPUTED, classify, quantise, softmax
from emseg_core.normalise import Normalisation, normalised
from emseg_core.ports import Batch, BlockWriter, Predictor
from emseg_core.recipe import Recipe
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.network import NetworkSpec
from emseg_core.specs.numerics import Numerics
from emseg_core.specs.volume import VolumeSpec

AS_IS = Normalisation("volume", (0.0,), (1.0,))
"""Normalisation that leaves intensities unchanged."""
NUMERICS = Numerics("none 0", "none", "float32", 1, "2" * 64)
"""Made-up numerics."""


def in_order(labels: NDArray[np.uint8], probabilities: NDArray[np.uint8] | None = None) -> list[NDArray[np.uint8]]:
    """Return the images of classes in the order in which a block of an output is written."""
    return [*([] if probabilities is None else [probabilities]), labels]


def labels_first(values: Sequence[NDArray[Any]]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return the labels of a block, and its probabilities if there are any."""
    *probabilities, labels = values
    return labels, probabilities[0] if probabilities else None


class ArrayVolume:
    """A volume in memory that records what was read. Reading its `broken` box fails."""

    def __init__(self, values: NDArray[Any], chunk: Triple = (8, 8, 8), broken: Box | None = None) -> None:
        self.values = values
        self.spec = VolumeSpec(triple(values.shape), values.dtype.name, chunk)
        self.reads: list[Box] = []
        self._broken = broken

    def read(self, box: Box) -> NDArray[Any]:
        """Return a copy of the voxels of `box`, which must lie inside the volume."""
        assert self.spec.box.contains(box), f"a read of {box} reaches beyond {self.spec.box}"
        self.reads.append(box)
        if self._broken is not None and voxels_shared(box, self._broken):
            raise BlockError(f"the chunk at {self._broken.start} cannot be decompressed")
        return self.values[box.slices()].copy()


class MemoryLabels:
    """An output in memory that rejects invalid writes: part of a unit, or a unit twice."""

    def __init__(self, plan: Plan, probabilities: bool) -> None:
        self._plan = plan
        self.labels = np.full(plan.region.shape, NOT_COMPUTED, np.uint8)
        count = len(plan.model.classes)
        self.probabilities = np.full((count, *plan.region.shape), NOT_COMPUTED, np.uint8) if probabilities else None

    def write(self, box: Box, values: Sequence[NDArray[Any]]) -> None:
        """Store whole write units, each at most once."""
        labels, probabilities = labels_first(values)
        region = self._plan.region
        assert region.contains(box)
        for start, stop, corner, end, unit in zip(box.start, box.stop, region.start, region.stop, self._plan.unit, strict=True):
            assert (start - corner) % unit == 0, f"{box} starts inside a write unit of {self._plan.unit}"
            assert (stop - corner) % unit == 0 or stop == end, f"{box} stops inside a write unit of {self._plan.unit}"
        where = box.relative_to(region.start).slices()
        assert (self.labels[where] == NOT_COMPUTED).all(), f"{box} is written twice"
        assert labels.dtype == np.uint8
        assert labels.shape == box.shape
        assert labels.max() < len(self._plan.model.classes)
        assert (probabilities is None) == (self.probabilities is None)
        if probabilities is not None and self.probabilities is not None:
            assert probabilities.dtype == np.uint8
            assert probabilities.shape == (len(self._plan.model.classes), *box.shape)
            assert probabilities.max() < NOT_COMPUTED
            self.probabilities[(slice(None), *where)] = probabilities
        self.labels[where] = labels

    def is_done(self, box: Box) -> bool:
        """Return whether all of `box` is written."""
        return bool((self.labels[box.relative_to(self._plan.region.start).slices()] != NOT_COMPUTED).all())


class FullDisk(MemoryLabels):
    """An output that cannot store one block."""

    def __init__(self, plan: Plan, probabilities: bool, full_at: Box) -> None:
        super().__init__(plan, probabilities)
        self._full_at = full_at

    def write(self, box: Box, values: Sequence[NDArray[Any]]) -> None:
        """Store whole write units, except those of one block."""
        if box == self._full_at:
            raise OSError(28, "No space left on device")
        super().write(box, values)


class LocalMean:
    """Predictor whose logit of class i is i times the local mean. It has no lattice, so every tiling is correct."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.batches: list[int] = []

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits. The mean covers the context of the network."""
        assert tiles.dtype == np.float32
        self.batches.append(len(tiles))
        window = tuple(2 * c + 1 for c in self.spec.context)
        mean = sliding_window_view(tiles, window, axis=(1, 2, 3)).mean(axis=(-3, -2, -1), dtype=np.float64)
        assert mean.shape[1:] == self.spec.output_shape(triple(tiles.shape[1:]))
        return np.stack([mean * i for i in range(len(self.spec.classes))], axis=1).astype(np.float32)


class MeanClassifier(LocalMean):
    """Predictor that turns its logits into bytes, and is one batch ahead of its caller, as a GPU is."""

    def classify(
        self, batches: Iterable[Batch], probabilities: bool
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]:
        """Yield the labels and stored probabilities of each batch."""
        ahead = deque[NDArray[np.float32]]()
        for batch in batches:
            ahead.append(self.predict(normalised(*batch)))
            if len(ahead) > 1:
                yield self._bytes(ahead.popleft(), probabilities)
        yield from (self._bytes(logits, probabilities) for logits in ahead)

    def _bytes(self, logits: NDArray[np.float32], probabilities: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        by_class = logits.swapaxes(0, 1)
        labels = np.where(np.isfinite(by_class).all(axis=0), classify(by_class), np.uint8(NOT_COMPUTED))
        return labels, quantise(softmax(by_class)).swapaxes(0, 1) if probabilities else None


class SayingPredictor:
    """Predictor with a constant logit per class, which may be any number."""

    def __init__(self, spec: NetworkSpec, logits: tuple[float, ...]) -> None:
        self.spec = spec
        self._logits = np.array(logits, np.float32)[None, :, None, None, None]

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the given logits for each voxel."""
        shape = self.spec.output_shape(triple(tiles.shape[1:]))
        return np.broadcast_to(self._logits, (len(tiles), len(self.spec.classes), *shape)).copy()


class FailingPredictor(LocalMean):
    """Predictor that fails at one of its calls, counted from 0."""

    def __init__(self, spec: ModelSpec, at: int, error: BaseException) -> None:
        super().__init__(spec)
        self._at, self._error = at, error

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits, or raise the error."""
        if len(self.batches) == self._at:
            self.batches.append(0)
            raise self._error
        return super().predict(tiles)


class SmallPredictor(LocalMean):
    """Predictor with memory for `room` voxels. If `swayed`, its result depends on the other tiles of a batch."""

    def __init__(self, spec: ModelSpec, room: int, *, swayed: bool = False) -> None:
        super().__init__(spec)
        self.refused: list[int] = []
        self.shapes: list[tuple[int, ...]] = []
        self._room, self._swayed = room, swayed

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits, or raise `MemoryShortageError`."""
        if tiles.size > self._room:
            self.refused.append(len(tiles))
            raise MemoryShortageError(f"{tiles.size} voxels")
        self.shapes.append(tiles.shape)
        logits = super().predict(tiles)
        return logits + np.float32(1) if self._swayed and len(tiles) > 1 else logits


def recipe_of(volume: VolumeSpec, plan: Plan, normalisation: Normalisation = AS_IS, probabilities: bool = True) -> Recipe:
    """Return a recipe with made-up digests and numerics."""
    return Recipe(volume, "0" * 64, "1" * 64, normalisation, plan, NUMERICS, probabilities)


def context_of(
    volume: ArrayVolume,
    predictor: Predictor,
    plan: Plan,
    *,
    normalisation: Normalisation = AS_IS,
    probabilities: bool = True,
    labels: BlockWriter | None = None,
) -> BlockContext:
    """Return a block context in memory. Without `labels`, it has `MemoryLabels` for the plan."""
    recipe = recipe_of(volume.spec, plan, normalisation, probabilities)
    return BlockContext(recipe, volume, predictor, labels or MemoryLabels(plan, probabilities), threading.Lock())


def plan_by_hand(
    model: ModelSpec, shape: Triple, unit: Triple, tile: Triple, region: Box | None = None, batch: int = 1
) -> Plan:
    """Return a plan with any write units, including ones that `plan_volume` would not choose."""
    return Plan(region or Box.of_shape(shape), unit, shape, model, tile, batch, unit)


def voxels_shared(one: Box, other: Box) -> bool:
    """Return whether two boxes overlap."""
    return all(a < d and c < b for a, b, c, d in zip(one.start, one.stop, other.start, other.stop, strict=True))
