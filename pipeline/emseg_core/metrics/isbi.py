"""Segment scores by the protocol of the ISBI 2012 challenge, one slice at a time; NumPy only.

A border map is thresholded, the connected components of its inside are the segments, and the borders between them are
thinned. The segments are compared with those of the truth on the pixels that the truth calls inside, and V_Rand and V_Info are
taken at the best of all thresholds. See Arganda-Carreras et al. 2015, doi:10.3389/fnana.2015.00142; the organisers' program is
the class ``RandError`` of Fiji's Trainable Segmentation. As there, segments are 4-connected, and each border pixel of the
proposal inside a true segment is a segment of its own. Possible differences:

- Borders are thinned by the rule in `emseg_core.metrics.thinning`; the thinning of that program was not compared. Between two
  segments a line may have two middles, and programs take either. Lines of scikit-image's watershed gave 0.8848 where these
  gave 0.8843, for a real section of 512 x 512 pixels.
- The score of a stack is the mean over its slices; that program adds up the pairs of pixels of all slices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emseg_core.metrics.components import Labels, components
from emseg_core.metrics.partition import Scores, overlap, scores
from emseg_core.metrics.thinning import thinned

TENTHS = tuple(step / 10 for step in range(11))
"""Thresholds of the challenge."""
FINE = tuple(step / 50 for step in range(51))
"""Thresholds in steps of 0.02; they include those of the challenge."""


def border_scores(border: NDArray[np.bool_], truth: Labels) -> Scores:
    """Score one slice, with borders thinned, where the truth has a segment.

    Parameters
    ----------
    border
        Proposed border, ``(y, x) bool``.
    truth
        True segment of each pixel, ``(y, x) int64``; 0 is border, or ignored.

    Returns
    -------
    Scores
        Scores of the slice.

    Raises
    ------
    ValueError
        If the truth has no segment.

    Examples
    --------
    A border three pixels wide where the truth has one pixel gets the best score.

    >>> border_scores(np.array([[0, 0, 1, 1, 1, 0, 0]], bool), np.array([[1, 1, 1, 0, 2, 2, 2]])).rand
    1.0
    """
    return scores(overlap(thinned(components(~border)), truth))
