"""Draw smooth random displacements of a tile, as in the paper.

"We generate smooth deformations using random displacement vectors on a coarse 3 by 3 grid. The displacements are sampled
from a Gaussian distribution with 10 pixels standard deviation. Per-pixel displacements are then computed using bicubic
interpolation." Ronneberger, Fischer and Brox (arXiv:1505.04597), section 3.1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional


def displacements(
    shape: tuple[int, int], rng: np.random.Generator, deviation: float, points: tuple[int, int] = (3, 3)
) -> NDArray[np.float32]:
    """Draw a smooth field of displacements of the pixels of a tile.

    The first and the last points lie on the edges of the tile, the others are evenly spaced between them. The bicubic kernel
    (Keys 1981, doi:10.1109/TASSP.1981.1163711; torch uses a = -3/4) interpolates the points: a pixel on a point has exactly
    the displacement drawn for it. Beyond the edges the outermost points are repeated, so a grid of one point moves the whole
    tile.

    Parameters
    ----------
    shape
        Shape (y, x) of the tile, in pixels.
    rng
        Generator that draws the displacements of the points, as ``(2, *points)`` normal numbers.
    deviation
        Standard deviation of the displacement of a point along each axis, in pixels.
    points
        Number of points (y, x).

    Returns
    -------
    NDArray
        Displacement of each pixel along y and x, ``(2, y, x) float32``, in pixels.

    Raises
    ------
    ValueError
        If the deviation is negative.

    Examples
    --------
    A 3 x 3 grid over 5 x 5 pixels: every other pixel lies on a point.

    >>> field = displacements((5, 5), np.random.default_rng(0), 10.0)
    >>> drawn = np.random.default_rng(0).normal(0, 10.0, (2, 3, 3))
    >>> field.shape, bool(np.allclose(field[:, ::2, ::2], drawn, atol=1e-5))
    ((2, 5, 5), True)
    """
    drawn = torch.from_numpy(rng.normal(0, deviation, (2, *points)).astype(np.float32))
    smooth = functional.interpolate(drawn[None], size=shape, mode="bicubic", align_corners=True)
    field: NDArray[np.float32] = smooth[0].numpy()
    return field
