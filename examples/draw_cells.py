"""Draw synthetic cells for trying out training: five annotated slices, and a volume of the same tissue to segment.

python examples/draw_cells.py FOLDER

The script writes ``slices.tif`` with ``labels.tif`` (membrane 0, inside 255, as in the ISBI 2012 challenge), and ``volume.tif``
with its truth in ``truth.tif``. Membranes are as dark as the organelles within the cells, and shading and contrast vary from
slice to slice, so membranes can be recognised by their shape but not by their grey value.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

ANNOTATED = 5
DEPTH = 6
EDGE = 256
CELLS = 30
MEMBRANE = 4
"""Width of a membrane, in pixels."""
ORGANELLES = 400
DARK, LIGHT = 80.0, 145.0


def draw(depth: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw grey values and truth (0 membrane, 255 inside) of some slices, both ``(z, y, x) uint8``."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-20, EDGE + 20, (CELLS, 2))
    slices = []
    for _ in range(depth):
        centres = centres + rng.normal(0, 3, centres.shape)
        slices.append(_slice(centres, rng))
    raw, truth = zip(*slices, strict=True)
    return np.stack(raw), np.stack(truth)


def _slice(centres: NDArray[np.float64], rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one slice with cells around these centres."""
    places = np.indices((EDGE, EDGE)) + 6 * _smooth(rng, 2, 12)
    nearest = np.argmin([np.hypot.reduce(places - centre[:, None, None]) for centre in centres], axis=0)
    membrane = ndimage.maximum_filter(nearest, MEMBRANE) != ndimage.minimum_filter(nearest, MEMBRANE)
    dark = membrane | _organelles(ndimage.distance_transform_edt(~membrane), rng)
    raw = ndimage.gaussian_filter(np.where(dark, DARK, LIGHT), 0.8)
    raw = raw * rng.uniform(0.8, 1.2) + rng.uniform(-20, 20) + 15 * _smooth(rng, 1, 60)[0] + rng.normal(0, 22, raw.shape)
    return raw.clip(0, 255).astype(np.uint8), np.where(membrane, 0, 255).astype(np.uint8)


def _organelles(room: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw dark discs and rings where the distance to the next membrane, in pixels, leaves enough room."""
    drawn = np.zeros(room.shape, bool)
    rows, columns = np.indices(room.shape)
    for y, x in rng.integers(0, EDGE, (ORGANELLES, 2)):
        radius = rng.uniform(4, 9)
        if room[y, x] > radius + 3:
            distance = np.hypot(rows - y, (columns - x) * rng.uniform(0.7, 1))
            drawn |= (distance < radius) & (distance > rng.choice([0, radius - 3]))
    return drawn


def _smooth(rng: np.random.Generator, count: int, width: float) -> NDArray[np.float64]:
    """Draw random fields ``(count, y, x)`` with standard deviation 1, smooth over `width` pixels."""
    fields = ndimage.gaussian_filter(rng.normal(size=(count, EDGE, EDGE)), (0, width, width))
    smooth: NDArray[np.float64] = fields / fields.std(axis=(1, 2), keepdims=True)
    return smooth


def main(folder: Path) -> None:
    """Write the four files."""
    folder.mkdir(exist_ok=True)
    for names, depth, seed in ((("slices", "labels"), ANNOTATED, 0), (("volume", "truth"), DEPTH, 1)):
        for name, values in zip(names, draw(depth, seed), strict=True):
            tifffile.imwrite(folder / f"{name}.tif", values, photometric="minisblack")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "cells"))
