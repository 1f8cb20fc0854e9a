"""Connected components of a plane; NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emseg.joining import joined

Labels = NDArray[np.int64]
"""Number of the segment of each pixel, ``(y, x) int64``; 0 where there is none."""


def components(inside: NDArray[np.bool_]) -> Labels:
    """Number of the component of each pixel, ``(y, x) int64``: 1, 2, ... in the order of their first pixels, 0 outside.

    Pixels are neighbours if they share an edge. Borders one pixel wide that run diagonally then keep two segments apart;
    with eight neighbours the segments would touch through each corner of such a line.

    Rows are cut into runs, and runs that touch the row above are joined.

    Parameters
    ----------
    inside
        What consists of components, ``(y, x) bool``.

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
    roots = joined(int(runs.max(initial=0)) + 1, runs[:-1][touching], runs[1:][touching])
    numbers: Labels = np.cumsum(roots == np.arange(len(roots))) - 1
    return numbers[roots][runs]
