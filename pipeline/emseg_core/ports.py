"""Interfaces that a block needs: a volume to read, a network, and an output to write.

The adapters in `emseg_core.store` and `emseg_core.model` implement them, and so may a user's own class. A class that predicts
in whole runs need not even describe its network, see `emseg_core.model.python_predictor`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box
from emseg_core.specs.network import NetworkSpec
from emseg_core.specs.volume import VolumeSpec


class VolumeReader(Protocol):
    """An open volume. Several threads may read at the same time."""

    @property
    def spec(self) -> VolumeSpec:
        """Description of the volume."""

    def read(self, box: Box) -> NDArray[Any]:
        """Read the voxels of `box`.

        Parameters
        ----------
        box
            A box inside the volume.

        Returns
        -------
        ndarray
            Voxels, ``(z, y, x)``, or ``(c, z, y, x)`` of several channels, in the volume's type. The caller owns the array.

        Raises
        ------
        BlockError
            If stored data cannot be read, such as a damaged chunk.
        """


class Predictor(Protocol):
    """A network with its weights, loaded on a device. Only one thread predicts at a time."""

    @property
    def spec(self) -> NetworkSpec:
        """Description of the network."""

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict a batch of tiles.

        Parameters
        ----------
        tiles
            Normalised tiles, ``(n, z, y, x) float32``, or ``(n, c, z, y, x)`` of several channels.

        Returns
        -------
        ndarray
            Channels of all heads, ``(n, channels, z', y', x') float32``: logits of classes that exclude one another,
            probabilities of independent classes and affinities, and values.
        """


class Batch(NamedTuple):
    """Tiles in the volume's type, with the statistics that normalise them."""

    voxels: NDArray[Any]
    """Tiles ``(n, z, y, x)``, or ``(n, c, z, y, x)`` of several channels, in the volume's type."""
    mean: NDArray[np.float32]
    """Mean of each slice of each tile, ``(n, z)`` or ``(n, c, z)``."""
    deviation: NDArray[np.float32]
    """Standard deviation of each slice of each tile, ``(n, z)`` or ``(n, c, z)``."""


StoredValues: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]
"""Labels, and stored probabilities if they are wanted."""


@runtime_checkable
class Classifier(Predictor, Protocol):
    """A predictor that normalises tiles and computes the stored values on its own device: bytes in, bytes out."""

    def classify(self, batches: Iterable[Batch], probabilities: bool) -> Iterator[StoredValues]:
        """Label batches of tiles.

        The label is 255 where a logit is NaN or infinite. Otherwise labels and probabilities are those that
        `emseg_core.grid.stitch` computes, except for the last bit of a probability.

        Parameters
        ----------
        batches
            Batches of tiles in the volume's type.
        probabilities
            Whether stored probabilities are wanted.

        Yields
        ------
        tuple
            For each batch, labels ``(n, z', y', x') uint8`` and, if wanted, stored probabilities
            ``(n, classes, z', y', x') uint8``.
        """


class BlockWriter(Protocol):
    """An open output. Several threads and processes may write different blocks at the same time."""

    def write(self, box: Box, values: Sequence[NDArray[Any]]) -> None:
        """Store a block, its images one after another.

        Parameters
        ----------
        box
            Whole write units, in the volume's coordinates.
        values
            Voxels of each image of the run, in the order of writing: labels ``(z, y, x)``, probabilities and values
            ``(channel, z, y, x)``, in the image's type.
        """

    def is_done(self, box: Box) -> bool:
        """Return whether every write unit of `box` exists in every array of the run.

        Parameters
        ----------
        box
            Whole write units, in the volume's coordinates.

        Returns
        -------
        bool
            True if all of them exist.
        """
