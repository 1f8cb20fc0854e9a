"""Test-time augmentation: mean predictions over the symmetries of the image plane.

Ronneberger, Fischer and Brox (arXiv:1505.04597), section 4, also average over rotated versions of the input.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
from numpy.typing import NDArray

from emseg_core.errors import PlanError
from emseg_core.grid.stitch import softmax
from emseg_core.ports import Predictor
from emseg_core.specs.network import NetworkSpec

SYMMETRIES = tuple(itertools.product((0, 2, 1, 3), (False, True)))
"""Number of quarter turns in the plane (y, x), and whether x is mirrored then: all eight symmetries.

Those that exchange y and x come last.
"""
PLANE = (-2, -1)
"""Axes y and x of tiles and logits."""


class SymmetricPredictor:
    """Predictor of the mean probability of another predictor over all `SYMMETRIES`.

    Tiled predictions still equal untiled ones. Tiles start on the lattice, and their lengths are congruent modulo the lattice
    (`NetworkSpec.next_valid`), so pooling windows counted from the far end also cover the same voxels of the volume for every
    tile.

    Parameters
    ----------
    predictor
        The network.

    Raises
    ------
    PlanError
        If the network does not treat y and x alike.
    """

    def __init__(self, predictor: Predictor) -> None:
        check_symmetric(predictor.spec)
        self.spec: NetworkSpec = predictor.spec
        self._predictor = predictor

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict a batch of tiles.

        The logarithms of mean probabilities serve as logits, since `softmax` restores the means. A mean of 0 is replaced by the
        smallest normal number, whose logarithm is finite. Where the network predicts NaN or infinity, all classes are NaN.

        Parameters
        ----------
        tiles
            Normalised tiles, ``(n, z, y, x) float32``.

        Returns
        -------
        ndarray
            Logarithms of mean probabilities, ``(n, classes, z', y', x') float32``.
        """
        total = functools.reduce(np.add, (self._probabilities(tiles, *symmetry) for symmetry in SYMMETRIES))
        mean = total / len(SYMMETRIES)
        logits: NDArray[np.float32] = np.log(np.maximum(mean, np.finfo(mean.dtype).tiny))
        return logits

    def _probabilities(self, tiles: NDArray[np.float32], turns: int, mirrored: bool) -> NDArray[np.float32]:
        """Predict turned and mirrored tiles; return probabilities ``(n, classes, z', y', x')`` in the original places."""
        turned = np.rot90(tiles, turns, PLANE)
        turned = turned[..., ::-1] if mirrored else turned
        logits = self._predictor.predict(turned.copy())  # torch does not accept negative strides
        finite = np.where(np.isfinite(logits), logits, np.nan)  # softmax would hide -inf as a probability of 0
        probabilities = softmax(finite.swapaxes(0, 1)).swapaxes(0, 1)
        return np.rot90(probabilities[..., ::-1] if mirrored else probabilities, -turns, PLANE)


def check_symmetric(spec: NetworkSpec) -> None:
    """Check that a network treats y and x alike.

    Parameters
    ----------
    spec
        The network.

    Raises
    ------
    PlanError
        If a kernel or a pooling factor differs between y and x, or a head has directions.
    """
    if others := [head.name for head in spec.heads if head.kind != "classes"]:
        raise PlanError(
            f"--tta turns tiles, and averages the probabilities of classes that exclude one another, but the network has the "
            f"head {others[0]!r}: leave out --tta"
        )
    for what, (_, y, x) in spec.planes():
        if y != x:
            raise PlanError(
                f"--tta turns tiles by 90 degrees, but the network's {what} is {y} in y and {x} in x: "
                "leave out --tta, or use a network that treats y and x alike"
            )
