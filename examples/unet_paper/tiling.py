"""Fig. 2: overlap-tiles with mirroring, and the errors in the labels without either.

python -m unet_paper.tiling
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emseg_core.box import Box, Triple, triple
from emseg_core.grid.mirror import mirrored
from emseg_core.grid.stitch import Canvas, classify
from emseg_core.grid.tiles import tiles_of
from emseg_core.model.predictor import TorchPredictor
from emseg_core.model.unet import UNet
from emseg_core.specs.model import ModelSpec
from unet_paper.drawing import BLUE, RED, YELLOW, picture, rectangle, svg, table, words
from unet_paper.sample import grey

SMALL = ModelSpec.unet(width=4)
"""The paper's network with fewer channels: the same context, the same lattice."""
TILE = SMALL.tile_for((1, 64, 64))
Logits = NDArray[np.float32]
"""``(class, z, y, x) float32``"""


def volume() -> NDArray[np.float32]:
    """Return the slice as a normalised volume ``(z, y, x) float32``."""
    values = grey()[None].astype(np.float32)
    normalised: NDArray[np.float32] = (values - values.mean()) / values.std()
    return normalised


def predictor() -> TorchPredictor:
    """Build the network with random weights, the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TorchPredictor(UNet(SMALL), threads=1)


def untiled(raw: NDArray[np.float32], network: TorchPredictor) -> Logits:
    """Predict the whole slice, mirrored by NumPy, in one pass."""
    tile, context = SMALL.tile_for(triple(raw.shape)), SMALL.context
    pads = [(c, length - c - n) for c, length, n in zip(context, tile, raw.shape, strict=True)]
    logits: Logits = network.predict(np.pad(raw, pads, mode="reflect")[None])[0]
    return logits[(slice(None), *Box.of_shape(triple(raw.shape)).slices())]


def tiled(raw: NDArray[np.float32], network: TorchPredictor, lead: Triple = (0, 0, 0)) -> Logits:
    """Predict tile by tile, each with its real context, mirrored at the faces of the slice only."""
    canvas: Canvas[np.float32] = Canvas(Box.of_shape(triple(raw.shape)), np.float32, len(SMALL.classes))
    for tile in tiles_of(canvas.box, TILE, SMALL, lead):
        made = network.predict(mirrored(raw, tile.source)[None])[0]
        canvas.paste(tile.target, made[(slice(None), *tile.target.relative_to(tile.output.start).slices())])
    return canvas.finish()


def off_lattice(raw: NDArray[np.float32], network: TorchPredictor) -> Logits:
    """Predict tiles that step by their whole output, which is not a multiple of the lattice."""
    return patches(raw, network, SMALL.output_shape(TILE), raw)


def alone(raw: NDArray[np.float32], network: TorchPredictor) -> Logits:
    """Predict patches on the lattice, each mirrored at its own faces."""
    return patches(raw, network, SMALL.step(TILE), None)


def patches(raw: NDArray[np.float32], network: TorchPredictor, step: Triple, around: NDArray[np.float32] | None) -> Logits:
    """Predict patches `step` apart; their context is taken from `around`, or mirrored if that is None."""
    whole = Box.of_shape(triple(raw.shape))
    logits = np.empty((len(SMALL.classes), *raw.shape), np.float32)
    starts = [range(0, length, s) for length, s in zip(raw.shape, step, strict=True)]
    for corner in product(*starts):
        target = Box.of_shape(step).shift(triple(corner)).intersect(whole)
        source = Box.of_shape(TILE).relative_to(SMALL.context)
        seen = mirrored(raw[target.slices()], source) if around is None else mirrored(around, source.shift(target.start))
        made = network.predict(seen[None])[0]
        logits[(slice(None), *target.slices())] = made[(slice(None), *Box.of_shape(target.shape).slices())]
    return logits


def report() -> str:
    """Report for each kind of tiling how many labels differ from those of one pass."""
    raw, network = volume(), predictor()
    whole, first, later = untiled(raw, network), tiled(raw, network), tiled(raw, network, (0, 48, 16))
    rows: list[tuple[Any, ...]] = [
        ("tiles on the lattice", differing(first, whole)),
        ("the same, starting 48 and 16 pixels earlier", differing(later, whole)),
        ("tiles off the lattice", differing(off_lattice(raw, network), whole)),
        ("patches mirrored at their own faces", differing(alone(raw, network), whole)),
    ]
    step, output = SMALL.step(TILE)[1], SMALL.output_shape(TILE)[1]
    return "\n".join(
        [
            f"tiles of {TILE[1]} pixels give {output}; on the lattice they step by {step}, off the lattice by {output}",
            table(("labels that differ from one pass over the slice", "%"), *rows),
            f"logits that differ in any bit between the first two: {np.count_nonzero(first != later)}",
        ]
    )


def differing(logits: Logits, whole: Logits) -> str:
    """Format the percentage of labels that differ."""
    return f"{100 * (classify(logits) != classify(whole)).mean():.1f}"


def draw() -> str:
    """Draw the first tile (blue), which is mirrored beyond the faces of the slice (red), and its output (yellow)."""
    raw, scale, edge = grey()[None], 1.8, 10
    tile = next(tiles_of(Box.of_shape(triple(raw.shape)), TILE, SMALL))
    shown = Box((0, tile.source.start[1] - edge, tile.source.start[2] - edge), (1, 240, 240))
    pixels = mirrored(raw, shown)[0]
    inside = np.zeros(pixels.shape, bool)
    inside[-shown.start[1] :, -shown.start[2] :] = True
    faded = np.where(inside, pixels, 110 + pixels * 0.5).astype(np.uint8)
    side, zero = pixels.shape[0] * scale, -shown.start[1] * scale

    def frame(box: Box, colour: str) -> str:
        _, y, x = box.relative_to(shown.start).start
        return rectangle(x * scale, y * scale, box.shape[2] * scale, box.shape[1] * scale, stroke=colour)

    notes = [
        words(10, side + 20, f"blue: what the tile sees, {TILE[1]} x {TILE[2]}, mirrored beyond the faces of the slice (red)"),
        words(
            10,
            side + 40,
            f"yellow: its output, {tile.output.shape[1]} x {tile.output.shape[2]}, of which "
            f"{tile.target.shape[1]} x {tile.target.shape[2]} are kept",
        ),
    ]
    faces = rectangle(zero, zero, side, side, stroke=RED)
    return svg(
        int(side),
        int(side) + 52,
        picture(0, 0, faded, scale),
        faces,
        frame(tile.source, BLUE),
        frame(tile.output, YELLOW),
        rectangle(0, side, side + 4, 60, fill="white"),
        *notes,
    )


if __name__ == "__main__":
    print(report())
