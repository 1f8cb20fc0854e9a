"""Connected components of a plane; NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emseg_core.graph_components import connected_components

Labels = NDArray[np.int64]
"""Segment of each pixel, ``(y, x) int64``; 0 is background."""


def components(inside: NDArray[np.bool_]) -> Labels:
    """Label the 4-connected components of a plane.

    Pixels are neighbours if they share an edge. Diagonal borders one pixel wide then separate two segments; with eight
    neighbours, the segments would touch through the corners of such a line.

    Rows are divided into runs, and each run is linked to the runs that it touches in the row above.

    Parameters
    ----------
    inside
        Pixels to label, ``(y, x) bool``.

    Returns
    -------
    Labels
        Component of each pixel, ``(y, x) int64``: 1, 2, ... in the order of their first pixels, 0 outside.

    Examples
    --------
    >>> components(np.array([[1, 0, 1], [1, 0, 1], [0, 1, 1]], bool))
    array([[1, 0, 2],
           [1, 0, 2],
           [0, 2, 2]])
    """
    begins = inside & ~np.pad(inside, ((0, 0), (1, 0)))[:, :-1]
    runs: Labels = np.where(inside, np.cumsum(begins).reshape(inside.shape), 0)
    touching = inside[1:] & inside[:-1]
    roots = connected_components(int(runs.max(initial=0)) + 1, runs[:-1][touching], runs[1:][touching])
    numbers: Labels = np.cumsum(roots == np.arange(len(roots))) - 1
    return numbers[roots][runs]
