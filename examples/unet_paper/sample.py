"""Read a slice of the bundled sample volume: grey values, classes and segments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from emseg_core.metrics.components import components
from emseg_core.truth import INSIDE, membrane_truth

FOLDER = Path(__file__).parents[1] / "fib25-sample"
SLICE = 20


def grey() -> NDArray[np.uint8]:
    """Read the grey values of one slice, ``(y, x) uint8``."""
    values: NDArray[np.uint8] = tifffile.imread(FOLDER / "raw.tif")[SLICE]
    return values


def truth() -> NDArray[np.uint8]:
    """Read the class of each pixel, ``(y, x) uint8``: 0 inside, 1 membrane, 255 unlabelled."""
    ids = tifffile.imread(FOLDER / "truth.tif")[SLICE]
    classes: NDArray[np.uint8] = membrane_truth(ids[None], planar=True)[0]
    return classes


def segments() -> NDArray[np.int64]:
    """Label the connected components between membranes, ``(y, x) int64``; 0 is membrane or unlabelled."""
    return components(truth() == INSIDE)
