"""Weight pixels in the loss as in the paper: classes are balanced, and narrow borders between segments weigh more.

Ronneberger, Fischer and Brox (arXiv:1505.04597), equation 2::

    w(x) = w_c(x) + w_0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

d1 and d2 are the distances of a pixel to the nearest and to the second nearest segment, in pixels; the paper has w_0 = 10
and sigma = 5. `class_weights` is w_c, `border_weights` the exponential, without w_0::

    1 1 1 . . 2 2        at the left dot d1 = 1, d2 = 2, and at the right one alike
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from emseg_core.errors import InputError
from emseg_core.truth import IGNORE

CUTOFF_SIGMAS = 6.0
"""Distance from a segment, in sigmas, up to which it is considered: beyond it the exponential is below ``exp(-18)``, 1.5e-8,
which is lost when added to a weight of 1 in float32."""


def border_weights(segments: NDArray[Any], sigma: float = 5.0) -> NDArray[np.float32]:
    """Compute the additional weight of border pixels, slice by slice with distances in the plane.

    A segment consists of all pixels with the same number, connected or not. A slice with fewer than two segments has no second
    nearest one, and all its weights are 0.

    Parameters
    ----------
    segments
        Segment of each pixel, ``(y, x)`` or ``(z, y, x)`` of any integer type; 0 is border.
    sigma
        Standard deviation of the weight over the sum of both distances, in pixels.

    Returns
    -------
    NDArray
        Weights from 0 to 1, ``float32`` in the shape of `segments`; 0 inside segments.

    Raises
    ------
    InputError
        If `segments` does not have two or three axes, or sigma is not positive.

    Examples
    --------
    >>> border_weights(np.array([[1, 0, 0, 2, 2, 0]]), sigma=3.0).round(2)
    array([[0.  , 0.61, 0.61, 0.  , 0.  , 0.14]], dtype=float32)
    """
    if segments.ndim not in (2, 3):
        raise InputError(f"segments must have the axes (y, x) or (z, y, x), not {segments.ndim} axes: pass them slice by slice")
    if not sigma > 0:
        raise InputError(f"sigma is {sigma} pixels, but a width must be positive: use 5, as in the paper")
    if segments.ndim == 2:
        return _plane(segments, sigma)
    weights = np.empty(segments.shape, np.float32)
    for z, plane in enumerate(segments):
        weights[z] = _plane(plane, sigma)
    return weights


def class_weights(truth: NDArray[np.uint8], classes: tuple[str, ...]) -> tuple[float, ...]:
    """Compute class weights that balance the classes: equal sums over their voxels, and a mean of 1 over all labelled voxels.

    Parameters
    ----------
    truth
        Class of each voxel, ``uint8`` of any shape; 255 is ignored.
    classes
        Names of the classes in the order of their values.

    Returns
    -------
    tuple of float
        Weight of each class.

    Raises
    ------
    InputError
        If a class has no voxel.

    Examples
    --------
    >>> class_weights(np.array([0, 0, 0, 1, 255], np.uint8), ("inside", "membrane"))
    (0.6666666666666666, 2.0)
    """
    voxels = np.bincount(truth[truth != IGNORE].ravel(), minlength=len(classes))
    if missing := [name for name, count in zip(classes, voxels, strict=True) if not count]:
        raise InputError(
            f"no voxel is {' or '.join(missing)}, so the classes cannot be balanced: set the weights, or add more truth"
        )
    return tuple(float(voxels.sum() / (len(classes) * count)) for count in voxels)


def _plane(segments: NDArray[Any], sigma: float) -> NDArray[np.float32]:
    """Compute the weights of one slice."""
    nearest, second = _two_nearest(segments, math.ceil(CUTOFF_SIGMAS * sigma))
    weights: NDArray[np.float32] = np.exp(-((nearest + second) ** 2) / (2 * sigma**2)).astype(np.float32)
    weights[segments != 0] = 0
    return weights


def _two_nearest(segments: NDArray[Any], margin: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the distances ``(y, x) float64`` to the nearest and the second nearest segment, in pixels.

    Segments whose bounding box is more than `margin` pixels away count as infinitely far, so that each distance transform
    covers only the surroundings of its segment.
    """
    nearest, second = np.full(segments.shape, np.inf), np.full(segments.shape, np.inf)
    ids = np.unique(segments[segments != 0])
    numbers = np.where(segments == 0, 0, np.searchsorted(ids, segments) + 1)
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbers, len(ids)), start=1):
        window = tuple(slice(max(0, extent.start - margin), extent.stop + margin) for extent in (rows, columns))
        distance = ndimage.distance_transform_edt(numbers[window] != number)
        second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
        nearest[window] = np.minimum(nearest[window], distance)
    return nearest, second
