"""Section 3.1: deform a slice by random displacements on a coarse grid.

python -m unet_paper.deformation
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from emseg_core.training.deformation import displacements
from unet_paper.drawing import RED, YELLOW, line, picture, svg, table, words
from unet_paper.sample import grey

DEVIATION = 10.0
SEED = 4
SPACING = 25
"""Distance between the lines of the figure, in pixels."""
SCALE = 1.6


def field() -> NDArray[np.float32]:
    """Draw the displacements along y and x of each pixel of the slice, ``(2, y, x) float32``, in pixels."""
    side = len(grey())
    return displacements((side, side), np.random.default_rng(SEED), DEVIATION)


def deformed() -> NDArray[np.uint8]:
    """Sample the slice where the displacement of each pixel points to, mirrored beyond its faces, ``(y, x) uint8``."""
    raw = grey()
    moved: NDArray[np.uint8] = ndimage.map_coordinates(raw, np.indices(raw.shape) + field(), order=1, mode="mirror")
    return moved


def report() -> str:
    """Report the displacements of the nine points, and how much the slice is stretched."""
    shifts = field()
    drawn_for = np.random.default_rng(SEED).normal(0, DEVIATION, (2, 3, 3))
    stretch, steps = areas(shifts), [np.abs(np.diff(shifts, axis=axis)).max() for axis in (1, 2)]
    return "\n".join(
        [
            table(
                ("displacements of the points in pixels, y and x", "left", "middle", "right"),
                *(
                    (name, *(f"{y:+.1f} {x:+.1f}" for y, x in drawn_for[:, row].T))
                    for row, name in enumerate(("top", "middle", "bottom"))
                ),
            ),
            f"between adjacent pixels they differ by at most {max(steps):.2f}",
            f"the area of a pixel becomes {stretch.min():.2f} to {stretch.max():.2f}: nothing folds over",
        ]
    )


def areas(shifts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the area from which each pixel is sampled, in pixels: the determinant of the map's derivative."""
    (yy, yx), (xy, xx) = (np.gradient(part.astype(np.float64)) for part in shifts)
    determinant: NDArray[np.float32] = ((1 + yy) * (1 + xx) - yx * xy).astype(np.float32)
    return determinant


def lines(side: int) -> list[NDArray[np.int64]]:
    """Return the lines of the regular grid, each as its pixels ``(n, 2)``, y before x."""
    along = np.arange(0, side, 3)
    places = [*range(0, side, SPACING), side - 1]
    upright = [np.stack((along, np.full_like(along, place)), axis=1) for place in places]
    return upright + [pixels[:, ::-1] for pixels in upright]


def draw() -> str:
    """Draw the deformed slice with a regular grid, and beside it where that grid is sampled from, with the nine points."""
    raw, shifts = grey(), field()
    side = len(raw)
    margin, gap = 30.0, 60.0
    second = margin + side * SCALE + gap
    parts = [picture(margin, 46, deformed(), SCALE), picture(second, 46, raw, SCALE)]
    parts += [words(margin, 26, "the deformed slice"), words(second, 26, "where each of its pixels comes from")]
    for pixels in lines(side):
        parts.append(line(placed(pixels, margin), colour=YELLOW, width=0.8))
        parts.append(line(placed(pixels + shifts[:, *pixels.T].T, second), colour=YELLOW, width=0.8))
    for y in (0, side // 2, side - 1):
        for x in (0, side // 2, side - 1):
            ends = np.array([(y, x), (y, x) + shifts[:, y, x]])
            parts.append(line(placed(ends, second), colour=RED, width=2.5, arrow=True))
    return svg(int(second + side * SCALE + gap), int(side * SCALE + 80), *parts)


def placed(pixels: NDArray[Any], left: float) -> NDArray[np.float64]:
    """Convert pixels ``(n, 2)``, y before x, to points of the figure ``(n, 2)``, x before y."""
    found: NDArray[np.float64] = pixels[:, ::-1] * SCALE + (left, 46)
    return found


if __name__ == "__main__":
    print(report())
