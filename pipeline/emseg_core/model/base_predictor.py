"""Base class of predictors, which compute logits and state what determines their last bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Triple
from emseg_core.canary import canary_of
from emseg_core.specs.network import NetworkSpec
from emseg_core.specs.numerics import Numerics, Precision


class BasePredictor(ABC):
    """Predictor with a numerical fingerprint; implements `emseg_core.ports.Predictor`.

    Parameters
    ----------
    backend
        Library and version, or name and version of the class, that predicts.
    hardware
        Instruction set of the CPU, or model of the GPU.
    precision
        Type of the activations.
    threads
        Number of threads that predict.
    """

    spec: NetworkSpec
    """Description of the network."""

    def __init__(self, backend: str, hardware: str, precision: Precision, threads: int) -> None:
        self._numerics = Numerics(backend, hardware, precision, threads, canary="")

    @property
    def backend(self) -> str:
        """Library and version, or name and version of the class, that predicts."""
        return self._numerics.backend

    @property
    def hardware(self) -> str:
        """Instruction set of the CPU, or model of the GPU."""
        return self._numerics.device

    def numerics(self, tile: Triple) -> Numerics:
        """Return what determines the last bits of predictions.

        Parameters
        ----------
        tile
            Shape (z, y, x) in voxels of the tiles of the run.

        Returns
        -------
        Numerics
            Backend, hardware, precision, threads and numerical fingerprint.
        """
        return replace(self._numerics, canary=canary_of(self, tile))

    @abstractmethod
    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the logits of tiles.

        Parameters
        ----------
        tiles
            Normalised grey values, ``(n, z, y, x) float32``.

        Returns
        -------
        NDArray
            Logits, ``(n, classes, z', y', x') float32``.

        Raises
        ------
        MemoryShortageError
            If there is too little memory.
        """
