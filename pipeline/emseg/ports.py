"""What a block needs from outside: something to read from, something that predicts, something to write to.

The adapters in `emseg.store` and `emseg.model` fulfil these; so can a user's own class. One that predicts in whole
runs need not even know its contract, see `emseg.model.own`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box
from emseg.specs.network import NetworkSpec
from emseg.specs.volume import VolumeSpec


class VolumeReader(Protocol):
    """An open volume. Threads may read at the same time."""

    @property
    def spec(self) -> VolumeSpec:
        """What the volume is."""
        ...

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of `box`, ``(z, y, x)`` in the volume's type; the caller owns the array.

        Raises
        ------
        BlockError
            If what is stored there cannot be read (a damaged chunk, say).
        """
        ...


class Predictor(Protocol):
    """A network with its weights, ready on a device. One thread predicts at a time."""

    @property
    def spec(self) -> NetworkSpec:
        """What the network is."""
        ...

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, classes, z', y', x') float32`` of normalised tiles ``(n, z, y, x) float32``."""
        ...


class Batch(NamedTuple):
    """Tiles as the volume has them, and what normalises them."""

    voxels: NDArray[Any]
    """Tiles ``(n, z, y, x)`` in the volume's type."""
    mean: NDArray[np.float32]
    """Of each slice of each tile, ``(n, z)``."""
    deviation: NDArray[np.float32]
    """Of each slice of each tile, ``(n, z)``."""


@runtime_checkable
class Classifier(Predictor, Protocol):
    """A predictor that normalises tiles, and makes of logits what is stored, right where it computes: bytes go, bytes come."""

    def classify(
        self, batches: Iterable[Batch], probabilities: bool
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]:
        """Labels ``(n, z', y', x')`` of each batch, and stored probabilities ``(n, classes, z', y', x')`` if asked for.

        The label is 255 where a logit is NaN or infinite; else both are as `emseg.grid.stitch` makes them, but for the last
        bit of a probability.
        """
        ...


class LabelWriter(Protocol):
    """An open output. Threads and processes may write different blocks at the same time."""

    def write(self, box: Box, labels: NDArray[np.uint8], probabilities: NDArray[np.uint8] | None) -> None:
        """Store a block: labels ``(z, y, x)`` and, where the run keeps them, probabilities ``(class, z, y, x)``.

        `box` is in the volume's coordinates and must be whole write units; labels are written last.
        """
        ...

    def is_done(self, box: Box) -> bool:
        """Whether each write unit of `box` exists in each array of the run."""
        ...
