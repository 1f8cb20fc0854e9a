"""Slices as colours: raw voxels in grey, and labels in the colours that viewers are told."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.grid.stitch import NOT_COMPUTED
from emseg.store.classes import colour

NOT_COMPUTED_COLOUR = (120, 120, 120)
OPACITY = 0.6

Pixels = NDArray[np.uint8]
"""``(y, x, 3) uint8``."""


def contrast(raw: NDArray[Any]) -> Pixels:
    """Intensities ``(y, x)`` as grey pixels; the darkest and brightest half per cent are cut off, what is NaN is black."""
    finite = np.isfinite(raw)
    low, high = contrast_range(raw)
    scaled = (np.where(finite, raw, low).astype(np.float64) - low) / ((high - low) or 1)
    grey = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def contrast_range(raw: NDArray[Any]) -> tuple[float, float]:
    """The values that are black and white, but for half a per cent of all at either end; both 0 where all is NaN."""
    finite = raw[np.isfinite(raw)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0, 0)
    return float(low), float(high)


def coloured(labels: NDArray[np.uint8], classes: int) -> Pixels:
    """Labels ``(y, x) uint8`` in the colours that the output's metadata give to viewers; the first class is black."""
    table = np.zeros((256, 3), np.uint8)
    for label in range(1, classes):
        table[label] = colour(label)
    table[NOT_COMPUTED] = NOT_COMPUTED_COLOUR
    return table[labels]


def overlay(grey: Pixels, labels: NDArray[np.uint8], classes: int) -> Pixels:
    """Labels ``(y, x) uint8`` laid over grey pixels; the first class leaves them as they are."""
    mixed = (1 - OPACITY) * grey + OPACITY * coloured(labels, classes)
    pixels: Pixels = np.where((labels != 0)[..., None], mixed, grey).astype(np.uint8)
    return pixels


def overlay_instances(grey: Pixels, ids: NDArray[np.uint64]) -> Pixels:
    """Instances ``(y, x) uint64`` over grey pixels, each in a colour that follows from its number; 0 is clear."""
    mixed = ids * np.uint64(0x9E3779B97F4A7C15)  # numbers next to each other get colours far apart
    colours = np.stack([(mixed >> np.uint64(shift)) & np.uint64(0xFF) for shift in (56, 48, 40)], axis=-1)
    pixels: Pixels = np.where((ids != 0)[..., None], (1 - OPACITY) * grey + OPACITY * colours, grey).astype(np.uint8)
    return pixels
