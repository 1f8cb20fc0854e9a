"""Metadata that give viewers the names and colours of classes."""

from __future__ import annotations

import colorsys
from typing import Any

from emseg_core.grid.stitch import QUANTA

GOLDEN = 0.6180339887498949
"""Golden ratio: steps of this fraction of the colour circle keep any number of hues apart."""


def colour(index: int) -> tuple[int, int, int]:
    """Return the colour of a class, always the same and different from its neighbours'.

    Parameters
    ----------
    index
        Index of the class.

    Returns
    -------
    tuple of int
        Red, green and blue, 0 to 255.
    """
    red, green, blue = colorsys.hsv_to_rgb((0.6 + GOLDEN * index) % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def image_label(classes: tuple[str, ...], image: str | None = None) -> dict[str, Any]:
    """Return OME-Zarr metadata ``image-label``.

    Parameters
    ----------
    classes
        Name of each class; its index is its label.
    image
        Path from the labels to the image that they belong to, if any.

    Returns
    -------
    dict
        The metadata, to be stored as JSON.
    """
    return {
        "colors": [{"label-value": index, "rgba": [*colour(index), 255]} for index in range(len(classes))],
        "properties": [{"label-value": index, "name": name} for index, name in enumerate(classes)],
        **({"source": {"image": image}} if image is not None else {}),
    }


def omero(classes: tuple[str, ...]) -> dict[str, Any]:
    """Return OME-Zarr metadata ``omero`` for an image with one channel per class and stored probabilities as values.

    Parameters
    ----------
    classes
        Name of each class.
    highest
        Highest value of a voxel.

    Returns
    -------
    dict
        The metadata, to be stored as JSON.
    """
    window = {"min": 0, "max": QUANTA, "start": 0, "end": QUANTA}
    return {
        "channels": [
            {"label": name, "color": "{:02X}{:02X}{:02X}".format(*colour(index)), "active": True, "window": window}
            for index, name in enumerate(classes)
        ]
    }
