"""Test-time augmentation: what a network says of a tile on average over the symmetries of the image plane.

Ronneberger, Fischer and Brox (arXiv:1505.04597), section 4, average over rotated versions of their input, too.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
from numpy.typing import NDArray

from emseg.errors import PlanError
from emseg.grid.stitch import softmax
from emseg.ports import Predictor
from emseg.specs.network import NetworkSpec

SYMMETRIES = tuple(itertools.product((0, 2, 1, 3), (False, True)))
"""Quarter turns in the plane (y, x), and whether x is mirrored then: all eight; those that exchange y and x come last."""
PLANE = (-2, -1)
"""The axes y and x of tiles and logits."""


class SymmetricPredictor:
    """Predicts the mean of the probabilities that another predictor gives over all `SYMMETRIES`.

    Tiled is untiled still: tiles begin on the lattice, and their lengths are congruent modulo it (`NetworkSpec.next_valid`), so
    they end on it as well. Pooling windows counted from the far end are thus the same voxels of the volume for every tile.

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
        """Logarithms ``(n, classes, z', y', x') float32`` of mean probabilities, of normalised tiles ``(n, z, y, x) float32``.

        They are logits, since `softmax` gives the means back. A mean of 0 counts as the least normal number, whose logarithm
        is finite; where the network predicts NaN or infinity, all classes are NaN.
        """
        total = functools.reduce(np.add, (self._probabilities(tiles, *symmetry) for symmetry in SYMMETRIES))
        mean = total / len(SYMMETRIES)
        logits: NDArray[np.float32] = np.log(np.maximum(mean, np.finfo(mean.dtype).tiny))
        return logits

    def _probabilities(self, tiles: NDArray[np.float32], turns: int, mirrored: bool) -> NDArray[np.float32]:
        """Probabilities ``(n, classes, z', y', x')`` of tiles that are turned and mirrored, at the places they came from."""
        turned = np.rot90(tiles, turns, PLANE)
        logits = self._predictor.predict((turned[..., ::-1] if mirrored else turned).copy())  # torch takes no negative strides
        finite = np.where(np.isfinite(logits), logits, np.nan)  # of -inf, softmax would make an innocent 0
        probabilities = softmax(finite.swapaxes(0, 1)).swapaxes(0, 1)
        return np.rot90(probabilities[..., ::-1] if mirrored else probabilities, -turns, PLANE)


def check_symmetric(spec: NetworkSpec) -> None:
    """Refuse a network that does not treat y and x alike.

    Raises
    ------
    PlanError
        If a kernel or a pooling factor differs between them.
    """
    for what, (_, y, x) in spec.planes():
        if y != x:
            raise PlanError(
                f"test-time augmentation turns tiles by 90 degrees, but the network's {what} is {y} in y and {x} in x: "
                "leave out --tta, or use a network that treats y and x alike"
            )
