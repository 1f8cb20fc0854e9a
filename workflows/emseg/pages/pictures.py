"""Draw slices: raw voxels in grey, and labels in the colours that the output's metadata give to viewers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.pages.colours import class_colours
from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.specs.heads import StoredImage

OPACITY = 0.6

Pixels = NDArray[np.uint8]
"""``(y, x, 3) uint8``."""


def contrast(raw: NDArray[Any]) -> Pixels:
    """Draw intensities in grey, with the darkest and brightest half per cent clipped.

    Parameters
    ----------
    raw
        Intensities ``(y, x)``; NaN and infinity become black.

    Returns
    -------
    ndarray
        ``(y, x, 3) uint8``.
    """
    low, high = contrast_range(raw)
    scaled = np.nan_to_num((raw.astype(np.float64) - low) / ((high - low) or 1), posinf=0)
    grey = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def drawn(image: StoredImage, voxels: NDArray[Any], grey: Pixels) -> Pixels:
    """Draw a slice of an image of an output.

    Parameters
    ----------
    image
        The image.
    voxels
        Labels ``(y, x)``, which are drawn over the raw slice; or probabilities or values ``(channel, y, x)``, of which the
        first channel is drawn.
    grey
        Pixels of the raw slice, ``(y, x, 3) uint8``.

    Returns
    -------
    ndarray
        ``(y, x, 3) uint8``; what is not computed is as the first label is, or black.
    """
    if image.content == "labels":
        return overlay(grey, np.where(voxels == NOT_COMPUTED, 0, voxels), len(image.names))
    first = voxels[0].astype(np.float32)
    return contrast(np.where(first == NOT_COMPUTED, np.nan, first) if image.dtype == "uint8" else first)


def contrast_range(raw: NDArray[Any]) -> tuple[float, float]:
    """Return the range of intensities, without half a per cent of the voxels at either end.

    Parameters
    ----------
    raw
        Intensities, of any shape and numeric type.

    Returns
    -------
    tuple of float
        Values to draw black and white; both 0 if all voxels are NaN.
    """
    finite = raw[np.isfinite(raw)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0, 0)
    return float(low), float(high)


def coloured(labels: NDArray[np.uint8], classes: int) -> Pixels:
    """Draw labels in the colours that the output's metadata give to viewers.

    Parameters
    ----------
    labels
        Classes, ``(y, x) uint8``.
    classes
        Number of classes; the first one is black.

    Returns
    -------
    ndarray
        ``(y, x, 3) uint8``.
    """
    table = np.zeros((256, 3), np.uint8)
    for label, colour in class_colours(classes).items():
        table[label] = colour if label else 0
    return table[labels]


def overlay(grey: Pixels, labels: NDArray[np.uint8], classes: int) -> Pixels:
    """Draw labels over grey pixels.

    Parameters
    ----------
    grey
        Pixels, ``(y, x, 3) uint8``.
    labels
        Classes, ``(y, x) uint8``; the first one is transparent.
    classes
        Number of classes.

    Returns
    -------
    ndarray
        ``(y, x, 3) uint8``.
    """
    return _blend(grey, coloured(labels, classes), labels)


def overlay_instances(grey: Pixels, ids: NDArray[np.uint64]) -> Pixels:
    """Draw instances over grey pixels, each in a colour derived from its id.

    Parameters
    ----------
    grey
        Pixels, ``(y, x, 3) uint8``.
    ids
        Instance ids, ``(y, x) uint64``; 0 is transparent.

    Returns
    -------
    ndarray
        ``(y, x, 3) uint8``.
    """
    mixed = ids * np.uint64(0x9E3779B97F4A7C15)  # gives neighbouring ids very different colours
    colours = np.stack([(mixed >> np.uint64(shift)) & np.uint64(0xFF) for shift in (56, 48, 40)], axis=-1)
    return _blend(grey, colours, ids)


def _blend(grey: Pixels, colours: NDArray[Any], labels: NDArray[Any]) -> Pixels:
    """Draw colours over grey pixels wherever a label is not 0."""
    pixels: Pixels = np.where((labels != 0)[..., None], (1 - OPACITY) * grey + OPACITY * colours, grey).astype(np.uint8)
    return pixels
