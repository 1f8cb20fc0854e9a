"""Thin borders to one pixel, so that a score does not depend on how wide they were drawn; NumPy only.

Segments grow into the border, all at the same speed, until they meet::

    1 1 . . . . 2        1 1 1 1 . 2 2
    1 1 . . . . 2   ->   1 1 1 1 . 2 2        . border
    1 1 . . . . 2        1 1 1 1 . 2 2

A border pixel is left only where two segments meet. Dead ends and spots inside a segment become part of it.
"""

from __future__ import annotations

import numpy as np

from emseg_core.metrics.components import Labels


def thinned(segments: Labels) -> Labels:
    """Grow segments into the border until it is one pixel wide.

    Layer by layer, a border pixel beside one segment joins it, and one beside two or more stays border. Neighbours share an
    edge, as in `emseg_core.metrics.components`, so different segments never touch. Within a layer, the pixels are treated in
    the order of a chessboard's black and white squares: pixels of one colour are never neighbours, so the result does not
    depend on the order within a colour. If there is no segment, all pixels stay border.

    Parameters
    ----------
    segments
        Segment of each pixel, ``(y, x) int64``; 0 is border.

    Returns
    -------
    Labels
        Segment of each pixel after growing, ``(y, x) int64``; 0 is the remaining border.

    Examples
    --------
    >>> thinned(np.array([[1, 0, 0, 0, 2], [1, 0, 0, 0, 2]]))
    array([[1, 1, 0, 2, 2],
           [1, 1, 0, 2, 2]])
    >>> thinned(np.array([[1, 1, 1], [1, 0, 0], [1, 1, 1]])).tolist()
    [[1, 1, 1], [1, 1, 1], [1, 1, 1]]
    """
    width = segments.shape[1] + 2
    padded = np.pad(segments, 1)
    grown = padded.ravel()
    steps = np.array([-width, -1, 1, width])
    waiting = np.pad(segments == 0, 1).ravel()
    rim = np.flatnonzero(grown)
    while len(rim):
        near = (rim[:, None] + steps).ravel()
        layer = np.unique(near[waiting[near]])
        waiting[layer] = False
        black = (layer // width + layer % width) % 2 == 0
        for half in (layer[black], layer[~black]):
            grown[half] = _only(grown[half[:, None] + steps])
        rim = layer[grown[layer] != 0]
    return padded[1:-1, 1:-1].copy()


def _only(neighbours: Labels) -> Labels:
    """Return the only segment among the neighbours ``(n, 4) int64`` of each of n pixels; 0 if there are several."""
    highest = neighbours.max(axis=1)
    several = np.any((neighbours != 0) & (neighbours != highest[:, None]), axis=1)
    return np.where(several, 0, highest)
