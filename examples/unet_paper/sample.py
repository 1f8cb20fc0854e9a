"""A slice of the bundled sample volume: grey values, and cells with their membranes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from emseg.metrics.components import components
from emseg.truth import INSIDE, membrane_truth

FOLDER = Path(__file__).parents[1] / "fib25-sample"
SLICE = 20


def grey() -> NDArray[np.uint8]:
    """Grey values of one slice, ``(y, x) uint8``."""
    values: NDArray[np.uint8] = tifffile.imread(FOLDER / "raw.tif")[SLICE]
    return values


def truth() -> NDArray[np.uint8]:
    """Class of each pixel, ``(y, x) uint8``: 0 inside, 1 membrane, 255 not labelled."""
    ids = tifffile.imread(FOLDER / "truth.tif")[SLICE]
    classes: NDArray[np.uint8] = membrane_truth(ids[None], planar=True)[0]
    return classes


def segments() -> NDArray[np.int64]:
    """Number of the segment of each pixel, ``(y, x) int64``: the pieces that membranes leave; 0 is membrane or not labelled."""
    return components(truth() == INSIDE)
