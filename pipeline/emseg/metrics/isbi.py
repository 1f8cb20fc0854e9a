"""Segments by the protocol of the ISBI 2012 challenge, one slice at a time; NumPy only.

A map of borders is thresholded, its inside falls into segments, the borders between these are thinned, and the
segments are compared with those of the truth on the pixels that the truth calls inside; V_Rand and V_Info are then taken at
the best of all thresholds. Arganda-Carreras et al. 2015, doi:10.3389/fnana.2015.00142; the organisers' program is the
class ``RandError`` of Fiji's Trainable Segmentation. As there, segments are 4-connected, and a pixel of the proposal's
border inside a true segment is a segment of its own. What may differ from it:

- Borders are thinned by the rule in `emseg.metrics.thinning`; that program's own thinning was not compared. Between two
  segments a line may have two middles, and programs take either. Lines of scikit-image's watershed gave 0.8848 where these
  gave 0.8843, for a real section of 512 x 512 pixels.
- A stack's score is the mean over its slices; that program adds up the pairs of pixels of all slices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emseg.metrics.components import Labels, components
from emseg.metrics.partition import Scores, overlap, scores
from emseg.metrics.thinning import thinned

TENTHS = tuple(step / 10 for step in range(11))
"""The thresholds of the challenge."""
FINE = tuple(step / 50 for step in range(51))
"""Thresholds in steps of 0.02; the challenge's are among them."""


def border_scores(border: NDArray[np.bool_], truth: Labels) -> Scores:
    """The scores of one slice, borders thinned, where the truth has a segment.

    Parameters
    ----------
    border
        What is proposed as border, ``(y, x) bool``.
    truth
        Number of the true segment of each pixel, ``(y, x) int64``; 0 is border, or ignored.

    Raises
    ------
    ValueError
        If the truth has no segment.

    Examples
    --------
    A border three pixels wide where the truth draws one: as good as can be.

    >>> border_scores(np.array([[0, 0, 1, 1, 1, 0, 0]], bool), np.array([[1, 1, 1, 0, 2, 2, 2]])).rand
    1.0
    """
    return scores(overlap(thinned(components(~border)), truth))
