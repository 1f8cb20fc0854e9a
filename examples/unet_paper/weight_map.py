"""Fig. 3: compute the weight of each pixel of a real slice in the loss.

python -m unet_paper.weight_map
"""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from emseg_core.training.border import border_weights, class_weights
from emseg_core.truth import CLASSES, INSIDE, MEMBRANE
from unet_paper.drawing import picture, svg, table, words
from unet_paper.sample import grey, segments, truth

W0, SIGMA = 10.0, 5.0
STOPS = np.array([[0, 0, 60], [30, 80, 200], [60, 190, 190], [245, 220, 60], [200, 30, 30]], float)
"""Colours from the lowest to the highest weight: from blue to red, as in the paper."""


def weights() -> NDArray[np.float32]:
    """Compute the weight of each pixel by equation 2, ``(y, x) float32``; 0 for unlabelled ones."""
    classes = truth()
    balance = np.zeros(256, np.float32)
    balance[: len(CLASSES)] = class_weights(classes, CLASSES)
    summed: NDArray[np.float32] = balance[classes] + W0 * border_weights(segments(), SIGMA) * (classes == MEMBRANE)
    return summed


def report() -> str:
    """Report both terms of the weights, the share of the membrane, and the decrease with the width of a border."""
    classes, found, parts = truth(), weights(), segments()
    balance = class_weights(classes, CLASSES)
    chosen = [found[classes == label] for label in (INSIDE, MEMBRANE)]
    rows = (
        ("fraction of pixels", *(f"{one.size / sum(map(len, chosen)):.2f}" for one in chosen)),
        ("w_c, which balances the classes", *(f"{weight:.2f}" for weight in balance)),
        ("lowest weight", *(f"{one.min():.2f}" for one in chosen)),
        ("mean weight", *(f"{one.mean():.2f}" for one in chosen)),
        ("highest weight", *(f"{one.max():.2f}" for one in chosen)),
        ("fraction of weights", *(f"{one.sum() / found.sum():.2f}" for one in chosen)),
    )
    widths = (1, 2, 5, 10, 15)
    by_width = table(
        ("width of a border in pixels", *widths), ("added weight", *(f"{W0 * between(width):.2f}" for width in widths))
    )
    return "\n".join([table((f"{parts.max()} segments", *CLASSES), *rows), by_width])


def between(width: int) -> float:
    """Compute the exponential in a straight border of this width in pixels; d1 + d2 is constant across it."""
    return float(border_weights(np.array([[1, *[0] * width, 2]]), SIGMA)[0, 1])


def heat(values: NDArray[np.float32], most: float) -> NDArray[np.uint8]:
    """Map values from 0 to `most` to colours, ``(y, x, 3) uint8``."""
    places = np.clip(values / most, 0, 1) * (len(STOPS) - 1)
    channels = [np.interp(places, np.arange(len(STOPS)), STOPS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def hues(parts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Map segments to colours ``(y, x, 3) uint8``, different ones for successive ids; border is black."""
    golden = 0.618
    wheel = [colorsys.hls_to_rgb(number * golden % 1, 0.62, 0.6) for number in range(int(parts.max()))]
    return np.array([(0, 0, 0), *(np.array(wheel) * 255)], np.uint8)[parts]


def draw() -> str:
    """Draw the slice, its segments, and the weights in colours."""
    raw, found = grey(), weights()
    side, scale = raw.shape[0], 1.2
    width, most = side * scale, float(np.ceil(found.max()))
    bar = np.linspace(most, 0, 100, dtype=np.float32)[:, None] * np.ones((1, 8), np.float32)
    panels = (("a slice", raw), ("its segments", hues(segments())), ("weight of each pixel", heat(found, most)))
    parts = []
    for place, (name, pixels) in enumerate(panels):
        x = 10 + place * (width + 12)
        parts += [picture(x, 28, pixels, scale), words(x, 20, name)]
    x = 10 + 3 * (width + 12)
    parts += [picture(x, 28, heat(bar, most), width / 100)]
    parts += [words(x + 30, 28 + width * (1 - level / most) + (10 if level else 0), f"{level:g}") for level in (0, most)]
    return svg(int(x + 60), int(width + 40), *parts)


if __name__ == "__main__":
    print(report())
